"""Networks that the proofs of training for detection compare, and the far sets they are judged on.

The outliers trained with are jigsaws and mixtures of training images, and drawn shapes. Those that are tested on are of
other kinds; the shapes among them have other outlines, colours and style.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.data import Data, Images, ood_sets
from holdfast.data.drawing import SHAPES
from holdfast.data.ood_sets import Distance
from holdfast.data.resize import fitted
from holdfast.data.shapes32 import COLOURS, Shapes32
from holdfast.models import Features, extract
from holdfast.ood import Separation, fit_on_features, separation
from holdfast.proofs.lab import Base, Lab
from holdfast.proofs.ood_bench import mean_separation
from holdfast.proofs.proof import Measured
from holdfast.run import Run

__all__ = ["Net", "data_of", "difference", "small", "train_of", "training", "unknown"]

Separations = dict[str, Separation]


@functools.cache
def data_of(lab: Lab) -> Data:
    """The lab's data, read once."""
    return lab.data


def train_of(lab: Lab) -> Images:
    """Its training images."""
    train = data_of(lab).train
    assert train is not None
    return train


@functools.cache
def unknown(lab: Lab, distance: Distance) -> dict[str, Images]:
    """The sets of a kind; every set of smoke scale is a far one."""
    count = lab.pick(smoke=300, cpu=2000)
    found = {
        name: images for name, (images, d) in ood_sets(data_of(lab), lab.run, count=count).items() if d == distance
    }
    if "shapes32" in found:
        found["shapes32"] = _shapes_of_the_first_half(lab, found["shapes32"], count // 2)
    return found


def _shapes_of_the_first_half(lab: Lab, like: Images, count: int) -> Images:
    """Drawn shapes of outlines and colours that `synthetic-outliers` has not, in the one style that it leaves out."""
    drawn = Shapes32(seed=lab.run.seed_for("proof shapes")).draw("test", 6 * count)
    colour = torch.as_tensor(drawn.columns["colour"])
    rows = ((drawn.y < len(SHAPES) // 2) & (colour < len(COLOURS) // 2)).nonzero().flatten()[:count]
    channels, height, width = like.shape
    x = fitted(drawn.x[rows], (height, width), channels)
    x = x if like.x.dtype == torch.uint8 else x.to(like.x.dtype) / 255
    return Images(x=x, y=torch.zeros(len(rows), dtype=torch.int64), classes=like.classes, name=like.name)


@dataclass(frozen=True, eq=False)
class Net:
    """A network and what it makes of known and far images, each worked out once."""

    lab: Lab
    model: nn.Module

    @functools.cached_property
    def known(self) -> Features:
        """Of the test images."""
        return extract(self.model, data_of(self.lab).test, run=self.lab.run)

    @functools.cached_property
    def far(self) -> dict[str, Features]:
        """Of each far set."""
        return {
            name: extract(self.model, images, run=self.lab.run) for name, images in unknown(self.lab, "far").items()
        }

    @property
    def right(self) -> Tensor:
        """Which test images it classifies rightly."""
        return self.known.predictions == self.known.y

    def separations(self, detector: str, sets: Sequence[str] = (), known: Tensor | slice = slice(None)) -> Separations:
        """How well a detector that learns nothing tells far sets, by default all, from the test images or some."""
        (fit_detector,) = fit_on_features([detector], None, None).values()
        inside = fit_detector.score(self.known.select(known)).numpy()
        return {
            name: separation(
                inside,
                fit_detector.score(self.far[name]).numpy(),
                rng=self.lab.run.numpy_rng("bootstrap", name, detector),
                resamples=200,
            )
            for name in sets or self.far
        }


def difference(after: Separations, before: Separations, metric: str, name: str, n: int, **details: object) -> Measured:
    """The mean of a metric over sets, after less before, with the interval of the one after."""
    value, half = mean_separation(after, metric)
    reference, _ = mean_separation(before, metric)
    each = {s: [round(getattr(part[s], metric), 4) for part in (before, after)] for s in after}
    return Measured(
        value=value - reference,
        low=value - reference - half,
        high=value - reference + half,
        baseline=reference,
        baseline_name=name,
        n=n,
        details={f"{metric} before and after": each, **details},
    )


def training(lab: Lab) -> Run:
    """How networks are trained at this scale."""
    return Run(seed=lab.run.seed, device=lab.run.device, precision=lab.precision)


def small(lab: Lab, **changes: object) -> Base:
    """A network trained from scratch on 20,000 images, which the ensemble's first mode is as well."""
    if lab.scale == "smoke":
        return lab.small(**{"epochs": 8, **changes})
    return Base(**{"per_class": 2000, "epochs": 8, **changes})  # type: ignore[arg-type]
