"""A model's guard in production: which of these images may it not be asked about?

    monitor = fit_monitor("knn", model, data, alpha=0.05, run=run)
    monitor.save("monitor")

and in another process, where the same model serves:

    monitor = OODMonitor.load("monitor", model)
    alarm, score, p_value = monitor(x)

A monitor is one file: tensors, and its settings as JSON in the header. It belongs to the weights it was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
import safetensors
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Data, Images, split
from holdfast.errors import UserError, one_of
from holdfast.methods import Detector
from holdfast.models.weights import save_tensors, weights_hash
from holdfast.ood.conformal import ConformalAlarm, conformal_alarm
from holdfast.ood.fitted import FittedDetector, fit_detectors, score_detectors
from holdfast.run import Run

__all__ = ["FILE", "Calibration", "MonitorSettings", "OODMonitor", "Reading", "fit_monitor", "monitor_settings"]

FILE = "monitor.safetensors"

_FORMAT = "holdfast-monitor-1"
_STATE, _SCORES = "detector.", "calibration scores"
_SHARE = 0.2  # of the training images, where nothing better is there to calibrate on

Calibration = Literal["val", "train", "test"]


class Reading(NamedTuple):
    """What a monitor says of N images.

    Args:
        alarm: bool (N,), whether the image is unlike what the model knows.
        score: float64 (N,), the detector's anomaly score.
        p_value: float64 (N,), the share of known images that score at least as high; low for anomalies.
    """

    alarm: Bool[Tensor, " n"]
    score: Float[Tensor, " n"]
    p_value: Float[Tensor, " n"]

    def table(self, images: Images) -> pa.Table:
        """A row per image: its place, its path where known, and what the monitor says of it."""
        paths = {"path": pa.array(map(str, images.columns["path"]))} if "path" in images.columns else {}
        readings = {name: values.numpy() for name, values in self._asdict().items()}
        return pa.table({"index": np.arange(len(images)), **paths, **readings})


class MonitorSettings(pydantic.BaseModel):
    """What the header of a monitor's file says, without the tensors; see `OODMonitor`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    detector: str
    alarm_rate: float
    delta: float | None
    threshold: float
    calibration_images: int
    calibrated_on: str
    image_shape: tuple[int, int, int]
    num_classes: int
    weights: str


@dataclass(frozen=True, eq=False)
class OODMonitor:
    """A model, a detector fitted to it, and an alarm calibrated on known images; called with images, gives a `Reading`.

    Args:
        model: the classifier, images in [0, 1] to logits; lent through `frozen`. Whoever changes its weights in place
            must fit a new monitor: they are compared when a monitor is loaded, not at each call.
        detector: fitted to it.
        alarm: calibrated on the detector's scores.
        image_shape: channels, height, width.
        num_classes: of the model.
        calibrated_on: in words, which images the detector and the alarm saw.
        run: device and batch size.
    """

    model: nn.Module
    detector: FittedDetector
    alarm: ConformalAlarm
    image_shape: tuple[int, int, int]
    num_classes: int
    calibrated_on: str = ""
    run: Run = field(default_factory=Run)

    def __call__(self, x: Tensor | Images) -> Reading:
        """Score images, (N, C, H, W), float in [0, 1] or bytes; N at least 1.

        Raises:
            UserError: there are no images, they have another shape than those of the calibration, or they or their
                scores are not finite.
        """
        images = x if isinstance(x, Images) else _unlabelled(x)
        if images.shape != self.image_shape:
            raise UserError(
                f"the monitor was calibrated on images of shape {_size(self.image_shape)}, got {_size(images.shape)}."
            )
        scores = score_detectors({"it": self.detector}, self.model, images, run=self.run)["it"]
        return Reading(self.alarm(scores), scores, self.alarm.p_values(scores))

    @property
    def settings(self) -> MonitorSettings:
        """All of it but the model and the tensors."""
        return MonitorSettings(
            detector=str(self.detector.method),
            alarm_rate=self.alarm.alpha,
            delta=self.alarm.delta,
            threshold=self.alarm.threshold,
            calibration_images=len(self.alarm.scores),
            calibrated_on=self.calibrated_on,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            weights=weights_hash(self.model),
        )

    def save(self, path: str | Path) -> Path:
        """Write the monitor without its model, whole or not at all.

        Args:
            path: a ``.safetensors`` file, or a folder, in which it is called ``monitor.safetensors``.

        Returns:
            the file.
        """
        path = _file(path)
        tensors = {f"{_STATE}{name}": value for name, value in self.detector.state.items()}
        metadata = {"format": _FORMAT, "monitor": self.settings.model_dump_json()}
        save_tensors(tensors | {_SCORES: self.alarm.scores}, path, metadata)
        return path

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, *, run: Run | None = None) -> OODMonitor:
        """Read what `save` wrote, for the model that it was fitted to.

        A deployed model shows no weights, so that there only the answers can tell it from another.

        Raises:
            UserError: there is no such file, it is not a monitor's, or the model has other weights.
        """
        path = _file(path)
        settings, tensors = _read(path)
        own = weights_hash(model)
        if own != settings.weights:
            raise UserError(
                f"{path} was fitted to a model with other weights ({settings.weights}, this one's are {own}): fit a "
                "monitor to this model."
            )
        state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
        return cls(
            model=model,
            detector=FittedDetector(catalog.build(settings.detector, kind=Detector), state),
            alarm=conformal_alarm(tensors[_SCORES], settings.alarm_rate, delta=settings.delta),
            image_shape=settings.image_shape,
            num_classes=settings.num_classes,
            calibrated_on=settings.calibrated_on,
            run=run or Run(),
        )


