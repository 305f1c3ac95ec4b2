"""Proofs of layer sustainability analysis, and of adversarial training that holds the most vulnerable layers still."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch

from holdfast import stats
from holdfast.data import Images
from holdfast.evasion import PGD
from holdfast.evasion.lsa import LSA, LSAReport
from holdfast.hardening import ATLR, PGDAT
from holdfast.models import build_model
from holdfast.proofs.lab import Lab, accuracy, mean_of
from holdfast.proofs.proof import Measured, proof
from holdfast.training import SGD, fit

__all__: list[str] = []

# --- AT-LR on two moons ----------------------------------------------------------------------------------------------

_UNITS = 4.0  # of the moons' own make the side of the image's unit square
_TRAINED, _ATTACKED = 0.1, (0.15, 0.2, 0.3)  # radii, in the moons' units
_SEEDS = 5


def _moons(count: int, seed: int, name: str) -> Images:
    """Points of two moons as images of two pixels, the square [-1.5, 2.5]^2 being [0, 1]^2."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(count, noise=0.1, random_state=seed % 2**32)
    x = ((torch.from_numpy(points).float() + 1.5) / _UNITS).clamp(0, 1).view(count, 1, 1, 2)
    return Images(x=x, y=torch.from_numpy(labels), classes=("upper", "lower"), name=name)


@dataclass(frozen=True)
class _Twins:
    """Accuracies after both trainings, by name and seed: on clean points, and under PGD, the mean over radii."""

    clean: dict[str, list[float]] = field(default_factory=dict)
    robust: dict[str, list[float]] = field(default_factory=dict)


@functools.cache
def _twins(lab: Lab) -> _Twins:
    """The perceptron 2-100-100-2 trained on FGSM examples, with the term for vulnerable layers and without."""
    count, found = lab.pick(smoke=500, cpu=2000), _Twins()
    test = _moons(count, lab.run.seed_for("test"), "moons test")
    x, y = next(test.batches(len(test)))
    # A step of twice the radius reaches the corner that FGSM reaches, from wherever in the ball it starts.
    eps, step = _TRAINED / _UNITS, 2 * _TRAINED / _UNITS
    objectives = {"at": PGDAT(eps=eps, step=step, steps=1), "at-lr": ATLR(eps=eps, step=step, steps=1, gamma=3.0)}
    attacks = [PGD(eps=eps / _UNITS, steps=20) for eps in _ATTACKED]
    for seed in range(_SEEDS):
        run = lab.run.child(f"twins-{seed}")
        train = _moons(count, run.seed_for("train"), "moons")
        for name, objective in objectives.items():
            # Its first layer subtracts 0.5 and divides by 0.25, which gives the moons their own units back.
            model = build_model("mlp(hidden=[100, 100])", num_classes=2, image_shape=(1, 1, 2), run=run)
            epochs = lab.pick(smoke=30, cpu=60)
            fit(model, train, epochs=epochs, batch_size=50, objective=objective, optimizer=SGD(lr=0.05), run=run)
            robust = [attack.run(model, x, y, run=run).robust_accuracy for attack in attacks]
            found.clean.setdefault(name, []).append(accuracy(model, test, run))
            found.robust.setdefault(name, []).append(mean_of(robust))
    return found


def _difference(of: dict[str, list[float]], twins: _Twins) -> Measured:
    """AT-LR less AT, the mean over seeds."""
    pairs = [after - before for after, before in zip(of["at-lr"], of["at"], strict=True)]
    low, high = stats.student_interval(pairs)
    return Measured(
        value=mean_of(pairs),
        low=low,
        high=high,
        baseline=mean_of(of["at"]),
        baseline_name="FGSM adversarial training",
        n=len(pairs),
        details={"clean": twins.clean, "robust": twins.robust},
    )


