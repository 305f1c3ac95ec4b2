"""The lab: where proofs get their data and base models, at three scales.

A base model is trained once per recipe and seed and kept under the cache folder, named by a hash of everything it
depends on, so that proofs sharing a model pay for it once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import holdfast
from holdfast import catalog
from holdfast.data import Data, Images, load_data
from holdfast.files import cache_dir
from holdfast.methods import BatchTransform, Objective
from holdfast.models import build_model, load_model, load_weights, predict, save_weights
from holdfast.run import Precision, Run
from holdfast.training import SGD, OneCycle, fit

__all__ = ["Base", "Lab", "Scale", "accuracy", "correctly_classified", "mean_of"]

Scale = Literal["smoke", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """How a base model is trained.

    Args:
        model: architecture.
        epochs, batch_size, lr, weight_decay: of SGD with Nesterov momentum 0.9 and a one-cycle schedule.
        objective, transforms, wrapper: specs of methods.
        per_class: training images per class, the first ones; ``None`` takes all.
    """

    model: str = "resnet20"
    epochs: int = 8
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    objective: str = "cross-entropy"
    transforms: tuple[str, ...] = ("crop", "flip")
    wrapper: str | None = None
    per_class: int | None = None


@dataclass(frozen=True)
class Lab:
    """What an experiment works with: a scale, and a run whose seed is the experiment's."""

    scale: Scale
    run: Run

    def pick(self, **by_scale: Any) -> Any:
        """The value for this scale; ``gpu`` falls back to ``cpu``."""
        return by_scale[self.scale] if self.scale in by_scale else by_scale["cpu"]

    @property
    def precision(self) -> Precision:
        """Of trainings: what the hardware computes fast where they take minutes."""
        return "fp32" if self.scale == "smoke" else self.run.but(precision="auto").precision

    @property
    def data(self) -> Data:
        """Digits at smoke scale, else CIFAR-10."""
        return load_data("digits" if self.scale == "smoke" else "cifar10", run=self.run)

    def zoo(self, *, robust: bool = False) -> nn.Module:
        """The bundled model for this scale's data; at smoke scale the robust one is trained here, in seconds."""
        if self.scale != "smoke":
            return load_model("zoo:cifar10-resnet20-at" if robust else "zoo:cifar10-resnet20")
        objective = "pgd-at(eps=0.2, step=0.1, steps=3)" if robust else "cross-entropy"
        return self.model(self.small(objective=objective))

    def small(self, **changes: Any) -> Base:
        """The recipe of smoke scale: a small convolutional net on digits, without augmentation."""
        return dataclasses.replace(Base(model="convnet", epochs=12, batch_size=64, lr=0.05, transforms=()), **changes)

    def model(self, base: Base) -> nn.Module:
        """Train the base model, or take it from the cache."""
        data = self.data
        assert data.train is not None
        train = data.train if base.per_class is None else first_per_class(data.train, base.per_class)
        run = Run(seed=self.run.seed, device=self.run.device, precision=self.precision)

        def train_it(model: nn.Module) -> nn.Module:
            return fit(
                model,
                train,
                epochs=base.epochs,
                batch_size=base.batch_size,
                objective=catalog.build(base.objective, kind=Objective),
                optimizer=SGD(lr=base.lr, momentum=0.9, nesterov=True, weight_decay=base.weight_decay),
                schedule=OneCycle(),
                transforms=[catalog.build(t, kind=BatchTransform) for t in base.transforms],
                wrapper=catalog.build(base.wrapper) if base.wrapper else None,
                run=run.but(progress=self.run.progress),
            ).model

        model = build_model(base.model, num_classes=data.num_classes, image_shape=data.shape, run=run)
        return self.kept(model, train_it, name=base.model, base=dataclasses.asdict(base), data=train.fingerprint())

    def kept(
        self, model: nn.Module, train: Callable[[nn.Module], nn.Module], *, name: str, **identity: object
    ) -> nn.Module:
        """What `train` makes of a model, or made of it before, from the cache.

        Args:
            model: what training starts from; it may be changed in place.
            train: gives a model of the same architecture.
            name: of the file's beginning.
            identity: all that the result depends on besides seed, device, precision and versions.
        """
        whole = {
            **identity,
            "seed": self.run.seed,
            "device": self.run.torch_device.type,
            "precision": self.precision,
            "versions": [holdfast.__version__, torch.__version__],
        }
        text = json.dumps(whole, sort_keys=True)
        path = cache_dir("lab") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
        if path.is_file():
            load_weights(model, path)
            return model
        model = train(model)
        save_weights(model, path, {"identity": text})
        return model


def first_per_class(images: Images, count: int) -> Images:
    """The first `count` images of each class, in the original order."""
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for label in range(images.num_classes):
        chosen[(images.y == label).nonzero().flatten()[:count]] = True
    return images.select(chosen)


def accuracy(model: nn.Module, images: Images, run: Run) -> float:
    """Share of images classified rightly, in fp32."""
    return float((predict(model, images, run=run).argmax(1) == images.y).float().mean())


def correctly_classified(model: nn.Module, images: Images, run: Run, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images that the model classifies rightly, as floats, and their labels."""
    right = (predict(model, images, run=run).argmax(1) == images.y).nonzero().flatten()[:count]
    x, y = next(images.select(right).batches(count))
    return x, y


def mean_of(values: Sequence[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)