def fit_monitor(
    detector: str | Detector,
    model: nn.Module,
    data: Data,
    *,
    alpha: float = 0.05,
    delta: float | None = None,
    calibrate_on: Calibration | None = None,
    run: Run,
) -> OODMonitor:
    """Fit a detector on the training images and calibrate its alarm on others.

    Args:
        detector: a spec such as ``"knn(k=50)"``, or a method.
        model: the classifier.
        data: what the model was trained on.
        alpha: the promised rate of false alarms.
        delta: with which probability the promise may fail; see `conformal_alarm`.
        calibrate_on: the split that calibrates; by default ``val`` where there is one, else a fifth of ``train``, which
            the detector then does not see. The model has learnt from those all the same and finds new images stranger,
            so that the promise does not hold for them. ``test`` takes the test images, which then cannot judge.
        run: device, batch size, seed.

    Raises:
        UserError: there are no images to fit or calibrate on, or too few for this alarm rate.
    """
    method = catalog.build(detector, kind=Detector)
    fitting, calibrating, said = _parts(data, method, calibrate_on, run)
    (fitted,) = fit_detectors([method], model, fitting, run=run).values()
    scores = score_detectors({"it": fitted}, model, calibrating, run=run)["it"]
    return OODMonitor(
        model=model,
        detector=fitted,
        alarm=conformal_alarm(scores, alpha, delta=delta),
        image_shape=calibrating.shape,
        num_classes=data.num_classes,
        calibrated_on=said,
        run=run.but(out=None, progress=False),
    )


def monitor_settings(path: str | Path) -> MonitorSettings:
    """What a saved monitor says of itself: enough to load its model by.

    Raises:
        UserError: there is no such file, or it is not a monitor's.
    """
    return _read(_file(path))[0]


def _read(path: Path) -> tuple[MonitorSettings, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a monitor: {error}.") from None
    if metadata.get("format") != _FORMAT or _SCORES not in tensors:
        raise UserError(f"{path} holds no monitor; `holdfast ood fit` writes one.")
    try:
        return MonitorSettings.model_validate_json(metadata.get("monitor", "")), tensors
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: its settings cannot be read: {error.errors()[0]['msg']}.") from None


def _parts(
    data: Data, method: Detector, calibrate_on: Calibration | None, run: Run
) -> tuple[Images | None, Images, str]:
    """The images to fit on, those to calibrate on, and both in words."""
    chosen = calibrate_on or ("val" if data.val is not None else "train")
    if chosen not in ("val", "train", "test"):
        raise one_of("split to calibrate on", chosen, ("val", "train", "test"))
    images: Images | None = getattr(data, chosen)
    if images is None:
        raise UserError(
            f"{data.name} has no {chosen} split to calibrate the alarm on"
            f"{'; calibrate on test, which then cannot judge' if chosen == 'train' else ''}."
        )
    fitting = data.train
    if chosen == "train":
        parts = split(images, {"fit": 1 - _SHARE, "calibrate": _SHARE}, run.child("monitor"))
        fitting, images = parts["fit"], parts["calibrate"]
    said = f"calibrated on {len(images)} images, {_WHICH[chosen]}"
    if method.needs_fit and fitting is not None:
        said = f"fitted on {len(fitting)} training images, {said}"
    return fitting if method.needs_fit else None, images, said


_WHICH = {
    "val": "the validation split",
    "test": "the test split, which can judge it no more",
    "train": "a fifth of the training split that the detector has not seen; the model has, so that more of the new "
    "images than promised may raise false alarms",
}


def _unlabelled(x: Tensor) -> Images:
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(f"the monitor takes images as a tensor (N, C, H, W), got {got}.")
    y = torch.zeros(len(x), dtype=torch.int64)
    return Images(x=x.detach().cpu(), y=y, classes=("unknown",), name="the monitor's input")


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
