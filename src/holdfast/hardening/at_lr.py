"""Layer-wise regularised adversarial training: hold still the layers that an attack carries away most.

To the loss on adversarial examples it adds, for each of the most vulnerable layers that `lsa` finds, how far the
layer's output on them is from that on the clean images. The gradient flows through both outputs.

Khalooei et al., "Layer-wise Regularized Adversarial Training using Layers Sustainability Analysis framework",
Neurocomputing 2023, arXiv:2202.02626, section 4. The weight of the term and when the layers are chosen anew are our own
choice: the authors' published code is the analysis alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError, one_of
from holdfast.evasion.layer_errors import layer_errors, most_vulnerable, moved
from holdfast.hardening.pgd_at import PGDAT
from holdfast.methods import Paper
from holdfast.models.activations import watch
from holdfast.training import CrossEntropy, Step, statistics_kept

__all__ = ["ATLR"]


@dataclass(frozen=True, kw_only=True)
class ATLR(
    PGDAT,
    id="at-lr",
    title="Layer-wise regularised adversarial training",
    paper=Paper(
        title="Layer-wise Regularized Adversarial Training using Layers Sustainability Analysis framework",
        arxiv="2202.02626",
        venue="Neurocomputing",
        year=2023,
    ),
):
    """Cross-entropy on adversarial examples, and how far these move the most vulnerable layers.

    Costs a pass forward and back more than `pgd-at`, and twice the memory for activations. The clean images have a pass
    of their own, with the batch statistics of their own; running statistics are those `pgd-at` would record. Without
    `layers`, the layers are chosen from the first batch of an epoch and its adversarial examples, in evaluation mode,
    and remembered with the training, so that a resumed one goes on with the same.

    Args:
        gamma: weight of each layer's term; at 0 it is `pgd-at`. Tune it: on two moons (see the evidence) 0.1 gained
            next to nothing, 3 two points, and 10 cost clean accuracy.
        layers: their names, as `lsa` reports them; without, they are measured.
        spread: where layers are measured, those above the mean plus so many standard deviations are chosen.
        top: choose so many layers instead.
        refresh: choose them in every ``"epoch"``, or ``"once"`` at the start, for a network that is trained already.
    """

    gamma: Annotated[float, Field(ge=0)] = 0.1
    layers: tuple[str, ...] = ()
    spread: float = 0.0
    top: Annotated[int, Field(ge=1)] | None = None
    refresh: Literal["epoch", "once"] = "epoch"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch.

        Raises:
            UserError: a layer is unknown, or the model's layers cannot be seen.
        """
        if not self.gamma:
            return super().__call__(model, x, y, step)
        inner = model if step.model is None else step.model
        if hasattr(inner, "_orig_mod"):
            raise UserError(f"{self.id}: a compiled model does not show its layers; train without compile.")
        x_adv = self.perturb(inner, x, y, step)
        chosen = self.layers or self.vulnerable(inner, x, x_adv, step)
        seen: dict[str, Tensor] = {}

        def keep(layer: str, output: Tensor) -> None:
            if layer in chosen:
                seen[layer] = output.clone()

        cross_entropy = CrossEntropy(label_smoothing=self.label_smoothing)
        # The clean pass only measures, unless its loss is part of the objective, when pgd-at records its statistics.
        measuring = statistics_kept(inner) if self.adversarial == 1 else contextlib.nullcontext()
        with watch(inner, keep, "both"):
            loss = cross_entropy(model, x_adv, y, step)
            perturbed = dict(seen)
            with measuring:
                logits = model(x).float()
        for layer in chosen:
            if layer not in perturbed:
                raise one_of(f"{self.id}: the layer", layer, _names(inner, x))
        if self.adversarial < 1:
            loss = (1 - self.adversarial) * cross_entropy.of(logits, y, step) + self.adversarial * loss
        return loss + self.gamma * sum(moved(seen[layer], perturbed[layer]) for layer in chosen)

    def vulnerable(self, model: nn.Module, x: Tensor, x_adv: Tensor, step: Step) -> Sequence[str]:
        """The layers that these adversarial examples move most, or those remembered from an earlier batch."""
        known = step.memory.get(self.id)
        if known is None or (self.refresh == "epoch" and known["epoch"] != step.epoch):
            (found,) = layer_errors(model, x, {self.id: x_adv}, run=step.run.but(batch_size=len(x)))
            names = list(most_vulnerable(found.errors["relative"], spread=self.spread, top=self.top))
            known = step.memory[self.id] = {"epoch": step.epoch, "layers": _of_the_first_process(names)}
        layers: Sequence[str] = known["layers"]
        return layers


def _of_the_first_process(names: list[str]) -> list[str]:
    """What the first process found, in all that train together: each has seen its own images."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return names
    box = [names]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _names(model: nn.Module, x: Tensor) -> list[str]:
    found: list[str] = []
    with torch.no_grad(), statistics_kept(model), watch(model, lambda layer, output: found.append(layer), "both"):
        model(x)
    return found
