"""Lend a model to a computation: evaluation mode, weights without gradients, channels-last; given back as it was.

Attacks, detectors and certifiers all run inside `frozen`. What it costs: nothing; what it saves: the memory of weight
gradients, and the speed of the channels-last layout.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.models.queryable import asked_afresh, queryables

__all__ = ["MixesSamples", "NonDeterministic", "check_model", "declares_mixing", "frozen", "full_precision"]

_MIXING = 1e-3  # a sample's logits may move by this share of the largest logit when its neighbours change


class NonDeterministic(UserWarning):
    """A model in evaluation mode gave two different answers to one input."""


class MixesSamples(UserWarning):
    """A model's answer to one input depends on the others of its batch, and the model says that this is its design."""


def declares_mixing(model: nn.Module) -> str:
    """Why a model mixes the samples of a batch by design, in its own words; empty where it does not say so.

    A module, the model or a part of it, says so by an attribute ``mixes_samples``: a text such as ``"BatchGuard
    compares the samples of a batch"``. It is then lent with a warning where it would be refused. Results for one
    sample then depend on the batch size and on the other samples.
    """
    said = (getattr(module, "mixes_samples", "") for module in model.modules())
    return next((text for text in said if isinstance(text, str) and text), "")


@contextlib.contextmanager
def frozen(
    model: nn.Module, *, device: str | torch.device | None = None, check: Float[Tensor, "n c h w"] | None = None
) -> Iterator[nn.Module]:
    """Lend `model` in evaluation mode, without weight gradients, channels-last, on `device`; then restore it exactly.

    Every submodule's mode, every tensor's ``requires_grad``, and the tensors themselves (device, layout, bits) are as
    before when the block ends, by whatever way. Blocks may be nested. Weights written inside the block are lost
    where the layout or device had changed, so do not write weights inside.

    Args:
        model: any module.
        device: where to compute; ``None`` leaves the model where it is.
        check: a batch of images in [0, 1] to run `check_model` on.

    Yields:
        The same model object.

    Raises:
        UserError: the model has layers without weights yet, or fails the check.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = list(_tensors(model))
    if any(torch.nn.parameter.is_lazy(t) for t in tensors):
        raise UserError("the model has lazy layers whose weights do not exist yet; run one batch through it first.")
    before = [(t, t.requires_grad, t.data) for t in tensors]
    was_training = model.training
    try:
        _set_mode(model, training=False)
        for tensor in tensors:
            if tensor.is_leaf:
                tensor.requires_grad_(False)
            tensor.data = fast_layout(tensor.data, device)
        if check is not None:
            check_model(model, check if device is None else check.to(device))
        yield model
    finally:
        for tensor, requires_grad, data in before:
            tensor.data = data
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        if was_training:
            _set_mode(model, training=True)
        for module, training in modes:
            module.training = training


def check_model(model: nn.Module, x: Float[Tensor, "n c h w"]) -> None:
    """Verify that a model gives a finite (N, K) float tensor in which no sample depends on the others.

    A `Queryable` that has passed once is not asked again: each of these passes is paid for.

    Args:
        model: in evaluation mode, on the device of `x`.
        x: images in [0, 1]; one is enough, two or more are better.

    Raises:
        UserError: the model fails on the images, returns something else, or mixes the samples of a batch without
            saying that it is meant to (see `declares_mixing`).

    Warns:
        MixesSamples: the model says that it mixes the samples of a batch.
        NonDeterministic: two passes over the same images differ.
    """
    asked = queryables(model)
    if asked and all(part.checked for part in asked):
        return
    first = x[:1]
    # The first image, once beside its real neighbours and once beside their negatives: same batch size, hence same
    # kernels, so that a difference is the model's doing and not that of rounding.
    batch = x[:8] if len(x) > 1 else torch.cat([first, first.flip(-1)])
    altered = torch.cat([first, 1 - batch[1:]])
    with torch.no_grad(), full_precision(), asked_afresh(model):
        logits = _forward(model, batch, seed=0)
        _check_logits(logits, batch)
        beside_others = _forward(model, altered, seed=0)
        again = _forward(model, batch, seed=1)
        alone = _forward(model, first, seed=0)
    _check_logits(alone, first)
    scale = max(float(logits.abs().max()), 1e-6)
    deterministic = torch.equal(logits, again) or float((logits - again).abs().max()) <= 1e-5 * scale
    moved = float((logits[0] - beside_others[0]).abs().max())
    if deterministic:
        moved = max(moved, float((logits[0] - alone[0]).abs().max()))
    design = declares_mixing(model)
    if design:
        warnings.warn(
            f"{design}: results for an image depend on the others of its batch, and so on the batch size.",
            MixesSamples,
            stacklevel=3,
        )
    # What another process draws at random cannot be made to repeat, so it looks like mixing where it is none.
    elif not moved <= _MIXING * scale and (deterministic or not asked):
        raise UserError(
            f"the model's output for an image depends on the other images of the batch (it moved by {moved:.2g}): "
            f"{_mixing_cause(model)}."
        )
    if not deterministic:
        warnings.warn(
            "the model is not deterministic in evaluation mode: two passes over the same images differ by "
            f"{float((logits - again).abs().max()):.2g}{_noise_cause(model)}.",
            NonDeterministic,
            stacklevel=3,
        )
    for part in asked:
        part.checked = True


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 as float32 while the block runs: NVIDIA's convolutions otherwise round to 10 bits (TF32)."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    convolution = getattr(cudnn, "conv", None)
    if hasattr(convolution, "fp32_precision"):  # torch 2.9 and later; the older switches refuse to be mixed with it
        switches: tuple[tuple[Any, str, Any], ...] = (
            (convolution, "fp32_precision", "ieee"),
            (cublas, "fp32_precision", "ieee"),
        )
    else:
        switches = ((cudnn, "allow_tf32", False), (cublas, "allow_tf32", False))
    before = [getattr(where, name) for where, name, _ in switches]
    try:
        for where, name, value in switches:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(switches, before, strict=True):
            setattr(where, name, value)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once."""
    seen: set[int] = set()
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _set_mode(model: nn.Module, *, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError:  # programs of torch.export have one mode only, and say so by raising
        for module in model.modules():
            module.training = training


def fast_layout(data: Tensor, device: str | torch.device | None = None) -> Tensor:
    """A weight on `device`, channels-last if it has four dimensions; itself when it is so already."""
    if device is not None:
        data = data.to(device)
    if data.ndim == 4 and data.layout == torch.strided:
        data = data.contiguous(memory_format=torch.channels_last)
    return data


def _forward(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """One pass with the global generators set to `seed` meanwhile, so that random layers repeat."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(x.device):
                torch.cuda.manual_seed(seed)
        try:
            return model(x)
        except UserError:
            raise
        except Exception as error:  # a stranger's code: whatever it raises, the user must learn on which input
            shape = "x".join(map(str, x.shape[1:]))
            message = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the model fails on a batch of {len(x)} images of shape {shape}: {type(error).__name__}: {message}"
            ) from error


def _check_logits(logits: object, x: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model returns a {type(logits).__name__}, but one tensor of logits is needed; wrap it so that it "
            "returns that tensor alone."
        )
    if logits.ndim != 2 or len(logits) != len(x):
        raise UserError(
            f"the model's output must have shape ({len(x)}, classes) for {len(x)} images, got {tuple(logits.shape)}."
        )
    if not logits.is_floating_point():
        raise UserError(f"the model's output must be floating-point logits, got {logits.dtype}.")
    if not torch.isfinite(logits).all():
        raise UserError("the model's output holds NaN or infinite values for ordinary images.")


def _mixing_cause(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                return f"the batch norm {name!r} stays in training mode, although the model was put in evaluation mode"
            if module.running_mean is None:
                return f"the batch norm {name!r} has no running statistics (track_running_stats=False)"
    return "something in its forward pass computes across the batch dimension"


def _noise_cause(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training:
            return f"; the dropout {name!r} stays active"
    return ""
