"""Transfer sets: for each training image, copies of it attacked on other models, in a column beside it.

What `pubdef` trains on, made once before the training: PGD from several random starts on each source model, taken to
its last step, and rounded to 8 bits.

Sitawarin et al., "PubDef: Defending Against Transfer Attacks From Public Models", ICLR 2024, arXiv:2310.17645.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.ascend import ascend
from holdfast.evasion.balls import uniforms_needed, within
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.transfer import to_bytes
from holdfast.methods import Paper, Transform
from holdfast.models import load_model
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, Ticker, content_keys, uniform_at

__all__ = ["COLUMN", "TransferSets", "transfer_sets"]

#: The column's name: uint8 (N, sources, copies, C, H, W).
COLUMN = "transfer"


@dataclass(frozen=True, kw_only=True)
class TransferSets(
    Transform,
    id="transfer-sets",
    title="Transfer sets",
    paper=Paper(
        title="PubDef: Defending Against Transfer Attacks From Public Models",
        arxiv="2310.17645",
        venue="ICLR",
        year=2024,
    ),
):
    """Attacked copies of every image, made on other models, in the column ``transfer``.

    Choose one public model of each kind of training (ordinary, l_inf-robust, l_2-robust, corruption-robust): the paper
    finds that a few stand for all. The column takes ``sources * copies`` times the memory of the images, and making
    it ``sources * copies * steps`` gradients for each of them.

    Args:
        sources: models to attack, at least one, as `holdfast.models.load_model` takes them. From Python,
            `transfer_sets` takes the models themselves.
        eps: radius of the l_inf ball, in pixel units.
        steps: of the attack.
        step: their length; none takes eps / 4.
        copies: of every image per source, each from a random start of its own.
    """

    sources: tuple[str, ...] = ()
    eps: Annotated[float, Field(ge=0, le=1)] = 8 / 255
    steps: Annotated[int, Field(ge=1)] = 10
    step: Annotated[float, Field(gt=0)] | None = None
    copies: Annotated[int, Field(ge=1)] = 4

    def __call__(self, images: Images, *, run: Run) -> Images:
        """Return the images with the column.

        Raises:
            UserError: no source is named, or a model cannot be loaded or attacked.
        """
        if not self.sources:
            raise UserError("transfer-sets: sources must name at least one model, got none.")
        models = [
            load_model(name, num_classes=images.num_classes, image_shape=images.shape, classes=images.classes)
            for name in self.sources
        ]
        return transfer_sets(
            images, models, eps=self.eps, steps=self.steps, step=self.step, copies=self.copies, run=run
        )


def transfer_sets(
    images: Images,
    sources: Sequence[nn.Module],
    *,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float | None = None,
    copies: int = 4,
    run: Run,
) -> Images:
    """The images with the column; see `TransferSets`. Without sources, the column is there and empty.

    Args:
        images: of which every one is attacked, also those that a source has wrong.
        sources: models to attack.
        eps, steps, step, copies: of the attack.
        run: device, precision of the gradients, seed.
    """
    if not len(images):
        raise UserError(f"{images.name}: there are no images to attack.")
    stack = torch.empty((len(images), len(sources), copies, *images.shape), dtype=torch.uint8)
    with run.track(len(images) * len(sources) * copies, "transfer sets") as ticker:
        for s, source in enumerate(sources):
            with consult(source, to_float(images.x[:8]), run) as oracle:
                for copy in range(copies):
                    seed = run.seed_for("transfer-sets", s, copy)
                    stack[:, s, copy] = _copy(oracle, images, eps, steps, step or eps / 4, seed, ticker)
    return images.with_column(COLUMN, stack)


def _copy(
    oracle: Oracle, images: Images, eps: float, steps: int, step: float, seed: int, ticker: Ticker
) -> UInt8[Tensor, "n c h w"]:
    """One attacked copy of every image."""
    parts = []
    for first in range(0, len(images), oracle.limit):
        rows = slice(first, first + oracle.limit)
        x, y = fast_layout(to_float(images.x[rows]), oracle.device), images.y[rows].to(oracle.device)
        start: Float[Tensor, "n c h w"] = within(
            x, eps, "linf", uniform_at(seed, content_keys(x), uniforms_needed("linf", x[0].numel()))
        )
        at = ascend(
            lambda z: oracle.as_logits(oracle.twin(z)),
            x,
            y,
            eps=eps,
            step=step,
            steps=steps,
            start=start,
            autocast=oracle.run.autocast,
        )
        parts.append(to_bytes(at).cpu())
        ticker.advance(len(x))
    return torch.cat(parts)
