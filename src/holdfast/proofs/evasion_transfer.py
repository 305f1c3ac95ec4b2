"""Proofs of the attacks that are made to transfer, and of their comparison by l_2 norms.

The surrogates are ``std-a`` (the bundled network) and ``std-cnn`` (another architecture); the victims ``std-b``
(``std-a`` trained again from another seed) and ``at`` (adversarially trained). Only images that all three standard
networks classify rightly are attacked.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.evasion import Ensemble, L2Transferability, transfer
from holdfast.evasion.l2_transferability import L2Report
from holdfast.evasion.transfer import Pair, right_on
from holdfast.methods import Attack
from holdfast.proofs.lab import Base, Lab, mean_of
from holdfast.proofs.proof import Measured, proof

__all__ = ["attack_at", "radius", "standard"]

_ON_DIGITS = (
    "At smoke scale, on digits of 8x8 pixels, it only has to do no worse than by 2 points; the claim is about pictures."
)


@functools.lru_cache(maxsize=1)
def standard(lab: Lab) -> dict[str, nn.Module]:
    """The three networks trained on clean images."""
    other = Lab(lab.scale, lab.run.but(seed=lab.run.seed + 1))
    return {
        "std-a": lab.zoo(),
        "std-b": other.model(lab.pick(smoke=lab.small(), cpu=Base(epochs=4))),
        "std-cnn": lab.model(lab.pick(smoke=lab.small(model="mlp"), cpu=Base(model="convnet", epochs=6))),
    }


@functools.lru_cache(maxsize=1)
def _images(lab: Lab) -> Images:
    """The first test images that all three networks classify rightly."""
    test = lab.data.test.select(slice(0, lab.pick(smoke=300, cpu=600)))
    right = torch.stack([right_on(model, test, lab.run) for model in standard(lab).values()]).all(0)
    return test.select(right.nonzero().flatten()[: lab.pick(smoke=200, cpu=256)])


def attack_at(lab: Lab, spec: str) -> Attack:
    """The attack at the lab's radius."""
    method = catalog.build(spec, kind=Attack)
    changes = {"eps": radius(lab)}
    if lab.scale == "smoke" and getattr(method, "kernel", 1) > 3:
        changes["kernel"] = 3  # of 8 pixels
    return dataclasses.replace(method, **changes)  # type: ignore[type-var]


def radius(lab: Lab) -> float:
    """The l_inf radius of all attacks."""
    return float(lab.pick(smoke=0.15, cpu=8 / 255))


@functools.lru_cache(maxsize=32)
def _pair(lab: Lab, spec: str, victim: str, surrogate: str = "std-a") -> Pair:
    """One attack from a surrogate, or from the ensemble of the two, on a victim."""
    models, images = dict(standard(lab)), _images(lab)
    models["both"] = Ensemble([models["std-a"], models["std-cnn"]])
    if victim == "at":
        models["at"] = lab.zoo(robust=True)
    found = transfer(attack_at(lab, spec), {surrogate: models[surrogate]}, {victim: models[victim]}, images, lab.run)
    return found[surrogate, victim]


def _better(a: Pair, b: Pair, baseline: str) -> Measured:
    """By how much the first does better than the second, on the images on which both count."""
    counted = a.counted & b.counted
    first, second = (pair.fooled[counted] for pair in (a, b))
    success = float(first.double().mean())
    details = {"success": success, "surrogate": a.surrogate, "victim": a.victim}
    return Measured.difference(first, second, f"success of {baseline}", details=details)


@proof(
    method="mi-fgsm",
    claim="Momentum makes images that transfer better than those of plain iteration, at the same l_inf radius.",
    source="Dong et al. 2018, Table 1",
    metric="transfer success, mi-fgsm - i-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.03},
    note=_ON_DIGITS,
)
def momentum_transfers_better_than_plain_iteration(lab: Lab) -> Measured:
    """From std-a to std-b, ten steps of eps / 10."""
    return _better(_pair(lab, "mi-fgsm", "std-b"), _pair(lab, "i-fgsm", "std-b"), "i-fgsm")


@proof(
    method="mi-fgsm",
    claim="An ensemble of two surrogates transfers at least as well as the better of the two.",
    source="Dong et al. 2018, Table 4",
    metric="transfer success, ensemble - best single",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
)
def an_ensemble_transfers_at_least_as_well_as_its_best_member(lab: Lab) -> Measured:
    """Logits of std-a and std-cnn fused, against either, on std-b."""
    both = _pair(lab, "mi-fgsm", "std-b", "both")
    single = [_pair(lab, "mi-fgsm", "std-b", name) for name in ("std-a", "std-cnn")]
    best = max(single, key=lambda p: p.success or 0.0)
    measured = _better(both, best, f"{best.surrogate} alone")
    return dataclasses.replace(measured, details={p.surrogate: p.success for p in (*single, both)})


