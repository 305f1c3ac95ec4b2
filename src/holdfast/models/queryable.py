"""A model that only answers: images in, scores or labels out, and every query has its price.

`Queryable` makes a model of any callable, so that whatever needs no weights and no gradients works on it: prediction,
the audit, attacks that need only answers. It keeps to a budget, asks in batches no faster than allowed, asks again when
a call fails in passing, and never pays twice for an image whose answer it still holds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.models.answers import Memory, QueriesSpent, Transient, Unanswered, read_answer
from holdfast.models.weights import weights_hash

__all__ = ["Queryable", "Usage", "asked_afresh", "forget", "only_answers", "queryables"]

_LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the other side asks for


@dataclass
class Usage:
    """What was asked so far.

    Args:
        queries: images sent, each time they were sent: this is what a budget limits.
        calls: batches sent, failed attempts included.
        hits: images whose answer was known and not asked for.
        seconds: spent waiting for answers.
    """

    queries: int = 0
    calls: int = 0
    hits: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.queries:,} queries in {self.calls:,} calls, {self.seconds:.1f} s of waiting; "
            f"{self.hits:,} answers were known already"
        )


class Queryable(nn.Module):
    """A model made of a callable that answers.

    It takes float images in [0, 1], shape (N, C, H, W), on any device, and gives float32 scores (N, K) there. It has no
    weights and passes no gradients; attacks that need them refuse it. Copies of it are itself: there is one budget.

    Args:
        answer: from one batch of images to scores (N, K), which may be logits or probabilities, or to labels, whole
            numbers (N,) or (N, 1). It must treat the images of a batch independently. Labels become one-hot scores.
        num_classes: K; needed for labels.
        image_shape: (C, H, W), if only images of one shape are taken.
        name: for messages.
        identity: tells this model from others when stopped work goes on, and must change when its answers do. By
            default a hash of the callable's code (of a module's weights), which does not see what else it reads.
        pixels: ``"float32"`` in [0, 1] or ``"uint8"`` in 0..255, to which images are rounded.
        layout: ``"nchw"``, ``"nhwc"``, or ``"flat"``: (N, C*H*W).
        arrays: ``"torch"`` or ``"numpy"``.
        bits: round pixels to so many bits before they are sent, as storing them in a file would.
        max_batch: most images in a call.
        max_queries: budget, in images sent, failed attempts included; none for no limit.
        max_rate: most images sent a second, on average.
        memory: bytes that known answers may take; the least recently used are dropped. 0 keeps none.
        retries: how often a call is repeated that fails with `Transient`, `ConnectionError` or `TimeoutError`.
        backoff: seconds before the first repetition; doubled for each further one.

    Raises:
        UserError: from the call, when the answer is not as said, the images cannot be sent, or the callable fails;
            `QueriesSpent` when the budget is spent, `Unanswered` when there is no answer to be had.
    """

    #: What `only_answers` looks for; a module of yours that cuts gradients by design may declare the same.
    gradients = False

    def __init__(
        self,
        answer: Callable[[Any], Any],
        *,
        num_classes: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        name: str | None = None,
        identity: str | None = None,
        pixels: Literal["float32", "uint8"] = "float32",
        layout: Literal["nchw", "nhwc", "flat"] = "nchw",
        arrays: Literal["torch", "numpy"] = "torch",
        bits: int | None = None,
        max_batch: int = 64,
        max_queries: int | None = None,
        max_rate: float | None = None,
        memory: int = 64 * 2**20,
        retries: int = 4,
        backoff: float = 0.5,
    ):
        super().__init__()
        self.name = name or getattr(answer, "__qualname__", None) or type(answer).__name__
        _check_choices(self.name, pixels=pixels, layout=layout, arrays=arrays)
        _check_at_least(self.name, 1, num_classes=num_classes, bits=bits, max_batch=max_batch)
        _check_at_least(self.name, 0, max_queries=max_queries, memory=memory, retries=retries, backoff=backoff)
        if bits is not None and bits > 16:
            raise UserError(f"{self.name}: bits must be at most 16, got {bits}.")
        self._answer = (answer,)  # in a tuple, since a module in an attribute would become part of this one
        self.num_classes, self.image_shape = num_classes, image_shape
        self.pixels, self.layout, self.arrays = pixels, layout, arrays
        self.bits = 8 if pixels == "uint8" and bits is None else bits
        self.max_batch, self.retries, self.backoff = max_batch, retries, backoff
        self.max_queries: int | None = None
        self.max_rate: float | None = None
        self.limit(max_queries=max_queries, max_rate=max_rate)
        self.usage = Usage()
        #: Whether the answers were labels; known after the first.
        self.labels_only = False
        #: Whether `holdfast.models.check_model` has passed; it is not paid for again.
        self.checked = False
        self._identity = f"{identity or _identity_of(answer)}, {pixels}, {layout}, {self.bits} bits"
        self._known = Memory(memory)
        self._remembering = True
        self._free_at = 0.0  # by the monotonic clock: when the rate allows the next call

    def limit(self, *, max_queries: int | None = None, max_rate: float | None = None) -> None:
        """Set the budget and the rate; what is not given stays as it is.

        Raises:
            UserError: the budget is negative, or the rate not positive.
        """
        _check_at_least(self.name, 0, max_queries=max_queries)
        if max_rate is not None and not 0 < max_rate < float("inf"):
            raise UserError(f"{self.name}: max_rate must be a positive number of images a second, got {max_rate!r}.")
        self.max_queries = self.max_queries if max_queries is None else max_queries
        self.max_rate = self.max_rate if max_rate is None else max_rate

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The scores of a batch of images in [0, 1]."""
        images = self._as_sent(x)
        scores = self._recalled(images) if self._remembering else self._asked(images)
        return torch.from_numpy(scores).to(x.device)

    def forget(self) -> None:
        """Drop the known answers."""
        self._known.clear()

    @contextlib.contextmanager
    def afresh(self) -> Iterator[None]:
        """Ask for every image, known or not, while the block runs."""
        before, self._remembering = self._remembering, False
        try:
            yield
        finally:
            self._remembering = before

    def extra_repr(self) -> str:
        """What `print` shows: nothing that changes while it is used."""
        return f"{self.name!r}, pixels={self.pixels!r}, layout={self.layout!r}"

    def get_extra_state(self) -> str:
        """The identity: it stands in the state dict, where other models have weights."""
        return self._identity

    def set_extra_state(self, state: object) -> None:
        """Accept only the state of the same model."""
        if state != self._identity:
            raise UserError(f"{self.name} has no weights to load; it is there to be asked.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Queryable:
        return self

    def _as_sent(self, x: Tensor) -> NDArray[Any]:
        """The images as the callable takes them, contiguous."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not len(x):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise UserError(f"{self.name} takes images of shape (N, C, H, W), at least one, got {got}.")
        if self.image_shape is not None and x.shape[1:] != self.image_shape:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.image_shape, x.shape[1:]))
            raise UserError(f"{self.name} takes images of shape {wanted}, got {got}.")
        x = x.detach().float().cpu()
        if self.bits is not None:
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise UserError(f"{self.name} takes images of {self.bits} bits, so pixels must lie in [0, 1].")
            levels = 2**self.bits - 1
            x = (x * levels).round_().div_(levels)
        if self.pixels == "uint8":
            x = (x * 255).round_().to(torch.uint8)
        if self.layout == "flat":
            x = x.flatten(1)
        return np.ascontiguousarray((x.permute(0, 2, 3, 1) if self.layout == "nhwc" else x).numpy())

    def _recalled(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The scores of all images, where only the unknown ones are asked for, each once."""
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
        found = {key: scores for key in keys if (scores := self._known.get(key)) is not None}
        wanted = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
        places = sorted(wanted.values())
        self.usage.hits += len(keys) - len(places)
        for some in self._batches(places):
            for place, scores in zip(some, self._ask(images[some]), strict=True):
                found[keys[place]] = scores
                self._known.put(keys[place], scores)
        return np.stack([found[key] for key in keys])

    def _asked(self, images: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([self._ask(images[some]) for some in self._batches(list(range(len(images))))])

    def _batches(self, places: list[int]) -> Iterator[list[int]]:
        size = self.max_batch if self.max_rate is None else min(self.max_batch, max(1, int(self.max_rate)))
        return (places[start : start + size] for start in range(0, len(places), size))

    def _ask(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """One batch of answers, after as many attempts as it takes and as are allowed."""
        for attempt in range(self.retries + 1):
            self._spend(len(images))
            began = time.monotonic()
            try:
                answer = self._answer[0](torch.from_numpy(images) if self.arrays == "torch" else images)
                return self._scores_of(answer, len(images))
            except (Transient, ConnectionError, TimeoutError) as error:
                if attempt == self.retries:
                    tries = f"{attempt + 1} attempts" if attempt else "1 attempt"
                    raise Unanswered(f"{self.name} gave no answer in {tries}: {_first_line(error)}.") from error
                after = error.after if isinstance(error, Transient) else 0.0
            except UserError:
                raise
            except Exception as error:  # a stranger's code: whatever it raises, the user must learn on which input
                what = f"{type(error).__name__}: {_first_line(error)}"
                raise UserError(f"{self.name} fails on a batch of {_shape(images)}: {what}.") from error
            finally:
                self.usage.seconds += time.monotonic() - began
            time.sleep(min(max(self.backoff * 2**attempt, after), _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _scores_of(self, answer: object, count: int) -> NDArray[np.float32]:
        scores, self.labels_only = read_answer(answer, count, self.num_classes, self.name)
        self.num_classes = scores.shape[1]
        return scores

    def _spend(self, count: int) -> None:
        """Account for the images of a call, and wait until the rate allows it."""
        if self.max_queries is not None and self.usage.queries + count > self.max_queries:
            raise QueriesSpent(
                f"{self.name}: the budget of {self.max_queries:,} queries is spent "
                f"({self.usage.queries:,} sent, {count:,} more needed at once)."
            )
        if self.max_rate is not None:
            now = time.monotonic()
            if self._free_at > now:
                time.sleep(self._free_at - now)
            self._free_at = max(now, self._free_at) + count / self.max_rate
        self.usage.queries += count
        self.usage.calls += 1


def only_answers(model: nn.Module) -> bool:
    """Whether a model, or a part of it, has no gradients to give: it declares ``gradients = False``."""
    return any(getattr(module, "gradients", None) is False for module in model.modules())


def queryables(model: nn.Module) -> list[Queryable]:
    """The parts of a model that are asked."""
    return [module for module in model.modules() if isinstance(module, Queryable)]


def forget(model: nn.Module) -> None:
    """Drop all known answers, so that what follows does not depend on what was asked before."""
    for part in queryables(model):
        part.forget()


@contextlib.contextmanager
def asked_afresh(model: nn.Module) -> Iterator[None]:
    """Have every image asked for while the block runs: known answers would hide that a model changes its mind."""
    with contextlib.ExitStack() as stack:
        for part in queryables(model):
            stack.enter_context(part.afresh())
        yield


def _identity_of(answer: Any) -> str:
    if isinstance(answer, nn.Module):
        return f"{type(answer).__qualname__} {weights_hash(answer)}"
    code = answer.func if isinstance(answer, functools.partial) else answer
    code = code if inspect.isroutine(code) else type(code)
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):  # built-in, or made at run time
        source = ""
    return f"{code.__module__}.{code.__qualname__} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


_CHOICES = {"pixels": ("float32", "uint8"), "layout": ("nchw", "nhwc", "flat"), "arrays": ("torch", "numpy")}


def _check_choices(who: str, **given: str) -> None:
    for what, value in given.items():
        if value not in _CHOICES[what]:
            takes = ", ".join(map(repr, _CHOICES[what]))
            raise UserError(f"{who}: {what} must be one of {takes}, got {value!r}.")


def _check_at_least(who: str, least: int, **given: float | None) -> None:
    for what, value in given.items():
        if value is not None and not value >= least:
            raise UserError(f"{who}: {what} must be at least {least}, got {value!r}.")


def _shape(images: NDArray[Any]) -> str:
    return f"{len(images)} images of shape {'x'.join(map(str, images.shape[1:]))}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300].rstrip(".") or type(error).__name__
