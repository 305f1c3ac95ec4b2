"""Mode ensemble: one detector on several networks that differ in their seed alone.

Networks of equal accuracy disagree on outliers, so that a detector is good with one and poor with another. Combined, at
the level that the detector reads, they vary less and detect better than they do on average.

Fang et al., "Revisiting Deep Ensemble for Out-of-Distribution Detection: A Loss Landscape Perspective", IJCV 2024,
arXiv:2310.14227, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features, Seen, extract
from holdfast.ood.fitted import FittedDetector, fit_detectors, fit_on_features, score_detectors
from holdfast.ood.modes import Modes, modes_of
from holdfast.ood.msp import MSP
from holdfast.ood.network import NetworkDetector
from holdfast.run import Run

__all__ = ["ModeEnsemble"]

_SCALED_BY = 2000  # training images, about, that tell a score's mean and deviation


@dataclass(frozen=True, kw_only=True)
class ModeEnsemble(
    NetworkDetector,
    id="mode-ensemble",
    title="Mode ensemble",
    paper=Paper(
        title="Revisiting Deep Ensemble for Out-of-Distribution Detection: A Loss Landscape Perspective",
        arxiv="2310.14227",
        venue="IJCV",
        year=2024,
    ),
):
    """A detector on `holdfast.ood.modes.Modes`; on any other model, the detector itself.

        modes = Modes([load_model(f"runs/{seed}/weights.safetensors") for seed in range(3)])
        detectors = fit_detectors(["mode-ensemble(detector=knn, combine=means)"], modes, data.train, run=run)

    A single number for a single seed says little: give its mean and range over modes, with `holdfast.ood.modes.spread`.

    Args:
        detector: what is ensembled.
        combine: ``"means"``, the paper's rule: the detector reads the mean over modes of their logits and of their
            features. The features' axes belong to each mode, so that their mean has no geometry, though it works.
            ``"scores"``: each mode has its own detector, and scores are averaged on the scale of their mean and
            deviation on training images. This also serves detectors that read the last layer's weights or look inside
            the network.
    """

    needs_fit: ClassVar[bool] = True

    detector: Detector = MSP()  # noqa: RUF009 - methods are immutable
    combine: Literal["means", "scores"] = "means"

    def layers(self, model: nn.Module) -> Sequence[str]:
        """What every mode makes of the images, and what the detector needs of each of them."""
        inner = self.detector.layers if isinstance(self.detector, NetworkDetector) else lambda mode: ()
        if not isinstance(model, Modes):
            return inner(model)
        return [*model.taps, *(f"modes.{s}.{name}" for s, mode in enumerate(model.modes) for name in inner(mode))]

    def fit_images(self, model: nn.Module, images: Images, *, run: Run) -> dict[str, Tensor]:
        """Fit the detector on the means, or one on each mode, with the mean and deviation of its scores.

        Raises:
            UserError: the detector cannot read means.
        """
        if isinstance(model, Modes) and self.combine == "means":
            return _packed([self._on_means(model, images, run)], [(0.0, 1.0)])
        fitted, scale = [], []
        sample = images.select(slice(None, None, max(1, len(images) // _SCALED_BY)))
        for mode in modes_of(model):
            ((name, found),) = fit_detectors([self.detector], mode, images, run=run).items()
            scores = score_detectors({name: found}, mode, sample, run=run)[name]
            fitted.append(found)
            scale.append((float(scores.mean()), float(scores.std(correction=0))))
        return _packed(fitted, scale)

    def _on_means(self, model: Modes, images: Images, run: Run) -> FittedDetector:
        if isinstance(self.detector, NetworkDetector):
            raise UserError(
                f"{self.id}: {self.detector} looks inside each network, where there are no means; take combine=scores."
            )
        if not self.detector.needs_fit:
            return FittedDetector(self.detector, {})
        seen = extract(model, images, run=run, layers=model.taps, pool=False)
        (fitted,) = fit_on_features([self.detector], _mean(seen.layers, seen.y), None).values()
        return fitted

    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n 1"]:
        """The ensemble's score."""
        parts = [fitted.score(features) for fitted, features in self._parts(seen, _unpacked(self.detector, state))]
        mean, deviation = state["scale"].cpu().unbind(1)
        scores = (torch.stack(parts, 1) - mean) / deviation.clamp_min(1e-12)
        return (scores.mean(1, keepdim=True) * deviation.mean() + mean.mean()).to(seen.x.device)

    def _parts(self, seen: Seen, fitted: Sequence[FittedDetector]) -> Iterator[tuple[FittedDetector, Features]]:
        """Each detector with the features it scores."""
        if isinstance(seen.model, Modes) and self.combine == "means":
            yield fitted[0], _mean(seen.layers, seen.y)
            return
        each = _of_each_mode(seen)
        if len(fitted) != len(each):
            raise UserError(f"{self}: it was fitted to {len(fitted)} networks, and this model has {len(each)}.")
        for part, detector in zip(each, fitted, strict=True):
            observed = {}
            if isinstance(self.detector, NetworkDetector):
                observed[str(self.detector)] = self.detector.observe(part, detector.state).float().cpu()
            yield detector, Features(**_on_cpu(part.logits, part.penultimate), y=part.y.cpu(), observed=observed)


def _of_each_mode(seen: Seen) -> Sequence[Seen]:
    """A batch as each mode sees it."""
    model = seen.model
    if not isinstance(model, Modes):
        return [seen]
    found = []
    for s, (mode, name) in enumerate(zip(model.modes, model.heads, strict=True)):
        own = f"modes.{s}."
        found.append(
            replace(
                seen,
                model=mode,
                head=None if name is None else cast(nn.Linear, mode.get_submodule(name)),
                logits=seen.layers[f"logits.{s}"],
                penultimate=seen.layers.get(f"features.{s}"),
                layers={key.removeprefix(own): value for key, value in seen.layers.items() if key.startswith(own)},
            )
        )
    return found


def _mean(layers: Mapping[str, Tensor], y: Tensor) -> Features:
    """The means over modes of logits and, where all end in linear layers of one width, of features.

    They belong to no one network's last layer.
    """
    logits, features = (
        [value for key, value in layers.items() if key.startswith(kind)] for kind in ("logits.", "features.")
    )
    alike = len(features) == len(logits) and len({part.shape for part in features}) == 1
    mean = torch.stack(features).mean(0) if alike else None
    return Features(**_on_cpu(torch.stack(logits).mean(0), mean), y=y.cpu())


def _on_cpu(logits: Tensor, penultimate: Tensor | None) -> dict[str, Any]:
    return {
        "logits": logits.float().cpu(),
        "penultimate": None if penultimate is None else penultimate.float().cpu(),
    }


def _packed(fitted: Sequence[FittedDetector], scale: Sequence[tuple[float, float]]) -> dict[str, Tensor]:
    """Several detectors' states as one, with the mean and deviation (S, 2) of their scores."""
    states = {f"{k}.{name}": value for k, found in enumerate(fitted) for name, value in found.state.items()}
    return {**states, "scale": torch.tensor(scale, dtype=torch.float64)}


def _unpacked(method: Detector, state: Mapping[str, Tensor]) -> list[FittedDetector]:
    def own(k: int) -> dict[str, Tensor]:
        return {name.removeprefix(f"{k}."): value for name, value in state.items() if name.startswith(f"{k}.")}

    return [FittedDetector(method, own(k)) for k in range(len(state["scale"]))]