@proof(
    method="at-lr",
    claim="Holding the most vulnerable layers still makes a network more robust to perturbations larger than those it "
    "was trained on.",
    source="Khalooei et al. 2023, abstract (two moons: up by 16.35 points)",
    metric="accuracy under PGD-20, mean of radii 0.15, 0.2 and 0.3, at-lr - at",
    better="higher",
    threshold={"smoke": 0.01, "cpu": 0.01},
    note="Two moons with noise 0.1, five seeds, FGSM examples of radius 0.1. Radii are in the moons' own units, four "
    "of which make the unit square of the images. Changed after the first smoke run, which failed (0.002): the weight "
    "of the term is 3 instead of the default 0.1, chosen on other points and seeds. There 1 gained 0.6 points, 3 "
    "gained 1.9, and 10 gained 5.7 at the price of 2.5 points of clean accuracy.",
)
def layer_regularisation_helps_beyond_the_trained_radius(lab: Lab) -> Measured:
    """Same start, data and attack with and without the term."""
    twins = _twins(lab)
    return _difference(twins.robust, twins)


@proof(
    method="at-lr",
    claim="It costs no clean accuracy.",
    source="Khalooei et al. 2023 (two moons; threshold ours)",
    metric="clean accuracy, at-lr - at",
    better="higher",
    threshold={"smoke": -0.01, "cpu": -0.01},
    note="See layer-regularisation-helps-beyond-the-trained-radius.",
)
def layer_regularisation_keeps_clean_accuracy(lab: Lab) -> Measured:
    """The networks of the other proof, on clean points."""
    twins = _twins(lab)
    return _difference(twins.clean, twins)


# --- LSA of a standard and of a robust network -----------------------------------------------------------------------


@functools.cache
def _analysed(lab: Lab) -> dict[str, LSAReport]:
    """The zoo's models, on 256 test images: PGD to its last step, and Gaussian noise of its norm."""
    eps, step = lab.pick(smoke=(0.2, 0.05), cpu=(8 / 255, 2 / 255))
    method = LSA(attacks=(f"i-fgsm(random_start=true, steps=20, eps={eps}, step={step})", "gaussian"))
    images = lab.data.test.select(slice(0, 256))
    models = {"std": lab.zoo(), "at": lab.zoo(robust=True)}
    return {name: method(model, images, run=lab.run) for name, model in models.items()}


@proof(
    method="lsa",
    claim="PGD carries layers away further than Gaussian noise of the same norm.",
    source="Khalooei et al. 2023, section 3 (threshold ours)",
    metric="share of the layers of a standard and a robust network",
    better="higher",
    threshold={"smoke": 0.9, "cpu": 0.9},
)
def attacks_move_layers_more_than_noise_does(lab: Lab) -> Measured:
    """The relative error of every activation's output, in both networks."""
    pairs = [
        (attack.errors["relative"][layer], noise.errors["relative"][layer])
        for attack, noise in (report.found for report in _analysed(lab).values())
        for layer in attack.errors["relative"]
    ]
    further = sum(attack > noise for attack, noise in pairs)
    low, high = stats.wilson(further, len(pairs))
    return Measured(
        value=further / len(pairs),
        low=low,
        high=high,
        n=len(pairs),
        details={name: report.to_json() for name, report in _analysed(lab).items()},
    )


@proof(
    method="lsa",
    claim="Adversarial training makes the layers of a network sustainable: an attack moves them much less.",
    source="Khalooei et al. 2023, section 4 (threshold ours)",
    metric="mean relative error of the layers under PGD, robust / standard network",
    better="lower",
    threshold={"smoke": 0.75, "cpu": 0.5},
    note="The limit for the small networks of smoke scale, too, was set before any run.",
)
def adversarial_training_stills_layers(lab: Lab) -> Measured:
    """The mean over all activations' outputs."""
    mean = {name: mean_of(list(r.found[0].errors["relative"].values())) for name, r in _analysed(lab).items()}
    return Measured(
        value=mean["at"] / mean["std"],
        baseline=1.0,
        baseline_name="standard training",
        n=256,
        details={"mean_relative_error": mean},
    )
