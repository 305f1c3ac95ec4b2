"""The model as an attack sees it: fast passes to search with, and the user's own model to judge by.

Searching uses a verified twin (batch norm folded into the convolutions, weights without gradients, channels-last),
which gives the same logits to rounding at about two thirds of the cost. With ``precision="bf16"`` gradients are taken
in bf16, at about half the cost again; losses and predictions are computed from float32 copies of the logits. No second
pass in float32 over the survivors is made: on four networks, robust and not, calibrated and saturated, PGD with either
precision fooled the same images, 400 of 400. Searches that compare losses do so in float32; with bf16 those that keep
few of the points they try let a pass in bf16 sort out what is clearly no better (`Oracle.screen`, and `Search.consider`
in `holdfast.evasion.loop`). Verdicts come from the user's model, in float32, outside any autocast of the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.losses import Loss
from holdfast.methods import Method
from holdfast.models import (
    Replays,
    declares_mixing,
    fast_twin,
    frozen,
    full_precision,
    fuse_for_inference,
    images_per_pass,
    only_answers,
    round_for_inference,
)
from holdfast.models.features import logits_of
from holdfast.models.freeze import fast_layout
from holdfast.run import Run

__all__ = ["Oracle", "consult", "demand_gradients"]

_WITHOUT_GRADIENTS = ("square", "nes", "simba", "hopskipjump")  # what to recommend, of what there is

Pass = Callable[..., tuple[Tensor, ...]]


class Oracle:
    """Answers an attack's questions about a model, in parts small enough for the device's memory.

    Args:
        judge: the user's model, frozen.
        twin: computes the same, faster.
        run: device and precision.
        limit: most images per pass; it falls when memory runs out.
    """

    def __init__(self, judge: nn.Module, twin: nn.Module, run: Run, limit: int):
        self.judge, self.twin, self.run, self.limit = judge, twin, run, limit
        self.device = run.torch_device
        # Recordings are rounded up to a few sizes, which is wrong where the samples of a batch depend on each other.
        # What only answers queries cannot be recorded, and the attempt would be paid for.
        self._only_answers = only_answers(twin)
        self._replays = Replays("cpu" if self._only_answers or declares_mixing(twin) else self.device)
        #: Who asks, for messages.
        self.who = "this attack"
        #: The model's outputs are probabilities, not logits. Their logarithms are what a softmax could have been given,
        #: so that losses keep their meaning.
        self.probabilities = False
        self._quick: nn.Module | None = None  # the twin for passes without gradients, once there was one
        self._rough: nn.Module | None = None  # the same in bf16, where it serves
        # A twin that is the model itself is one that cannot be copied: random, or not ours to look into.
        self._as_it_is = twin is judge or self._only_answers
        # Only where bf16 is wanted, and where asking for some images again does not change the answers for them.
        self._may_screen = run.precision == "bf16" and not self._as_it_is and not declares_mixing(twin)

    def verdict(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The user's model's own output, in float32."""

        def work(x: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (logits_of(self.judge, x).float(),)

        return self._in_parts(work, x)[0]

    def verdicts(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The same for any number of images, wherever they are; returned beside them."""
        size = self.limit
        parts = (fast_layout(x[i : i + size].float(), self.device) for i in range(0, len(x), size))
        return torch.cat([self.verdict(part).to(x.device) for part in parts])

    def logits(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits for a search that compares losses: always float32, since bf16 would drown small differences."""

        if self._quick is None:
            self._quick = self.twin if self._as_it_is else fuse_for_inference(self.twin, x[:8])
        return self._pass(self._quick, x, "logits")

    def screen(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"] | None:
        """Logits in bf16, to tell which images deserve a pass in float32.

        They cost about a quarter of what `logits` do, and are off by about 2^-9 of the range of an image's logits.

        Returns:
            None where that is not wanted or not to be had: in float32, where the model cannot be copied, or where
            its answers depend on who else is in the batch.
        """
        if self._may_screen and self._rough is None:
            self._rough = round_for_inference(self.twin, x[:8])
            self._may_screen = self._rough is not None
        return self._pass(self._rough, x, "screen") if self._may_screen and self._rough is not None else None

    def _pass(self, model: nn.Module, x: Tensor, kind: str) -> Tensor:
        def work(x: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (self.as_logits(model(x)),)

        return self._in_parts(work, x, kind=kind)[0]

    def gradient(
        self, x: Float[Tensor, "n c h w"], loss: Loss, y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
        """Logits, losses, and the gradient of each sample's loss with respect to it, from one pass.

        Where the model cuts the path from its input, the gradient is zero.

        Raises:
            UserError: the model only answers queries.
        """
        if self._only_answers:
            demand_gradients(self.who, self.twin)

        def work(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                with self.run.autocast():
                    output = self.twin(x)
                logits = self.as_logits(output)
                losses = loss(logits, y, target)
            gradient = None
            if losses.requires_grad:
                # A sum, not a mean: a sample's gradient must not depend on how many others there are.
                (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True)
            if gradient is None:
                gradient = torch.zeros_like(x)
            elif 0 in gradient.stride():  # autograd may hand out one value for many pixels, and searches write into it
                gradient = gradient.clone()
            return logits.detach(), losses.detach(), gradient

        logits, losses, gradient = self._in_parts(work, x, y, target, kind=("gradient", loss))
        return logits, losses, gradient

    def class_gradients(
        self, x: Float[Tensor, "n c h w"], classes: Int64[Tensor, "n m"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n m c h w"]]:
        """Logits, and the gradients of some of them with respect to each sample, from one pass forward.

        Always float32: what linearises a boundary cannot do with bf16.

        Raises:
            UserError: the model only answers queries.
        """
        if self._only_answers:
            demand_gradients(self.who, self.twin)

        def work(x: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = self.as_logits(self.twin(x))
                chosen = logits.gather(1, classes).sum(0)
            if not chosen.requires_grad:
                return logits.detach(), x.new_zeros(len(x), classes.shape[1], *x.shape[1:])
            each = torch.eye(len(chosen), dtype=chosen.dtype, device=chosen.device)
            # One batched pass backward costs about two thirds of as many single ones.
            (gradients,) = torch.autograd.grad(chosen, x, each, is_grads_batched=True)
            return logits.detach(), gradients.transpose(0, 1).contiguous()

        logits, gradients = self._in_parts(work, x, classes)
        return logits, gradients

    def as_logits(self, output: Tensor) -> Tensor:
        """The model's output in float32, with probabilities turned to their logarithms."""
        output = output.float()
        return output.clamp_min(torch.finfo(torch.float32).tiny).log() if self.probabilities else output

    def _in_parts(self, work: Pass, *rows: Tensor, kind: Hashable = None) -> tuple[Tensor, ...]:
        """Do the work on at most `limit` rows at a time; when memory runs out, halve the limit and try again.

        Work that is given a kind may be recorded and replayed.
        """
        count = len(rows[0])

        def do(*rows: Tensor) -> tuple[Tensor, ...]:
            return work(*rows) if kind is None else self._replays(kind, work, *rows)

        while True:
            try:
                if count <= self.limit:
                    return do(*rows)
                starts = range(0, count, self.limit)
                parts = [do(*(r[i : i + self.limit] for r in rows)) for i in starts]
                return tuple(torch.cat(part) for part in zip(*parts, strict=True))
            except RuntimeError as error:
                if not _out_of_memory(error) or min(self.limit, count) == 1:
                    raise
            # Outside the handler, where the failed attempt's tensors are no longer held by its traceback.
            self.limit = max(1, min(self.limit, count) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


@contextlib.contextmanager
def consult(
    model: nn.Module, example: Float[Tensor, "n c h w"], run: Run, who: str = "this attack"
) -> Iterator[Oracle]:
    """Lend `model` to an attack; it comes back exactly as it was.

    Random layers of the model draw from a stream of the run meanwhile, and the global generators are put back. A model
    that brings a stand-in (see `holdfast.evasion.adaptive.informed`) is searched through it, and judges by itself.

    Args:
        model: in any mode, on any device.
        example: a few images to verify the model and its twin on.
        run: device, precision, seed.
        who: asks, for messages.

    Raises:
        UserError: the model fails, or mixes the samples of a batch.
    """
    example = example.float()
    devices = [run.torch_device] if run.torch_device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.autocast(run.torch_device.type, enabled=False),
        full_precision(),
        torch.random.fork_rng(devices=devices),
        frozen(model, device=run.torch_device, check=example) as judge,
    ):
        # Not torch.manual_seed: that would also seed the devices that fork_rng does not put back.
        torch.default_generator.manual_seed(run.seed_for("model"))
        if devices:
            with torch.cuda.device(run.torch_device):
                torch.cuda.manual_seed(run.seed_for("model"))
        example = fast_layout(example, run.torch_device)
        limit = images_per_pass(judge, example.shape[1:], run)
        searched = getattr(judge, "stand_in", None)
        twin = fast_twin(searched if isinstance(searched, nn.Module) else judge, example)
        oracle = Oracle(judge, twin, run, limit)
        oracle.who = who
        oracle.probabilities = are_probabilities(oracle.verdict(example))
        yield oracle


def demand_gradients(who: str, model: nn.Module) -> None:
    """Refuse a model that an attack cannot take gradients of.

    Args:
        who: needs them: the attack's id.
        model: what the user gave; one that brings a stand-in with gradients will do.

    Raises:
        UserError: the model only answers queries. The message names attacks that need no more.
    """
    searched = getattr(model, "stand_in", None)
    if only_answers(searched if isinstance(searched, nn.Module) else model):
        fitting = [name for name in _WITHOUT_GRADIENTS if name in Method.registry]
        raise UserError(
            f"{who} needs gradients, but this model only answers queries: use an attack that needs none, such as "
            f"{', '.join(fitting)}."
        )


def are_probabilities(output: Float[Tensor, "n k"]) -> bool:
    """Whether a model's outputs are probabilities: all in [0, 1], every row summing to 1."""
    inside = bool(((output >= -1e-5) & (output <= 1 + 1e-5)).all())
    return inside and bool(((output.sum(1) - 1).abs() <= 1e-4).all())


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
