"""Where a network's stages end, and the rest of a network from there on.

A stage is the run of layers that work at one resolution (He et al., "Deep Residual Learning", CVPR 2016). The last map
of a stage is what all later layers are computed from; that is verified rather than assumed, so that the rest of any
model can be run on edited maps without knowing its code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.models.features import examples, tap
from holdfast.models.freeze import frozen, full_precision

__all__ = ["as_maps", "as_rows", "logits_after", "stages"]

_AGREEMENT = 1e-4  # of the largest logit
_ATTEMPTS = 8  # at a resolution, from its last module backwards


def stages(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs end the stages, in order of execution.

    Maps are outputs (N, C, H, W), or tokens (N, T, D). Of those at one resolution the last is taken from which the
    logits follow alone, blocks before single layers; a resolution at which no weights work (pooling) is no stage. The
    model is watched on a few random images in the shape it was built for, or in a shape guessed from its first layer.

    Args:
        model: in any mode; it is lent through `frozen`.

    Returns:
        The names, as `tap` takes them; none for a model without maps.
    """
    for guess in examples(model):
        rng = torch.Generator().manual_seed(0)
        x = torch.rand(3, *guess.shape[1:], generator=rng).to(guess.device)
        try:
            with frozen(model), torch.no_grad(), full_precision():
                return list(_ends(model, x))
        except Exception:  # a guessed input: a stranger's model may refuse it in any way
            continue
    return []


def logits_after(
    model: nn.Module, maps: Mapping[str, Tensor], x: Float[Tensor, "n c h w"]
) -> dict[str, Float[Tensor, "m k"]]:
    """The logits that follow from given maps of each of some stages, in one pass.

    The layers before the first stage see a single image, whose maps are thrown away, so they cost next to nothing; what
    follows from the maps of one stage goes on beside the maps of the next.

    Args:
        model: lent through `frozen`.
        maps: by the name of a module from whose output the logits follow alone, M of them each, any number; the model
            may write into them.
        x: images the model takes, at least one.

    Returns:
        The logits by the same names.

    Raises:
        UserError: the logits do not come out one row per map, so something bypasses a module.
    """
    reached: list[str] = []

    def edit(name: str, output: Tensor) -> Tensor:
        reached.append(name)
        return maps[name] if len(reached) == 1 else torch.cat([output, maps[name]])

    with contextlib.ExitStack() as stack:
        for name in maps:
            hook = model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: edit(name, output))
            stack.callback(hook.remove)
        logits = model(x[:1])
    sizes = [len(maps[name]) for name in reached]
    complete = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == sum(sizes)
    if not complete or sorted(reached) != sorted(maps):
        names = ", ".join(map(repr, maps))
        raise UserError(f"{names} cannot be edited: not all of the model's later layers go through the layers named.")
    return dict(zip(reached, logits.split(sizes), strict=True))


def as_rows(maps: Tensor) -> Float[Tensor, "n p c"]:
    """Maps (N, C, H, W) as a row of channels for each pixel; tokens (N, T, D) are that already. A view where possible.

    Raises:
        UserError: the outputs are neither.
    """
    if maps.ndim == 4:
        return maps.permute(0, 2, 3, 1).flatten(1, 2)
    if maps.ndim == 3:
        return maps
    raise UserError(
        f"maps must have shape (N, channels, height, width) or (N, tokens, features), got {maps.shape[1:]}."
    )


def as_maps(rows: Float[Tensor, "n p c"], like: Tensor) -> Tensor:
    """The inverse of `as_rows`, in the shape of given maps."""
    if like.ndim == 3:
        return rows
    n, _, h, w = like.shape
    return rows.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def _ends(model: nn.Module, x: Tensor) -> Iterator[str]:
    modules = dict(model.named_modules())
    by_resolution: dict[tuple[int, ...], list[str]] = {}
    for name, resolution in _calls(model, x[:2]):
        earlier = by_resolution.pop(resolution, [])  # a resolution's place is that of its last map
        by_resolution[resolution] = [*earlier, name]
    for names in by_resolution.values():
        if not any(list(modules[name].parameters()) for name in names):
            continue
        backwards = names[::-1]
        blocks = [name for name in backwards if list(modules[name].children())]
        layers = [name for name in backwards if name not in blocks]
        end = next((name for name in (blocks + layers)[:_ATTEMPTS] if _is_cut(model, name, x)), None)
        if end is not None:
            yield end


def _calls(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """The modules that give maps and are called once, in the order in which they finish, with the map's resolution."""
    calls: list[tuple[str, tuple[int, ...]]] = []
    handles = []
    for name, module in model.named_modules():

        def note(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            is_map = isinstance(output, Tensor) and output.ndim in (3, 4) and len(output) == len(x)
            calls.append((name, tuple(output.shape[2:] if output.ndim == 4 else output.shape[1:2]) if is_map else ()))

        if name:
            handles.append(module.register_forward_hook(note))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    counts = [name for name, _ in calls]
    return [(name, resolution) for name, resolution in calls if resolution and counts.count(name) == 1]


def _is_cut(model: nn.Module, name: str, x: Tensor) -> bool:
    """Whether the logits of two images follow from their maps alone, when the layers before see a third image."""
    with tap(model, [name]) as outputs:
        logits = model(x[:2])
        maps = outputs[name]
    try:
        after = logits_after(model, {name: maps}, x[2:])[name]
    except Exception:  # what bypasses the module meets another batch size, and fails in any way
        return False
    return bool((after - logits).abs().max() <= _AGREEMENT * logits.abs().max())