@proof(
    method="mi-fgsm",
    claim="An adversarially trained victim falls to at most half as many transferred images as a standard one.",
    source="Dong et al. 2018, Table 2 (ensemble adversarial training)",
    metric="transfer success on at / on std-b",
    better="lower",
    threshold={"smoke": 0.5, "cpu": 0.5},
)
def a_robust_victim_falls_at_most_half_as_often(lab: Lab) -> Measured:
    """From std-a; each victim on the images that it classifies rightly."""
    robust, standard = _pair(lab, "mi-fgsm", "at"), _pair(lab, "mi-fgsm", "std-b")
    a, b = robust.success or 0.0, standard.success or 0.0
    return Measured(value=a / max(b, 1e-9), baseline=b, baseline_name="success on std-b", n=robust.n, details={"at": a})


@proof(
    method="i-fgsm",
    claim="No attack transfers better than it does on its own surrogate.",
    source="Dong et al. 2018, Table 1 (diagonal and off-diagonal entries)",
    metric="least margin of white-box over transfer success",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
)
def white_box_success_bounds_transfer(lab: Lab) -> Measured:
    """FGSM, I-FGSM, MI, NI, MI-DI and NI-SI-TI-DI from std-a: on std-a itself, and on std-b."""
    models, images = standard(lab), _images(lab)
    victims = {name: models[name] for name in ("std-a", "std-b")}
    found = {}
    for spec in ("fgsm", "i-fgsm", "mi-fgsm", "ni-fgsm", "di-fgsm", "ni-si-ti-di"):
        table = transfer(attack_at(lab, spec), {"std-a": models["std-a"]}, victims, images, lab.run)
        found[spec] = {name: table["std-a", name].success or 0.0 for name in victims}
    return Measured(
        value=min(rates["std-a"] - rates["std-b"] for rates in found.values()), n=len(images), details=found
    )


