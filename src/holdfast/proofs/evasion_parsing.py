"""Proofs of model parsing: what adversarial examples tell about the model they were made on."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from holdfast.data import Data, Images, load_data
from holdfast.evasion.model_parsing import Judgement, ModelParsing, ParsingReport, judge
from holdfast.evasion.parsing_network import Reads
from holdfast.evasion.victims import Examples, Victim, attack_victims, train_victims
from holdfast.proofs.lab import Lab
from holdfast.proofs.proof import Measured, proof
from holdfast.run import Run

__all__: list[str] = []

_ATTACKS = ("fgsm", "pgd(steps=5)")
_SOURCE = "Yao et al. 2023, abstract (feasible where attacks are as in training; threshold ours)"
_NOTE = (
    "Victims are small: two convolutions, three epochs on 10,000 images of CIFAR-10. At smoke scale, kernels 3 and 5 "
    "with relu and tanh on shapes32; digits, tried first, are so small (8x8) that kernels were told in 68 % only."
)


def _method(lab: Lab, reads: Reads = "delta") -> ModelParsing:
    sizes = lab.pick(smoke={"width": 8, "epochs": 6, "batch_size": 32}, cpu={"width": 32, "epochs": 15})
    return ModelParsing(attacks=_ATTACKS, reads=reads, **{"batch_size": 128, **sizes})


def _training(lab: Lab, run: Run) -> Run:
    """Rounding where that is faster; attacks and verdicts stay in fp32."""
    return run.but(precision=lab.precision)


@functools.cache
def _data(lab: Lab) -> Data:
    return load_data(lab.pick(smoke=f"shapes32(n=1500, seed={lab.run.seed})", cpu="cifar10"), run=lab.run)


def _attacked(lab: Lab) -> Images:
    return _data(lab).test.select(slice(0, 2500))


@functools.cache
def _victims(lab: Lab, run: Run) -> tuple[Victim, ...]:
    train = _data(lab).train
    assert train is not None
    grid: dict[str, Any] = lab.pick(
        smoke={"kernels": (3, 5), "activations": ("relu", "tanh"), "width": 8, "epochs": 3, "batch_size": 64},
        cpu={"epochs": 3},
    )
    return train_victims(train.select(slice(0, 10_000)), **grid, run=_training(lab, run))


@functools.cache
def _examples(lab: Lab) -> Examples:
    return attack_victims(_victims(lab, lab.run), _ATTACKS, _attacked(lab), run=lab.run)


@functools.cache
def _study(lab: Lab, reads: Reads = "delta") -> ParsingReport:
    return _method(lab, reads).study(_examples(lab), _attacked(lab).name, run=_training(lab, lab.run))


@functools.cache
def _further(lab: Lab) -> dict[str, Any]:
    """Out of distribution: the other attack, victims trained again from other weights, and floats not rounded."""
    if lab.scale == "smoke":
        return {}
    seen, unseen = _examples(lab).halves(0.8)
    crossed = {}
    for attack in _ATTACKS:
        parser = _method(lab).learn(seen.of(attack), run=_training(lab, lab.run))
        for other in _ATTACKS:
            crossed[f"{attack} -> {other}"] = _values(judge(parser, unseen.of(other), run=lab.run))
    late = _attacked(lab).select(slice(2000, None))
    again = _victims(lab, lab.run.but(seed=lab.run.seed + 1000))
    strangers = attack_victims(again, _ATTACKS, late, run=lab.run)
    floats = attack_victims(_victims(lab, lab.run), _ATTACKS, late, rounding="none", run=lab.run)
    parser = _study(lab).parser
    return {
        "trained on -> tested on": crossed,
        "victims trained again from another seed": _values(judge(parser, strangers, run=lab.run)),
        "perturbations not rounded": _values(judge(dataclasses.replace(parser, rounding="none"), floats, run=lab.run)),
    }


def _values(judged: Judgement) -> dict[str, float]:
    return {name: value for name, (value, _, _) in judged.accuracy.items()}


def _measured(lab: Lab, attribute: str) -> Measured:
    judged = _study(lab).judged
    value, low, high = judged.accuracy[attribute]
    return Measured(
        value=value,
        low=low,
        high=high,
        baseline=judged.constant[attribute],
        baseline_name="one constant answer",
        n=judged.n,
        details={
            "by attack": {attack: _values(j) for attack, j in _study(lab).by_attack.items()},
            "confusion": judged.confusion[attribute].tolist(),
            "examples": _study(lab).kept,
            **_further(lab),
        },
    )


@proof(
    method="model-parsing",
    claim="A perturbation tells the kernel size of the model it was made on.",
    source=_SOURCE,
    metric="accuracy on unseen images",
    better="higher",
    threshold={"smoke": 0.75, "cpu": 0.75},
    note=_NOTE,
)
def parsing_tells_the_kernel(lab: Lab) -> Measured:
    """FGSM and PGD-5 together, on victims of each kernel with each activation."""
    return _measured(lab, "kernel")


@proof(
    method="model-parsing",
    claim="A perturbation tells the activation function of the model it was made on.",
    source=_SOURCE,
    metric="accuracy on unseen images",
    better="higher",
    threshold={"smoke": 0.7, "cpu": 0.6},
    note=_NOTE,
)
def parsing_tells_the_activation(lab: Lab) -> Measured:
    """See `parsing_tells_the_kernel`."""
    return _measured(lab, "activation")


@proof(
    method="model-parsing",
    claim="Parsing reads more from perturbations than from the attacked images that hold them.",
    source="Yao et al. 2023 (direction; threshold ours)",
    metric="mean accuracy over attributes, perturbations less attacked images",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
    note=_NOTE,
)
def parsing_reads_more_from_perturbations(lab: Lab) -> Measured:
    """The same examples, the same network, trained once on either."""
    delta, image = (_values(_study(lab, reads).judged) for reads in ("delta", "image"))
    means = [sum(values.values()) / len(values) for values in (delta, image)]
    return Measured(
        value=means[0] - means[1],
        baseline=0.0,
        baseline_name="no difference",
        n=_study(lab).judged.n,
        details={"perturbations": delta, "attacked images": image},
    )
