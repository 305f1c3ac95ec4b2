"""Accuracy under transfer attacks from many models: what is left under the worst pair of source and attack.

The protocol of Sitawarin et al. 2024 (PubDef, section 5): an attacker who knows the defence picks, of all pairs of a
public model and an attack, the one that works best. The union, where each image may be attacked by another pair, is a
stronger attacker still.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from holdfast import stats
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.transfer import right_on, transfer
from holdfast.methods import Attack
from holdfast.run import Run

__all__ = ["WorstTransfer", "worst_transfer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstTransfer:
    """How a model stands up to images made on others.

    Args:
        images: name of the split.
        clean: bool (N,), the model is right on the image as it is.
        right: bool (N,) by source and attack: the model is right on the attacked image.
        seen: the sources that it was trained on.
    """

    images: str
    clean: Bool[Tensor, " n"]
    right: Mapping[tuple[str, str], Bool[Tensor, " n"]]
    seen: frozenset[str] = frozenset()

    def accuracy(self, source: str, attack: str) -> float:
        """On the images of one pair."""
        return _share(self.right[source, attack])

    @property
    def worst(self) -> tuple[str, str]:
        """The source and the attack that leave the least accuracy."""
        return min(self.right, key=lambda pair: _share(self.right[pair]))

    @property
    def worst_accuracy(self) -> float:
        """Under the worst pair: the figure to report."""
        return self.accuracy(*self.worst)

    @property
    def mean_accuracy(self) -> float:
        """Over all pairs."""
        return sum(map(_share, self.right.values())) / len(self.right)

    @property
    def union_accuracy(self) -> float:
        """The share of images on which no pair succeeds."""
        return _share(torch.stack(list(self.right.values())).all(0))

    def mean_over(self, *, seen: bool) -> float | None:
        """The mean over the sources that the model was trained on, or over the others; None if there are none."""
        rates = [_share(right) for (source, _), right in self.right.items() if (source in self.seen) == seen]
        return sum(rates) / len(rates) if rates else None

    @property
    def sentence(self) -> str:
        """The result in words."""
        source, attack = self.worst
        return (
            f"Accuracy on {self.images}: {_share(self.clean):.1%} clean, {self.worst_accuracy:.1%} under the worst of "
            f"{len(self.right)} transfer attacks ({attack} on {source}), {self.mean_accuracy:.1%} on average."
        )

    def to_json(self) -> dict[str, Any]:
        """All figures with their 95 % intervals, as plain values."""
        return {
            "images": self.images,
            "clean": _rate(self.clean),
            "worst": {"source": self.worst[0], "attack": self.worst[1], **_rate(self.right[self.worst])},
            "mean": self.mean_accuracy,
            "union": self.union_accuracy,
            "mean_of_seen_sources": self.mean_over(seen=True),
            "mean_of_unseen_sources": self.mean_over(seen=False),
            "pairs": [
                {"source": source, "attack": attack, "seen": source in self.seen, **_rate(right)}
                for (source, attack), right in self.right.items()
            ],
        }


def worst_transfer(
    models: Mapping[str, nn.Module],
    sources: Mapping[str, nn.Module],
    attacks: Sequence[Attack | str],
    images: Images,
    *,
    seen: Collection[str] = (),
    run: Run,
) -> dict[str, WorstTransfer]:
    """Try images made on each source by each attack on the models.

    Args:
        models: the defended one and those it is compared with, by name. None may be among the sources.
        sources: public models, by name.
        attacks: or their specs; those that take all their steps transfer best, see `holdfast.evasion.transfer`.
        images: with their true labels.
        seen: names of the sources that the defended model was trained on.
        run: device, seed, batch size.

    Raises:
        UserError: as `holdfast.evasion.transfer.transfer` does, or a model is among the sources.
    """
    for name, model in models.items():
        if any(source is model for source in sources.values()):
            raise UserError(f"worst_transfer: the model {name!r} is among the sources; that is a white-box attack.")
    if not attacks:
        raise UserError("worst_transfer: at least one attack is needed, got none.")
    unknown = set(seen) - set(sources)
    if unknown:
        raise UserError(f"worst_transfer: {', '.join(sorted(unknown))} is said to be seen, but is not a source.")
    right: dict[str, dict[tuple[str, str], Tensor]] = {name: {} for name in models}
    for attack in attacks:
        found = transfer(attack, sources, models, images, run)
        for pair in found.pairs:
            right[pair.victim][pair.surrogate, found.attack] = ~pair.fooled
    return {
        name: WorstTransfer(
            images=images.name, clean=right_on(model, images, run), right=right[name], seen=frozenset(seen)
        )
        for name, model in models.items()
    }


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _rate(flags: Tensor) -> dict[str, float]:
    low, high = stats.wilson(int(flags.sum()), len(flags))
    return {"value": _share(flags), "low": low, "high": high}
