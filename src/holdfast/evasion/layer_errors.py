"""How far a perturbation of the input moves each layer of a network: the measures of layer sustainability analysis.

Khalooei et al., Neurocomputing 2023, arXiv:2202.02626, section 3; see `holdfast.evasion.lsa`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.balls import distance
from holdfast.models import frozen, full_precision
from holdfast.models.activations import Watched, watch
from holdfast.run import Run

__all__ = ["MEASURES", "Measure", "Moved", "layer_errors", "most_vulnerable", "moved"]

Measure = Literal["relative", "per-sample", "cosine"]

MEASURES: tuple[Measure, ...] = ("relative", "per-sample", "cosine")

_TINY = 1e-12  # a dead layer has no size to be relative to


def moved(clean: Tensor, perturbed: Tensor, measure: Measure = "relative") -> Tensor:
    """The paper's comparative measure CM of a layer's outputs for N images, differentiable; 0 for equal outputs.

    An image at which the clean output is all zeros makes ``"per-sample"`` huge, hence training takes the first.

    Args:
        clean, perturbed: of equal shape, any number of whole rows per image.
        measure: ``"relative"``, the Frobenius norm of the difference over that of `clean`; ``"per-sample"``, the mean
            over rows of the same; ``"cosine"``, the mean over rows of one minus the cosine.
    """
    a, b = clean.float().flatten(1), perturbed.float().flatten(1)
    if measure == "relative":
        return _norm(a - b, None) / _norm(a, None).clamp_min(_TINY)
    if measure == "per-sample":
        return (_norm(a - b, 1) / _norm(a, 1).clamp_min(_TINY)).mean()
    a, b = (v / _norm(v, 1)[:, None].clamp_min(_TINY) for v in (a, b))
    return (a - b).square().sum(1).mean() / 2  # 1 - cos, without the rounding of 1 - 1


def _norm(values: Tensor, dim: int | None) -> Tensor:
    return torch.linalg.vector_norm(values, dim=dim)


def most_vulnerable(errors: Mapping[str, float], *, spread: float = 0.0, top: int | None = None) -> tuple[str, ...]:
    """The layers that move most, in the order given: the `top` ones, or all above mean + spread * standard deviation.

    There is always one: the most vulnerable layer itself.
    """
    values = np.array(list(errors.values()))
    order = sorted(range(len(values)), key=lambda i: -values[i])
    if top is None:
        top = max(1, int((values > values.mean() + spread * values.std()).sum()))
    chosen = set(order[:top])
    return tuple(name for i, name in enumerate(errors) if i in chosen)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one perturbation does to every layer.

    Args:
        perturbation: an attack's spec, or the kind of noise.
        l2: mean norm of what was added.
        changed: share of the images whose predicted class changes.
        errors: by measure and layer, in the order of computation.
    """

    perturbation: str
    l2: float
    changed: float
    errors: Mapping[Measure, Mapping[str, float]] = field(default_factory=dict)


def layer_errors(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    perturbed: Mapping[str, Float[Tensor, "n c h w"]],
    *,
    outputs: Watched = "activations",
    run: Run,
) -> list[Moved]:
    """How far each layer moves between `x` and every perturbed version of it, over all images together.

    Args:
        model: in any mode, left as it was; computed in float32.
        x: images in [0, 1].
        perturbed: versions of them, by name.
        outputs: of which functions. Outputs without a whole number of rows per image are left out.
        run: device, batch size.

    Raises:
        UserError: no such output is seen.
    """
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in perturbed}
    changed = dict.fromkeys(perturbed, 0)
    device = run.torch_device
    with frozen(model, device=device), torch.no_grad(), full_precision():
        for rows in torch.arange(len(x)).split(run.batch_size):
            n = len(rows)
            clean: dict[str, Tensor] = {}

            def keep(layer: str, output: Tensor, n: int = n, clean: dict[str, Tensor] = clean) -> None:
                if output.ndim and len(output) and len(output) % n == 0:
                    clean[layer] = output.reshape(n, -1).clone()

            with watch(model, keep, outputs):
                before = model(x[rows].to(device)).argmax(1)
            for name, version in perturbed.items():
                total = sums[name]

                def add(layer: str, output: Tensor, total: Any = total, clean: dict[str, Tensor] = clean) -> None:
                    if layer in clean and output.numel() == clean[layer].numel():
                        total[layer] = total.get(layer, 0) + _sums(clean[layer], output.reshape(clean[layer].shape))

                with watch(model, add, outputs):
                    after = model(version[rows].to(device)).argmax(1)
                changed[name] += int((before != after).sum())
    if not all(sums.values()):
        raise UserError(
            f"lsa: none of the model's {'layers' if outputs == 'both' else outputs} can be seen: it is compiled or "
            "scripted, or it has none; try other outputs."
        )
    return [
        Moved(
            perturbation=name,
            l2=float(distance(version, x, "l2").double().mean()),
            changed=changed[name] / len(x),
            errors=_errors(sums[name], len(x)),
        )
        for name, version in perturbed.items()
    ]


def _sums(clean: Float[Tensor, "n d"], perturbed: Float[Tensor, "n d"]) -> Float[Tensor, 4]:
    """What adds up over batches: squares of the difference and of the clean output, and both sums over images."""
    squares = [(clean.float() - perturbed.float()).double().square().sum(), clean.double().square().sum()]
    means = [moved(clean, perturbed, measure).double() * len(clean) for measure in ("per-sample", "cosine")]
    return torch.stack([*squares, *means]).cpu()


def _errors(sums: Mapping[str, Tensor], n: int) -> dict[Measure, dict[str, float]]:
    return {
        "relative": {layer: float((s[0] / s[1].clamp_min(_TINY**2)).sqrt()) for layer, s in sums.items()},
        "per-sample": {layer: float(s[2]) / n for layer, s in sums.items()},
        "cosine": {layer: float(s[3]) / n for layer, s in sums.items()},
    }