@proof(
    method="ni-fgsm",
    claim="The look-ahead transfers at least as well as momentum alone.",
    source="Lin et al. 2020, Table 1",
    metric="transfer success, ni-fgsm - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def looking_ahead_transfers_at_least_as_well(lab: Lab) -> Measured:
    """From std-a to std-b."""
    return _better(_pair(lab, "ni-fgsm", "std-b"), _pair(lab, "mi-fgsm", "std-b"), "mi-fgsm")


@proof(
    method="di-fgsm",
    claim="Random resizing makes momentum transfer better.",
    source="Xie et al. 2019, Table 1 (M-DI2-FGSM against MI-FGSM)",
    metric="transfer success, di-fgsm - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def diverse_inputs_transfer_at_least_as_well(lab: Lab) -> Measured:
    """From std-a to std-b."""
    return _better(_pair(lab, "di-fgsm", "std-b"), _pair(lab, "mi-fgsm", "std-b"), "mi-fgsm")


@proof(
    method="ti-fgsm",
    claim="Against an adversarially trained victim, a smoothed gradient transfers at least as well as a plain one.",
    source="Dong et al. 2019, Table 1",
    metric="transfer success on at, ti-fgsm - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def smoothed_gradients_transfer_to_robust_victims(lab: Lab) -> Measured:
    """From std-a to at."""
    return _better(_pair(lab, "ti-fgsm", "at"), _pair(lab, "mi-fgsm", "at"), "mi-fgsm")


@proof(
    method="si-fgsm",
    claim="Copies at several scales make momentum transfer better.",
    source="Lin et al. 2020, Table 3",
    metric="transfer success, si-fgsm - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def scaled_copies_transfer_at_least_as_well(lab: Lab) -> Measured:
    """From std-a to std-b."""
    return _better(_pair(lab, "si-fgsm", "std-b"), _pair(lab, "mi-fgsm", "std-b"), "mi-fgsm")


@proof(
    method="vmi-fgsm",
    claim="Variance tuning makes momentum transfer better.",
    source="Wang & He 2021, Table 1",
    metric="transfer success, vmi-fgsm - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def variance_tuning_transfers_at_least_as_well(lab: Lab) -> Measured:
    """From std-a to std-b."""
    return _better(_pair(lab, "vmi-fgsm", "std-b"), _pair(lab, "mi-fgsm", "std-b"), "mi-fgsm")


@proof(
    method="admix",
    claim="Mixing in other images transfers better than scaling alone.",
    source="Wang et al. 2021, Table 1 (against SIM)",
    metric="transfer success, admix - si-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def mixing_in_others_transfers_at_least_as_well(lab: Lab) -> Measured:
    """From std-a to std-b."""
    return _better(_pair(lab, "admix", "std-b"), _pair(lab, "si-fgsm", "std-b"), "si-fgsm")


@proof(
    method="svre",
    claim="Reducing the variance between members transfers better than fusing them.",
    source="Xiong et al. 2022, Table 1",
    metric="transfer success, svre - mi-fgsm on the ensemble",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def variance_reduction_transfers_at_least_as_well(lab: Lab) -> Measured:
    """From the ensemble of std-a and std-cnn to std-b."""
    return _better(
        _pair(lab, "svre", "std-b", "both"), _pair(lab, "mi-fgsm", "std-b", "both"), "mi-fgsm on the ensemble"
    )


@proof(
    method="mi-di-ti",
    claim="Against an adversarially trained victim, the combination transfers at least as well as momentum alone.",
    source="Dong et al. 2019, Table 3",
    metric="transfer success on at, mi-di-ti - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def mi_di_ti_transfers_to_robust_victims(lab: Lab) -> Measured:
    """From std-a to at."""
    return _better(_pair(lab, "mi-di-ti", "at"), _pair(lab, "mi-fgsm", "at"), "mi-fgsm")


@proof(
    method="ni-si-ti-di",
    claim="Against an adversarially trained victim, the combination transfers at least as well as momentum alone.",
    source="Lin et al. 2020, Table 5",
    metric="transfer success on at, ni-si-ti-di - mi-fgsm",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.0},
    note=_ON_DIGITS,
)
def ni_si_ti_di_transfers_to_robust_victims(lab: Lab) -> Measured:
    """From std-a to at."""
    return _better(_pair(lab, "ni-si-ti-di", "at"), _pair(lab, "mi-fgsm", "at"), "mi-fgsm")


# --- by l_2 norms -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _l2(lab: Lab) -> L2Report:
    """The comparison from std-a to the two others."""
    models, images = standard(lab), _images(lab)
    victims = {name: models[name] for name in ("std-b", "std-cnn")}
    attacks = L2Transferability().attacks
    if lab.scale == "smoke":
        attacks = tuple("ti-fgsm(kernel=3)" if spec == "ti-fgsm" else spec for spec in attacks)
    return L2Transferability(attacks=attacks, eps=radius(lab))({"std-a": models["std-a"]}, victims, images, run=lab.run)


@proof(
    method="l2-transferability",
    claim="At the same l_inf radius, momentum makes perturbations that are larger in l_2.",
    source="Chen et al. 2021, abstract (70 % to 130 % larger)",
    metric="mean l_2 norm, mi-fgsm / i-fgsm",
    better="higher",
    threshold={"smoke": 1.0, "cpu": 1.2},
)
def momentum_makes_larger_perturbations(lab: Lab) -> Measured:
    """Both on std-a, after rounding to 8 bits."""
    report = _l2(lab)
    norms = {row.attack: row.l2 for row in report.rows}
    return Measured(value=norms["mi-fgsm"] / norms["i-fgsm"], details=report.to_json())


@proof(
    method="l2-transferability",
    claim="Attacks transfer better the larger their perturbations are in l_2.",
    source="Chen et al. 2021, abstract",
    metric="Spearman correlation of mean l_2 norm and transfer success over six attacks",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.5},
    note="The mean over the two victims. At smoke scale only the sign is asked for.",
)
def larger_perturbations_transfer_better(lab: Lab) -> Measured:
    """I-FGSM, FGSM, MI, DI, TI and SI-NI, from std-a to std-b and std-cnn."""
    report = _l2(lab)
    found = {victim: report.correlation("std-a", victim) or 0.0 for victim in ("std-b", "std-cnn")}
    return Measured(value=mean_of(list(found.values())), details=found)


@proof(
    method="l2-transferability",
    claim="At equal l_2 norm, the gap between MI-FGSM and I-FGSM shrinks to at most 0.7 of what it was.",
    source="Chen et al. 2021 (the matching is ours)",
    metric="matched gap - 0.7 * unmatched gap",
    better="lower",
    threshold={"smoke": 0.02, "cpu": 0.0},
    note="The mean over the two victims; norms are matched at the smallest mean of all attacks. " + _ON_DIGITS,
)
def matched_norms_close_the_gap(lab: Lab) -> Measured:
    """From std-a to std-b and std-cnn."""
    gains = [_l2(lab).gain("std-a", "mi-fgsm", victim) for victim in ("std-b", "std-cnn")]
    matched, total = (mean_of([gain[name] for gain in gains]) for name in ("matched", "total"))
    return Measured(
        value=matched - 0.7 * total,
        baseline=total,
        baseline_name="unmatched gap",
        details={"matched_gap": matched, "by_victim": gains},
    )
