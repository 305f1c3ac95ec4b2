"""The bench on which unlearners are compared: one trained model, what is to be forgotten, and the retrained model.

The model has learnt 10,000 CIFAR-10 images so thoroughly that it knows them better than others, without which there
would be nothing to forget. Hyperparameters are those of four candidates, the same number for every method, that have
the smallest mean gap on a seed that no proof uses: ``benchmarks/unlearning.py`` finds them, and they stand in `CHOSEN`.
Those for digits were tried by hand, on the seed of the proofs.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Data, Images, LabelNoise
from holdfast.errors import UserError
from holdfast.methods import Unlearner
from holdfast.models import Features, build_model, extract
from holdfast.proofs.lab import Base, Lab, first_per_class
from holdfast.run import Run
from holdfast.training import SGD, OneCycle
from holdfast.unlearning import Forgetting, Retrain, WorstCase, WorstCaseForget, average_gap, divergences, forgetting

__all__ = ["CANDIDATES", "MISLABELLED", "Request", "Result", "bench", "measure", "settings", "worst_case"]

Kind = Literal["random", "class", "worst"]

_FORGOTTEN_CLASS = 0
MISLABELLED = 0.2  # of the training images of smoke scale where single ones are forgotten


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be forgotten, from which model, and the model that never saw it.

    Args:
        lab: scale and seed.
        kind: a random tenth of the training images, a class, or the worst case of a tenth.
        original, retrained: the models.
        forget, retain, test: images; when a class is to be forgotten, the test images of the others.
    """

    lab: Lab
    kind: Kind
    original: nn.Module
    retrained: nn.Module
    forget: Images
    retain: Images
    test: Images

    @functools.cached_property
    def reference(self) -> Forgetting:
        """What the retrained model knows."""
        return self.known_to(self.retrained)

    @functools.cached_property
    def untouched(self) -> Forgetting:
        """What the original model knows."""
        return self.known_to(self.original)

    @functools.cached_property
    def retrained_logits(self) -> Tensor:
        """Of the forget set."""
        return self._features(self.retrained, self.forget).logits

    def known_to(self, model: nn.Module) -> Forgetting:
        """What a model knows of the three sets."""
        return forgetting(*(self._features(model, images) for images in (self.forget, self.retain, self.test)))

    def gap(self, known: Forgetting) -> float:
        """The mean gap to the retrained model, in percentage points."""
        return average_gap(known, self.reference)

    def _features(self, model: nn.Module, images: Images) -> Features:
        return extract(model, images, run=self.lab.run)


@dataclass(frozen=True, eq=False)
class Result:
    """What an unlearner made of a request."""

    request: Request
    spec: str
    model: nn.Module
    known: Forgetting
    seconds: float

    @property
    def gap(self) -> float:
        """The mean gap to the retrained model, in percentage points."""
        return self.request.gap(self.known)

    @functools.cached_property
    def divergence(self) -> tuple[float, float]:
        """Jensen-Shannon and Kullback-Leibler divergence from the retrained model's predictions on the forget set."""
        logits = extract(self.model, self.request.forget, run=self.request.lab.run).logits
        return divergences(self.request.retrained_logits, logits)

    def details(self) -> dict[str, object]:
        """For the ledger."""
        js, kl = self.divergence
        return {
            "spec": self.spec,
            **{name: round(value, 4) for name, value in asdict(self.known).items()},
            "gap": round(self.gap, 3),
            "js": round(js, 5),
            "kl": round(kl, 5),
            "seconds": round(self.seconds, 1),
            "retrained": {name: round(value, 4) for name, value in asdict(self.request.reference).items()},
            "original": {name: round(value, 4) for name, value in asdict(self.request.untouched).items()},
            "gap of the original": round(self.request.gap(self.request.untouched), 3),
        }


def training(lab: Lab) -> Run:
    """How models are trained at this scale, and unlearn."""
    return Run(seed=lab.run.seed, device=lab.run.device, precision=lab.precision, progress=lab.run.progress)


@functools.cache
def _data(lab: Lab) -> Data:
    return lab.data


def recipe(lab: Lab) -> Base:
    """How the original model and the retrained one are trained."""
    if lab.scale == "smoke":
        return lab.small(epochs=60)
    return Base(model="resnet20", epochs=25, per_class=1000)


