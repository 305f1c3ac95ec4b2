"""Proofs of the diffusion core: handwritten digits, drawn in a thousand steps and in fifty, with and without guidance.

All distances are between features of `digits-cnn`, a small classifier of digits that has seen the real images that it
compares with. They say which of two sets is nearer to those, and nothing that could be set beside published numbers.
The floor is the distance between real digits of two splits; the ceiling that of a normal distribution with the mean and
covariance of the real pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.data import Data, load_data
from holdfast.generative import DDPMDDIMCFG, Diffusion, FeatureNetwork, fid, sample
from holdfast.generative.judge import as_images
from holdfast.generative.noise_schedule import Course
from holdfast.models import build_model, load_weights, predict, save_weights
from holdfast.proofs.diffusion_bench import kept, place_for
from holdfast.proofs.lab import Lab, accuracy
from holdfast.proofs.proof import Measured, proof
from holdfast.run import Run
from holdfast.training import fit

__all__: list[str] = []

_NOTE = (
    "8x8 digits, a U-Net of 0.2 million weights (at smoke scale a tenth of that), 5,000 steps (smoke: 1,000), 1,000 "
    "samples for each number (smoke: 200), FID by 64 features of a classifier with the training digits as reference. "
    "The first runs at smoke scale took 500 steps of 64 images at rate 0.001, too few to draw digits; since then it "
    "is 1,000 of 32 at 0.002."
)
_SCHEDULES: tuple[Course, ...] = ("linear", "cosine", "sigmoid")


@dataclass(frozen=True, eq=False)
class _Digits:
    """Data, model and network of an experiment, with what has been drawn so far."""

    lab: Lab
    data: Data
    model: Diffusion
    network: FeatureNetwork

    @property
    def count(self) -> int:
        """Samples for each number."""
        return int(self.lab.pick(smoke=200, cpu=1000))

    @property
    def labels(self) -> Tensor:
        """Every class in turn."""
        return torch.arange(self.count) % 10

    def features(self, x: Tensor) -> Tensor:
        return self.network(x, run=self.lab.run)

    @functools.cached_property
    def real(self) -> Tensor:
        """Features of as many training digits."""
        assert self.data.train is not None
        return self.features(self.data.train.x[: self.count])

    @functools.cached_property
    def floor(self) -> float:
        """The distance between the real digits and others that are real."""
        assert self.data.val is not None
        held_out = torch.cat([self.data.test.x, self.data.val.x])
        return fid(self.features(held_out), self.real)

    @functools.cached_property
    def ceiling(self) -> float:
        """The distance of normal pixels."""
        assert self.data.train is not None
        pixels = self.data.train.x.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
        drawn = torch.randn(self.count, len(values), generator=self.lab.run.rng("normal pixels")).double()
        x = pixels.mean(0) + drawn * values.clamp_min(0).sqrt() @ vectors.T
        return fid(self.features(x.clamp(0, 1).float().view(-1, 1, 8, 8)), self.real)

    @functools.cache  # noqa: B019 - as long as the experiment
    def drawn(self, sampler: str, guidance: float = 1.0) -> Tensor:
        """Digits of every class, from the same noise."""
        return sample(self.model, of=self.labels, sampler=sampler, guidance=guidance, run=self.lab.run)

    def distance(self, sampler: str) -> float:
        """Of what a sampler draws, without guidance."""
        return fid(self.features(self.drawn(sampler)), self.real)

    def seen(self, x: Tensor) -> Tensor:
        """What the classifier takes digits for."""
        return predict(self.network.model, as_images(x), run=self.lab.run).argmax(1)


def _method(lab: Lab, schedule: Course = "linear") -> DDPMDDIMCFG:
    return DDPMDDIMCFG(
        updates=lab.pick(smoke=1000, cpu=5000),
        schedule=schedule,
        width=lab.pick(smoke=8, cpu=24),
        batch_size=lab.pick(smoke=32, cpu=128),
        lr=lab.pick(smoke=2e-3, cpu=1e-3),
        ema=lab.pick(smoke=0.99, cpu=0.999),
    )


def _trained(lab: Lab, data: Data, method: DDPMDDIMCFG) -> Diffusion:
    assert data.train is not None
    train, run = data.train, Run(seed=lab.run.seed, device=lab.run.device, progress=lab.run.progress)
    place = place_for("diffusion", lab, train, {"method": repr(method)})
    return kept(lambda where: method(train, run=where), place, run=run)


@functools.lru_cache(maxsize=1)
def _digits(lab: Lab) -> _Digits:
    data = load_data("digits", run=lab.run)
    return _Digits(lab, data, _trained(lab, data, _method(lab)), _network(lab, data))


def _network(lab: Lab, data: Data) -> FeatureNetwork:
    """A small classifier, trained on the training digits alone; it has 64 features."""
    assert data.train is not None
    run = Run(seed=lab.run.seed, device=lab.run.device)
    model = build_model("convnet(width=16)", num_classes=10, image_shape=data.shape, run=run)
    path = place_for("digits-cnn", lab, data.train, {}).with_suffix(".safetensors")
    if path.is_file():
        load_weights(model, path)
    else:
        fit(model, data.train, epochs=20, batch_size=64, optimizer="sgd(lr=0.05)", run=run)
        save_weights(model, path)
    return FeatureNetwork("digits-cnn", model.eval())


def _details(digits: _Digits) -> dict[str, float]:
    return {
        "floor": round(digits.floor, 4),
        "ceiling": round(digits.ceiling, 4),
        "accuracy of digits-cnn": round(accuracy(digits.network.model, digits.data.test, digits.lab.run), 4),
    }


@proof(
    method="ddpm-ddim-cfg",
    claim="DDIM draws in 50 calls of the network nearly as good images as DDPM in 1,000.",
    source="Song et al. 2021, Table 1 (CIFAR-10: FID 4.67 in 50 steps, DDPM 4.73 in 1,000 by its small variance)",
    metric="FID (digits-cnn) of DDIM-50 / of DDPM-1000",
    better="lower",
    threshold={"smoke": 1.5, "cpu": 1.5},
    note=_NOTE,
)
def fifty_steps_of_ddim_are_nearly_as_good(lab: Lab) -> Measured:
    """The same model, classes and first noise."""
    digits = _digits(lab)
    few, many = digits.distance("ddim(steps=50)"), digits.distance("ddpm")
    details = _details(digits) | {"ddim": round(few, 4), "ddpm": round(many, 4)}
    return Measured(value=few / many, baseline=1.0, baseline_name="ddpm", n=digits.count, details=details)


@proof(
    method="ddpm-ddim-cfg",
    claim="What is drawn in 50 steps is far nearer to real images than normal pixels of their mean and covariance are.",
    source="Song et al. 2021, Table 1, in kind; threshold ours",
    metric="FID (digits-cnn) of DDIM-50 / of normal pixels",
    better="lower",
    threshold={"smoke": 1.0, "cpu": 0.5},
    note=_NOTE,
)
def samples_are_nearer_than_normal_pixels(lab: Lab) -> Measured:
    """Against the ceiling."""
    digits = _digits(lab)
    value = digits.distance("ddim(steps=50)")
    details = _details(digits) | {"ddim": round(value, 4)}
    return Measured(
        value=value / digits.ceiling,
        baseline=digits.floor / digits.ceiling,
        baseline_name="real digits of other splits",
        n=digits.count,
        details=details,
    )


@proof(
    method="ddpm-ddim-cfg",
    claim="With guidance 3, the digit that is asked for is drawn.",
    source="Ho & Salimans 2022, Figure 1, in kind; threshold ours",
    metric="share recognised by digits-cnn, guidance 3",
    better="higher",
    threshold={"smoke": 0.6, "cpu": 0.9},
    note=_NOTE,
)
def guided_samples_are_of_the_class_asked_for(lab: Lab) -> Measured:
    """By a classifier that never saw the model."""
    digits = _digits(lab)
    plain, guided = (digits.seen(digits.drawn("ddim(steps=50)", g)) == digits.labels for g in (1.0, 3.0))
    return Measured.share(
        guided, baseline=float(plain.double().mean()), baseline_name="guidance 1", details=_details(digits)
    )


@proof(
    method="ddpm-ddim-cfg",
    claim="Guidance makes the digits that are asked for no harder to recognise.",
    source="Ho & Salimans 2022, Table 1 (the inception score rises with guidance); threshold ours",
    metric="share recognised by digits-cnn, guidance 3 - guidance 1",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
    note=_NOTE,
)
def guidance_helps_recognition(lab: Lab) -> Measured:
    """The same classes and first noise."""
    digits = _digits(lab)
    plain, guided = (digits.seen(digits.drawn("ddim(steps=50)", g)) == digits.labels for g in (1.0, 3.0))
    return Measured.difference(guided, plain, "guidance 1")


@proof(
    method="ddpm-ddim-cfg",
    claim="Told nothing, the model draws digits that agree with classes drawn at random no more than chance.",
    source="A check of the experiment, not a paper's claim",
    metric="share that agrees with random labels by digits-cnn",
    better="lower",
    threshold={"smoke": 0.2, "cpu": 0.2},
    note=_NOTE,
)
def untold_samples_agree_with_nothing(lab: Lab) -> Measured:
    """What guidance moves away from."""
    digits = _digits(lab)
    x = sample(digits.model, digits.count, sampler="ddim(steps=50)", run=lab.run)
    seen = digits.seen(x)
    labels = torch.randint(10, (digits.count,), generator=lab.run.rng("random labels"))
    shares = torch.bincount(seen, minlength=10).double() / digits.count
    details = {
        "share of the rarest digit": round(float(shares.min()), 4),
        "of the commonest": round(float(shares.max()), 4),
    }
    return Measured.share(seen == labels, baseline=0.1, baseline_name="chance", details=details)


@proof(
    method="ddpm-ddim-cfg",
    claim="Trained on the linear, the cosine or the sigmoid schedule, the model draws better than normal pixels.",
    source="Nichol & Dhariwal 2021, Table 1, in kind: no order of the schedules is claimed; threshold ours",
    metric="largest FID (digits-cnn) over schedules / of normal pixels",
    better="lower",
    threshold={"smoke": 1.0, "cpu": 1.0},
    note=_NOTE,
)
def every_schedule_trains(lab: Lab) -> Measured:
    """The same recipe on each, drawn in 50 steps."""
    digits = _digits(lab)
    distances = {}
    for schedule in _SCHEDULES:
        model = _trained(lab, digits.data, _method(lab, schedule))
        x = sample(model, of=digits.labels, sampler="ddim(steps=50)", run=lab.run)
        distances[schedule] = round(fid(digits.features(x), digits.real), 4)
    return Measured(
        value=max(distances.values()) / digits.ceiling,
        baseline=digits.floor / digits.ceiling,
        baseline_name="real digits of other splits",
        n=digits.count,
        details=_details(digits) | distances,
    )
