"""The feature tap: one pass over the images gives logits, penultimate features and any named layer's activations.

What else a method needs of the model, it takes while the images pass: a `Probe` sees every batch, with the raw outputs
of the layers it names, and what it returns is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.data.images import Images
from holdfast.errors import UserError, one_of
from holdfast.models.freeze import frozen, full_precision
from holdfast.models.passes import images_per_pass
from holdfast.run import Run

__all__ = ["Features", "Probe", "Seen", "classifier_head", "extract", "predict", "tap", "tap_input"]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a model made of N images, on the CPU.

    Args:
        logits: float32 (N, K).
        y: int64 (N,), the labels.
        penultimate: float32 (N, D), the input of the model's last linear layer; ``None`` when its logits do not come
            straight from one.
        layers: float32 activations by module name; (N, C) where maps were averaged.
        observed: what probes kept, by the probe's name, float32 (N, ...).
    """

    logits: Float[Tensor, "n k"]
    y: Int64[Tensor, " n"]
    penultimate: Float[Tensor, "n d"] | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    _derived: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.logits)

    def once(self, name: str, compute: Callable[[], _T]) -> _T:
        """What `compute` gives, worked out when first asked for: several detectors need the same statistics."""
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]

    @property
    def num_classes(self) -> int:
        """The number of logits per image."""
        return self.logits.shape[1]

    @property
    def predictions(self) -> Tensor:
        """The class of the largest logit, int64 (N,)."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, float32 (N, K)."""
        return self.logits.softmax(1)

    def select(self, which: Any) -> Features:
        """The features of the images at the given positions, or where a boolean mask is true."""
        return Features(
            logits=self.logits[which],
            y=self.y[which],
            penultimate=None if self.penultimate is None else self.penultimate[which],
            layers={name: values[which] for name, values in self.layers.items()},
            observed={name: values[which] for name, values in self.observed.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One batch as a probe sees it, on the device, without gradients.

    Args:
        model: lent through `frozen`. Probes may pass images through it again, with gradients with respect to them.
        head: the model's last linear layer, if its logits come straight from one.
        x: the images, in [0, 1].
        y: their labels.
        start: the position of the first of them among all images.
        logits: (n, K), float32.
        penultimate: (n, D), the input of the head, if there is one.
        layers: the raw outputs of the layers that the probe names.
    """

    model: nn.Module
    head: nn.Linear | None
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    start: int
    logits: Float[Tensor, "n k"]
    penultimate: Float[Tensor, "n d"] | None
    layers: Mapping[str, Tensor]


class Probe(Protocol):
    """Looks on while images pass through the model."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers whose outputs it needs."""

    def __call__(self, seen: Seen) -> Tensor | None:
        """What to keep of a batch, one row per image; ``None`` for a probe that keeps its own account."""


def extract(
    model: nn.Module,
    images: Images,
    *,
    run: Run,
    layers: Sequence[str] = (),
    pool: bool = True,
    probes: Mapping[str, Probe] | None = None,
) -> Features:
    """Pass the images once through the model, in float32, and keep what detectors need.

    Memory on the device stays that of one batch of ``run.batch_size`` images at most; results gather on the CPU.

    Args:
        model: in any mode; it is lent through `frozen`.
        images: N of them, at least one.
        run: device, batch size, progress.
        layers: names of submodules whose outputs to keep, as `torch.nn.Module.get_submodule` takes them. Of a module
            used several times the last output is kept.
        pool: average maps (N, C, H, W) over their pixels to (N, C); other shapes stay as they are. Probes see them raw.
        probes: look on, by name.

    Raises:
        UserError: there are no images, the model does not return logits (see `check_model`), or a layer does not
            exist or does not return a tensor with one row per image.
    """
    if not len(images):
        raise UserError(f"{images.name}: there are no images to pass through the model.")
    layers, probes = list(dict.fromkeys(layers)), probes or {}
    tapped = list(dict.fromkeys([*layers, *(name for probe in probes.values() for name in probe.layers)]))
    store: dict[str, Tensor] = {}
    done = 0
    device = run.torch_device
    with _inference(model, device), run.track(len(images), "features") as ticker:
        head = classifier_head(model, next(images.batches(2, device))[0])
        with tap(model, tapped) as outputs, tap_input(head) as inputs:
            for x, y in images.batches(images_per_pass(model, images.shape, run), device):
                seen = {"logits": logits_of(model, x).float()}
                if head is not None:
                    seen["penultimate"] = inputs[0]
                raw = {name: _rows(name, outputs.pop(name, None), len(x)) for name in tapped}
                for name in layers:
                    seen[f"layer {name}"] = _pooled(raw[name]) if pool else raw[name]
                for name, probe in probes.items():
                    kept = probe(
                        Seen(
                            model=model,
                            head=head,
                            x=x,
                            y=y,
                            start=done,
                            logits=seen["logits"],
                            penultimate=seen.get("penultimate"),
                            layers={layer: raw[layer] for layer in probe.layers},
                        )
                    )
                    if kept is not None:
                        seen[f"observed {name}"] = kept
                for name, values in seen.items():
                    if name not in store:
                        store[name] = torch.empty((len(images), *values.shape[1:]))
                    store[name][done : done + len(x)] = values
                done += len(x)
                ticker.advance(len(x))
    return Features(
        logits=store["logits"],
        y=images.y,
        penultimate=store.get("penultimate"),
        layers={name: store[f"layer {name}"] for name in layers},
        observed={name: store[f"observed {name}"] for name in probes if f"observed {name}" in store},
    )


def predict(model: nn.Module, images: Images, *, run: Run) -> Float[Tensor, "n k"]:
    """The logits of all images, float32 (N, K) on the CPU; see `extract`."""
    if not len(images):
        raise UserError(f"{images.name}: there are no images to pass through the model.")
    device = run.torch_device
    with _inference(model, device), run.track(len(images), "predictions") as ticker:
        parts = []
        for x, _ in images.batches(images_per_pass(model, images.shape, run), device):
            parts.append(logits_of(model, x).float().cpu())
            ticker.advance(len(x))
    return torch.cat(parts)


@contextlib.contextmanager
def _inference(model: nn.Module, device: torch.device) -> Iterator[None]:
    # no_grad rather than inference_mode: some models compute gradients in their own forward pass.
    with frozen(model, device=device), torch.no_grad(), full_precision():
        yield


def logits_of(model: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The model's output for a batch, verified to be one tensor of shape (N, K).

    Raises:
        UserError: the output is something else.
    """
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"the model must return logits of shape ({len(x)}, classes) for {len(x)} images, got {got}.")
    return logits


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While the block runs, keep the latest output of the named submodules, with its autograd graph.

    Yields:
        A dictionary filled by each forward pass.

    Raises:
        UserError: there is no submodule of that name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            if name not in modules or not name:
                raise one_of("layer", name, (n for n in modules if n))

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                # A later in-place activation would write into this very tensor; an alias would show its result.
                seen[name] = output.clone() if isinstance(output, Tensor) else output

            handle = modules[name].register_forward_hook(keep)
            stack.callback(handle.remove)
        yield seen


def classifier_head(model: nn.Module, example: Float[Tensor, "n c h w"] | None = None) -> nn.Linear | None:
    """The linear layer whose output is the model's output, found by watching one forward pass.

    Args:
        model: in any mode; it is lent through `frozen`.
        example: a few images on the model's device. By default zeros in the shape the model was built for, or, for a
            model that does not say, in shapes guessed from its first layer.

    Returns:
        The layer, or ``None`` when the logits do not come straight from an `nn.Linear`.
    """
    if example is not None:
        with frozen(model):
            return _producer(model, example)
    for guess in examples(model):
        try:
            with frozen(model):
                return _producer(model, guess)
        except Exception:  # a guessed input: a stranger's model may refuse it in any way
            continue
    return None


def _producer(model: nn.Module, example: Tensor) -> nn.Linear | None:
    calls: list[tuple[nn.Linear, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):

                def note(module: nn.Module, inputs: Any, output: Any) -> None:
                    calls.append((module, output.detach()))  # type: ignore[arg-type]

                stack.callback(module.register_forward_hook(note).remove)
        with torch.no_grad():
            logits = logits_of(model, example)
    for module, output in reversed(calls):
        if output.shape == logits.shape and torch.equal(output.float(), logits.float()):
            return module
    return None


def examples(model: nn.Module) -> Iterator[Float[Tensor, "2 c h w"]]:
    """Blank images, two at a time, in the shape the model was built for, or in shapes guessed from its first layer."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    shape = getattr(model, "image_shape", None)
    if shape is not None:
        yield torch.zeros(2, *shape, device=device)
        return
    channels = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)][:1] or [3, 1]
    for c in channels:
        for side in (32, 28, 8, 64, 224):
            yield torch.zeros(2, c, side, side, device=device)


@contextlib.contextmanager
def tap_input(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """While the block runs, a list of one holds the input of the module's latest call; it is empty without a module."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0].clone()]

    handle = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _rows(name: str, values: object, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != count:
        got = "nothing" if values is None else f"a {type(values).__name__}"
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else got
        raise UserError(f"the layer {name!r} must return a tensor with one row per image, got {got}.")
    return values


def _pooled(values: Tensor) -> Tensor:
    return values.mean((2, 3)) if values.ndim == 4 else values