@functools.cache
def bench(lab: Lab, kind: Kind) -> Request:
    """The request of this kind for the lab's seed, with its models, trained or from the cache."""
    data, train = _data(lab), _train_images(lab, kind)
    if kind == "class":
        chosen, test = train.y == _FORGOTTEN_CLASS, data.test.select(data.test.y != _FORGOTTEN_CLASS)
    else:
        chosen, test = torch.zeros(len(train), dtype=torch.bool), data.test
        chosen[_tenth(lab, train) if kind == "random" else worst_case(lab).indices] = True
    forget, retain = train.select(chosen, "forget"), train.select(~chosen, "retain")
    return Request(
        lab=lab,
        kind=kind,
        original=_trained(lab, train, "original"),
        retrained=_trained(lab, retain, "retrained"),
        forget=forget,
        retain=retain,
        test=test,
    )


def _tenth(lab: Lab, train: Images) -> Tensor:
    return torch.randperm(len(train), generator=lab.run.rng("to forget"))[: len(train) // 10]


@functools.cache
def worst_case(lab: Lab) -> WorstCase:
    """The tenth of the training images that the original model keeps hardest."""
    train = _train_images(lab, "worst")
    more = {"crop": None, "flip": None} if lab.scale == "smoke" else {}
    search = WorstCaseForget(count=len(train) // 10, rounds=5, epochs=1, **more)  # type: ignore[arg-type]
    return search(_trained(lab, train, "original"), train, run=training(lab))


def _train_images(lab: Lab, kind: Kind) -> Images:
    """At smoke scale a fifth of the labels is wrong where single images are forgotten, or none would be remembered."""
    train, count = _data(lab).train, recipe(lab).per_class
    assert train is not None
    if lab.scale == "smoke":
        return train if kind == "class" else LabelNoise(rate=MISLABELLED)(train, run=lab.run)
    return train if count is None else first_per_class(train, count)


def _trained(lab: Lab, images: Images, name: str) -> nn.Module:
    """A model trained on these images by the recipe; retraining is what its name says, the same for each model."""
    base, data = recipe(lab), _data(lab)
    run = training(lab).child(name)
    method = Retrain(
        epochs=base.epochs,
        batch_size=base.batch_size,
        optimizer=SGD(lr=base.lr, momentum=0.9, nesterov=True, weight_decay=base.weight_decay),
        schedule=OneCycle(),
        **dict(zip(("crop", "flip"), base.transforms or (None, None), strict=True)),  # type: ignore[arg-type]
    )
    start = build_model(base.model, num_classes=data.num_classes, image_shape=data.shape, run=run)
    nothing = images.select(slice(0, 0))
    return lab.kept(
        start,
        lambda model: method(model, nothing, images, run=run),
        name=name,
        method=str(method),
        data=images.fingerprint(),
    )


@functools.lru_cache(maxsize=64)
def measure(lab: Lab, kind: Kind, spec: str) -> Result:
    """Let an unlearner do its work on the bench."""
    request = bench(lab, kind)
    method = catalog.build(spec, kind=Unlearner)
    run = training(lab)
    began = time.perf_counter()
    model = method(request.original, request.forget, request.retain, run=run)
    seconds = time.perf_counter() - began
    return Result(request=request, spec=spec, model=model, known=request.known_to(model), seconds=seconds)


def settings(lab: Lab, kind: Kind, id: str) -> str:
    """The spec that the search chose for this kind of request, for the worst case that of random images.

    At smoke scale it is one for digits.

    Raises:
        UserError: the search has not been made for this method.
    """
    found = (SMOKE if lab.scale == "smoke" else CHOSEN)["random" if kind == "worst" else kind]
    if id not in found:
        raise UserError(
            f"{id}: its settings at {lab.scale} scale have not been searched for; run benchmarks/unlearning.py and "
            "enter what it chooses."
        )
    return found[id]


_TUNED = "epochs=5, batch_size=128"


def _sgd(rate: float, decay: float = 5e-4) -> str:
    return f"optimizer=sgd(lr={rate}, nesterov=false, weight_decay={decay})"


def _by_rate(id: str, *rates: float, more: str = "") -> tuple[str, ...]:
    return tuple(f"{id}({_TUNED}, {_sgd(rate)}{more})" for rate in rates)


# Four for every method, with one exception: retraining is the recipe's own. Fine-tuning takes five epochs throughout.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "ft": _by_rate("ft", 0.01, 0.03, 0.06, 0.1),
    "gradient-ascent": _by_rate("gradient-ascent", 1e-4, 3e-4, 1e-3, 3e-3),
    "neggrad-plus": (
        *_by_rate("neggrad-plus", 0.01, 0.03, more=", alpha=0.95"),
        *_by_rate("neggrad-plus", 0.01, 0.03, more=", alpha=0.99"),
    ),
    "random-label": _by_rate("random-label", 0.01, 0.03, 0.06, 0.1),
    "salun": _by_rate("salun", 0.01, 0.03, 0.06, 0.1),
    "l1-sparse": (
        *_by_rate("l1-sparse", 0.03, 0.06, more=", alpha=5e-5"),
        *_by_rate("l1-sparse", 0.03, 0.06, more=", alpha=2e-4"),
    ),
    "unlearn-sparse": tuple(
        f"unlearn-sparse(epochs=5, batch_size=128, {_sgd(0.05)}, then=ft({_TUNED}, {_sgd(rate)}))"
        for rate in (0.01, 0.03, 0.06, 0.1)
    ),
    "sfron": (
        *_by_rate("sfron", 0.01, 0.03, more=", ascent=5"),
        *_by_rate("sfron", 0.01, 0.03, more=", ascent=25"),
    ),
    "scrub": _by_rate("scrub", 5e-4, 2e-3, 5e-3, 0.02),
    "bad-teacher": _by_rate("bad-teacher", 2e-3, 0.01, 0.03, 0.06),
    "natural-mu": tuple(
        f"natural-mu(epochs=5, batch_size=128, optimizer=adamw(lr={rate}, weight_decay=0.002), delta={delta})"
        for rate, delta in ((3e-4, -0.19), (1e-3, -0.19), (1e-3, -0.05), (3e-3, -0.19))
    ),
    "ssd": tuple(f"ssd(alpha={alpha})" for alpha in (5, 10, 20, 50)),
    "influence-unlearning": tuple(f"influence-unlearning(alpha={alpha}, damping=100)" for alpha in (0.03, 0.1, 0.3, 1)),
    "boundary-shrink": tuple(
        f"boundary-shrink(epochs=5, batch_size=64, {_sgd(rate, 0)})" for rate in (1e-5, 1e-4, 1e-3, 3e-3)
    ),
    "boundary-expanding": tuple(
        f"boundary-expanding(epochs=5, batch_size=64, {_sgd(rate, 0)})" for rate in (1e-5, 1e-4, 1e-3, 3e-3)
    ),
}


_DIGITS = "epochs=5, batch_size=64, crop=none, flip=none"
_SHARED = {
    **{id: f"{id}({_DIGITS}, {_sgd(0.05)})" for id in ("ft", "random-label", "salun", "bad-teacher")},
    "l1-sparse": f"l1-sparse({_DIGITS}, {_sgd(0.05)}, alpha=0.005)",
    "unlearn-sparse": f"unlearn-sparse({_DIGITS}, {_sgd(0.05)}, then=ft({_DIGITS}, {_sgd(0.05)}))",
}

SMOKE: dict[str, dict[str, str]] = {
    "random": {
        **_SHARED,
        "gradient-ascent": f"gradient-ascent(epochs=10, batch_size=32, crop=none, flip=none, {_sgd(0.002)}, clip=1)",
        "neggrad-plus": f"neggrad-plus({_DIGITS}, {_sgd(0.05)}, alpha=0.9)",
        "sfron": f"sfron({_DIGITS}, {_sgd(0.05)}, ascent=50)",
        "scrub": f"scrub({_DIGITS}, {_sgd(0.005)})",
        "natural-mu": f"natural-mu({_DIGITS}, optimizer=adamw(lr=0.01))",
        "ssd": "ssd(alpha=2, batch_size=16)",
        "influence-unlearning": "influence-unlearning(alpha=0.01)",
    },
    "class": {
        **_SHARED,
        "gradient-ascent": f"gradient-ascent(epochs=10, batch_size=32, crop=none, flip=none, {_sgd(0.005)}, clip=1)",
        "neggrad-plus": f"neggrad-plus({_DIGITS}, {_sgd(0.02)})",
        "sfron": f"sfron({_DIGITS}, {_sgd(0.02)}, ascent=2)",
        "scrub": f"scrub({_DIGITS}, {_sgd(0.005)})",
        "natural-mu": f"natural-mu({_DIGITS}, optimizer=adamw(lr=0.01))",
        "ssd": "ssd(alpha=20, batch_size=16)",
        "influence-unlearning": "influence-unlearning(alpha=0.01, damping=100)",
        "boundary-shrink": f"boundary-shrink(epochs=5, batch_size=32, {_sgd(0.001, 0)})",
        "boundary-expanding": f"boundary-expanding(epochs=5, batch_size=32, {_sgd(0.005, 0)})",
    },
}

CHOSEN: dict[str, dict[str, str]] = {"random": {}, "class": {}}
