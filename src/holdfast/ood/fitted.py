"""`FittedDetector`, a detector with what it learnt, and `fit_detectors`, which fits any number in one pass.

A detector reads features rather than images, so the model runs once per data set however many detectors follow:

    detectors = fit_detectors(["msp", "energy", "knn(k=10)"], model, data.train, run=run)
    scores = score_detectors(detectors, model, data.test, run=run)  # name -> (N,), one pass for all

or, where features are at hand, ``detector.score(features)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.guard import Guarded
from holdfast.files import write_bytes
from holdfast.methods import Detector
from holdfast.models import Features, classifier_head, extract, frozen
from holdfast.ood.network import NetworkDetector, Watch
from holdfast.run import Run

__all__ = ["FittedDetector", "detecting", "fit_detectors", "fit_on_features", "observe", "score_detectors"]

_FORMAT = "holdfast-detector-1"


@dataclass(frozen=True, eq=False)
class FittedDetector:
    """A detector ready to score.

    Args:
        method: the detector and its hyperparameters.
        state: what it learnt from training features; empty for detectors that need no fit.
    """

    method: Detector
    state: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", MappingProxyType(dict(self.state)))

    def score(self, features: Features) -> Float[Tensor, " n"]:
        """Anomaly scores (N,), float64, on the CPU; higher is more anomalous.

        Raises:
            UserError: there are no features, what the detector reads is missing, or a score is not finite.
        """
        _check(self.method, features)
        if isinstance(self.method, NetworkDetector) and str(self.method) not in features.observed:
            raise UserError(f"{self.method} must see the images pass through the model: use score_detectors.")
        with torch.inference_mode():
            scores = self.method.score(features, self.state).double().cpu()
        # Comparisons with NaN are false: one bad score would silently count as normal.
        bad = int((~torch.isfinite(scores)).sum())
        if bad:
            raise UserError(f"{self.method}: {bad} of {len(scores)} scores are not finite; check the model's logits.")
        return scores.clone()

    def watch(self, model: nn.Module) -> Watch | None:
        """The probe that takes what the detector needs of a pass; ``None`` for one that reads features alone."""
        if not isinstance(self.method, NetworkDetector):
            return None
        return Watch(self.method, self.state, self.method.layers(model))

    def save(self, path: str | Path) -> None:
        """Write the detector with its state to one safetensors file, atomically."""
        tensors = {name: value.contiguous().cpu() for name, value in self.state.items()}
        write_bytes(path, safetensors.torch.save(tensors, {"format": _FORMAT, "method": str(self.method)}))

    @classmethod
    def load(cls, path: str | Path) -> FittedDetector:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, is not a detector's, or names a method that is not installed.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read as a fitted detector: {error}.") from None
        if metadata.get("format") != _FORMAT:
            raise UserError(f"{path} holds no fitted detector; FittedDetector.save writes one.")
        return cls(catalog.build(metadata["method"], kind=Detector), state)


def detecting(model: nn.Module) -> nn.Module:
    """What of a model detectors look at: the branch that it keeps for them, as `abf` does, or the model."""
    return model.detection if isinstance(model, Guarded) else model


def fit_detectors(
    detectors: Iterable[str | Detector], model: nn.Module, images: Images | None, *, run: Run
) -> dict[str, FittedDetector]:
    """Fit detectors on in-distribution training images, with one pass of the model for all of them.

    The pass is saved when no detector needs it.

    Args:
        detectors: specs such as ``"knn(k=50)"``, or methods.
        model: the classifier, images in [0, 1] to logits; one that keeps a branch for detection is asked through it.
        images: what the model was trained on, without augmentation; ``None`` will do if no detector needs a fit.
        run: device and batch size.

    Returns:
        the fitted detectors in the order given, by the method as text, which leaves out fields at their defaults:
        ``"knn(k=50)"`` is ``"knn"``.

    Raises:
        UserError: a spec is wrong, a detector needs training images and there are none, or the model lacks what it
            reads.
    """
    methods = [catalog.build(detector, kind=Detector) for detector in detectors]
    needy = next((method for method in methods if method.needs_fit), None)
    if needy is None:
        return {str(method): FittedDetector(method, {}) for method in methods}
    if images is None or not len(images):
        raise UserError(f"{needy} learns from training images, but there are none.")
    fitted: dict[str, FittedDetector] = {}
    model = detecting(model)
    reading = [method for method in methods if not isinstance(method, NetworkDetector)]
    if any(method.needs_fit for method in reading):
        with frozen(model, device=run.torch_device):
            head = classifier_head(model, next(images.batches(2, run.torch_device))[0])
        fitted = fit_on_features(reading, extract(model, images, run=run), head)
    for method in methods:
        if isinstance(method, NetworkDetector) and method.needs_fit:
            fitted[str(method)] = FittedDetector(method, method.fit_images(model, images, run=run))
    return {str(method): fitted.get(str(method)) or FittedDetector(method, {}) for method in methods}


def observe(fitted: Mapping[str, FittedDetector], model: nn.Module, images: Images, *, run: Run) -> Features:
    """Pass images once through the model and keep what any of the detectors reads.

    Args:
        fitted: what `fit_detectors` gave.
        model: the model they were fitted to.
        images: N of them, at least one.
        run: device and batch size.
    """
    model = detecting(model)
    watches = {str(detector.method): detector.watch(model) for detector in fitted.values()}
    return extract(model, images, run=run, probes={name: watch for name, watch in watches.items() if watch})


def score_detectors(
    fitted: Mapping[str, FittedDetector], model: nn.Module, images: Images, *, run: Run
) -> dict[str, Float[Tensor, " n"]]:
    """Anomaly scores of images by each detector, under the names given, from one pass of the model for all of them.

    Raises:
        UserError: there are no images, or what a detector reads is missing or not finite.
    """
    features = observe(fitted, model, images, run=run)
    return {name: detector.score(features) for name, detector in fitted.items()}


def fit_on_features(
    detectors: Iterable[str | Detector], features: Features | None, head: nn.Linear | None
) -> dict[str, FittedDetector]:
    """Fit detectors on features that were extracted before; see `fit_detectors`.

    Args:
        detectors: specs or methods.
        features: of in-distribution training images; ``None`` will do if no detector needs a fit.
        head: the model's last linear layer, for detectors that read it.
    """
    fitted: dict[str, FittedDetector] = {}
    for detector in detectors:
        method = catalog.build(detector, kind=Detector)
        state: dict[str, Tensor] = {}
        if isinstance(method, NetworkDetector) and method.needs_fit:
            raise UserError(f"{method} must see the images pass through the model: use fit_detectors.")
        if method.needs_fit:
            if features is None:
                raise UserError(f"{method} learns from training features, but there are none.")
            _check(method, features)
            with torch.inference_mode():
                state = method.fit_features(features, head)
        fitted[str(method)] = FittedDetector(method, {name: value.clone() for name, value in state.items()})
    return fitted


def _check(method: Detector, features: Features) -> None:
    """Refuse features that would give scores without meaning."""
    for name in sorted(method.reads):
        value = getattr(features, name)
        if value is None:
            raise UserError(
                f"{method} reads {name} features, but the model ends in no linear layer to take them from; "
                "a detector that reads logits, such as 'energy', will do."
            )
        if not len(value):
            raise UserError(f"{method}: there are no features to read.")
        if not torch.isfinite(value).all():
            raise UserError(f"{method}: the {name} features hold NaN or infinite values.")
