"""Do adversarial images made on one model fool another? The table over surrogates and victims.

Two rules keep the figures honest: only images that both models classify rightly count, since on the others there is
nothing to win; and images are rounded to 8 bits before the victim sees them, since that is how they travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from holdfast import catalog, stats
from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.balls import distance
from holdfast.methods import Attack
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["Pair", "Transfer", "Transferred", "attacked", "right_on", "to_bytes", "transfer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transferred:
    """Images attacked on one surrogate, rounded to 8 bits.

    Args:
        x: uint8 (N, C, H, W).
        right: whether the surrogate classified the image rightly before.
        linf, l2: norms of what was added, after rounding, in pixel units of [0, 1].
    """

    x: UInt8[Tensor, "n c h w"]
    right: Bool[Tensor, " n"]
    linf: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """How images made on a surrogate did on a victim.

    Args:
        surrogate, victim: names.
        counted: bool (N,), both models classify the image rightly.
        fooled: bool (N,), the victim misclassifies the attacked image.
        linf, l2: of the perturbations, (N,).
    """

    surrogate: str
    victim: str
    counted: Bool[Tensor, " n"]
    fooled: Bool[Tensor, " n"]
    linf: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]

    @property
    def n(self) -> int:
        """How many images count."""
        return int(self.counted.sum())

    @property
    def success(self) -> float | None:
        """The share of the images that count on which the victim is fooled; None if there are none."""
        return float(self.fooled[self.counted].double().mean()) if self.n else None

    @property
    def accuracy(self) -> float:
        """The victim's accuracy on all attacked images, those it had wrong already included."""
        return 1 - float(self.fooled.double().mean())

    def to_json(self) -> dict[str, Any]:
        """The figures with their 95 % intervals, as plain values."""
        k = int((self.fooled & self.counted).sum())
        low, high = stats.wilson(k, self.n) if self.n else (0.0, 1.0)
        return {
            "surrogate": self.surrogate,
            "victim": self.victim,
            "n": self.n,
            "success": {"value": self.success, "low": low, "high": high},
            "accuracy": self.accuracy,
            "mean_linf": float(self.linf[self.counted].double().mean()) if self.n else None,
            "mean_l2": float(self.l2[self.counted].double().mean()) if self.n else None,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """One attack over all pairs of a surrogate and a victim.

    Args:
        attack: its spec.
        images: name of the split.
        pairs: surrogate by surrogate, in the order given.
    """

    attack: str
    images: str
    pairs: tuple[Pair, ...]

    def __getitem__(self, names: tuple[str, str]) -> Pair:
        """The pair of a surrogate's and a victim's name."""
        for pair in self.pairs:
            if (pair.surrogate, pair.victim) == names:
                return pair
        raise KeyError(names)

    @property
    def sentence(self) -> str:
        """The result in words."""
        found = [
            f"{p.surrogate} -> {p.victim} "
            + (f"{p.success:.1%} of {p.n}" if p.success is not None else "nothing to count")
            for p in self.pairs
        ]
        return f"{self.attack} on {self.images}, success on images that both classify rightly: {', '.join(found)}."

    def to_json(self) -> dict[str, Any]:
        """All pairs as plain values."""
        return {"attack": self.attack, "images": self.images, "pairs": [pair.to_json() for pair in self.pairs]}

    def table(self) -> pa.Table:
        """One row per pair and image."""
        parts = []
        for pair in self.pairs:
            n = len(pair.counted)
            columns: dict[str, Any] = {
                "surrogate": [pair.surrogate] * n,
                "victim": [pair.victim] * n,
                "index": range(n),
            }
            columns |= {name: getattr(pair, name).numpy() for name in ("counted", "fooled", "linf", "l2")}
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)


def transfer(
    attack: Attack | str,
    surrogates: Mapping[str, nn.Module],
    victims: Mapping[str, nn.Module],
    images: Images,
    run: Run,
) -> Transfer:
    """Attack each surrogate once, and try the images on each victim.

    Args:
        attack: or its spec. One that takes all its steps (`mi-fgsm` and its relatives) transfers best; one that stops
            at the surrogate's boundary, as `pgd` does, transfers badly.
        surrogates: models to attack, by name; an `Ensemble` of several is one of them.
        victims: models to fool, by name. A surrogate among them shows the white-box figure.
        images: with their true labels, at least one. Floats are rounded to 8 bits first.
        run: device, seed, batch size.

    Raises:
        UserError: as the attack does, or there are no models or images.
    """
    method = catalog.build(attack, kind=Attack)
    for what, models in (("surrogate", surrogates), ("victim", victims)):
        if not models:
            raise UserError(f"transfer: at least one {what} is needed, got none.")
    right = {name: right_on(model, images, run) for name, model in victims.items()}
    pairs = []
    for source, model in surrogates.items():
        made = attacked(method, model, images, run)
        for name, victim in victims.items():
            pairs.append(
                Pair(
                    surrogate=source,
                    victim=name,
                    counted=made.right & right[name],
                    fooled=~right_on(victim, images.but(x=made.x), run),
                    linf=made.linf,
                    l2=made.l2,
                )
            )
    return Transfer(attack=str(method), images=images.name, pairs=tuple(pairs))


def attacked(attack: Attack, surrogate: nn.Module, images: Images, run: Run) -> Transferred:
    """The images attacked on a surrogate and rounded to 8 bits."""
    if not len(images):
        raise UserError(f"{images.name}: there are no images to attack.")
    clean = to_float(to_bytes(images.x))
    made = to_bytes(attack(surrogate, clean, images.y, run=run))
    return Transferred(
        x=made,
        right=right_on(surrogate, images, run),
        linf=distance(to_float(made), clean, "linf"),
        l2=distance(to_float(made), clean, "l2"),
    )


def right_on(model: nn.Module, images: Images, run: Run) -> Bool[Tensor, " n"]:
    """Whether the model classifies each image rightly once it is rounded to 8 bits."""
    return predict(model, images.but(x=to_bytes(images.x)), run=run).argmax(1) == images.y


def to_bytes(x: Tensor) -> UInt8[Tensor, "n c h w"]:
    """Images in [0, 1] rounded to 8 bits; bytes pass through."""
    return x if x.dtype == torch.uint8 else (x.float() * 255).round().to(torch.uint8)
