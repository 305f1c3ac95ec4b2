"""PubDef: train on images that were attacked on a few public models, and on nothing else.

The threat is an attacker who cannot see or query the model much, and attacks public models instead, hoping that the
images transfer. Against that, examples from one model of each kind of training are enough, and clean accuracy hardly
suffers.

Sitawarin et al., "PubDef: Defending Against Transfer Attacks From Public Models", ICLR 2024, arXiv:2310.17645,
section 4. `holdfast.hardening.transfer_sets` makes what it trains on, `holdfast.hardening.worst_transfer` judges it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import to_float
from holdfast.errors import UserError
from holdfast.hardening.transfer_sets import COLUMN
from holdfast.methods import BatchTransform, Objective, Paper
from holdfast.training import Step

__all__ = ["PubDef"]


@dataclass(frozen=True, kw_only=True)
class PubDef(
    Objective,
    id="pubdef",
    title="PubDef",
    paper=Paper(
        title="PubDef: Defending Against Transfer Attacks From Public Models",
        arxiv="2310.17645",
        venue="ICLR",
        year=2024,
    ),
):
    """Cross-entropy on clean images and on those attacked on public models.

    Not a defence against attackers who have the model: white-box attacks take it to about zero. Never use the model
    being defended as a source, and judge the result by its worst pair of source and attack, with sources and attacks
    that it was not trained on among them. Start from a normally trained model; a training step costs twice the usual
    one with ``"random"``, and one more for each source otherwise.

    Args:
        loss: which attacked copies count. ``"random"``: one of a random source, drawn for every image; ``"all"``: one
            of every source; ``"top-k"``: of every source's, the `k` with the largest loss, image by image;
            ``"dynamic"``: one of every source, weighted by the source's recent mean loss.
        clean: weight of the images as they are; the attacked ones share the rest.
        k: sources that count with ``"top-k"``; at most as many as there are.
        update: with ``"dynamic"``, the weight of the newest batch in the sources' recent losses.
        transforms: of the attacked copies of each source, drawn independently of those of the clean images; to be the
            same as the training's own.
    """

    loss: Literal["random", "all", "top-k", "dynamic"] = "random"
    clean: Annotated[float, Field(ge=0, le=1)] = 0.5
    k: Annotated[int, Field(ge=1)] = 1
    update: Annotated[float, Field(gt=0, le=1)] = 0.99
    transforms: tuple[str, ...] = ("crop", "flip")

    columns: ClassVar[tuple[str, ...]] = (COLUMN,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for spec in self.transforms:
            catalog.build(spec, kind=BatchTransform)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The weighted loss of the clean images and of the attacked copies of each."""
        stack = step.columns[COLUMN]
        if stack.ndim != 6 or stack.dtype != torch.uint8 or stack.shape[3:] != x.shape[1:]:
            raise UserError(f"pubdef: the column {COLUMN!r} does not come from transfer-sets, or the images changed.")
        if not stack.shape[1]:  # no sources: plain training
            return F.cross_entropy(step.seen(model(x)), y)
        copies = self._copies(stack, x, y, step)
        logits = model(torch.cat([x, *copies])).float()  # one pass, so that batch norm sees all kinds together
        losses = F.cross_entropy(logits, y.repeat(1 + len(copies)), reduction="none").view(1 + len(copies), -1)
        step.seen(logits[: len(x)])
        return self.clean * losses[0].mean() + (1 - self.clean) * self._attacked(losses[1:], step)

    def _copies(self, stack: UInt8[Tensor, "n s m c h w"], x: Tensor, y: Tensor, step: Step) -> list[Tensor]:
        """The attacked copies that take part in this step: one of each source, or of one source per image."""
        rng = step.rng("pubdef")
        n, sources, copies = stack.shape[:3]
        rows = torch.arange(n, device=stack.device)
        if self.loss == "random":
            source = torch.randint(sources, (n,), generator=rng).to(stack.device)
            which = torch.randint(copies, (n,), generator=rng).to(stack.device)
            chosen = [stack[rows, source, which]]
        else:
            which = torch.randint(copies, (sources, n), generator=rng).to(stack.device)
            chosen = [stack[rows, s, which[s]] for s in range(sources)]
        return [self._augmented(copy, y, rng).to(x) for copy in chosen]

    def _augmented(self, copy: UInt8[Tensor, "n c h w"], y: Tensor, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
        changed = copy
        for spec in self.transforms:
            transform = catalog.build(spec, kind=BatchTransform)
            changed, _ = transform(changed if transform.on_bytes else to_float(changed), y, rng=rng)
        return to_float(changed.contiguous(memory_format=torch.channels_last))

    def _attacked(self, losses: Float[Tensor, "s n"], step: Step) -> Tensor:
        """The loss of the attacked copies, from one row for each source."""
        if self.loss == "top-k":
            if self.k > len(losses):
                raise UserError(f"pubdef: k must be at most the number of sources, {len(losses)}, got {self.k}.")
            return losses.topk(self.k, dim=0).values.mean()
        if self.loss == "dynamic":
            return (self._weights(losses.detach().mean(1), step) * losses.mean(1)).sum()
        return losses.mean()

    def _weights(self, recent: Float[Tensor, " s"], step: Step) -> Float[Tensor, " s"]:
        """The sources' shares, in proportion to their moving mean losses, which begin equal."""
        known = step.memory.get("pubdef")
        known = torch.full_like(recent, 1 / (1 + len(recent))) if known is None else known.to(recent)
        average = (1 - self.update) * known + self.update * recent
        step.memory["pubdef"] = average
        return average / average.sum().clamp_min(torch.finfo(average.dtype).tiny)
