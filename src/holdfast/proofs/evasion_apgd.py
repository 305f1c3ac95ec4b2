"""Proofs of Auto-PGD."""

from __future__ import annotations

import functools

from torch import Tensor, nn

from holdfast.evasion import APGD, PGD
from holdfast.proofs.lab import Lab, correctly_classified
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


class _Sharpened(nn.Module):
    """The model with its logits times a thousand: the same predictions, a softmax that is saturated everywhere."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)


@proof(
    method="apgd",
    claim="Without a step length to tune, APGD-CE is as strong as PGD with the customary one at the same 100 steps.",
    source="Croce and Hein 2020, section 4.1 and Figure 2",
    metric="survival, apgd - pgd",
    better="lower",
    threshold={"smoke": 0.008, "cpu": 0.008},
)
def apgd_is_as_strong_as_well_tuned_pgd(lab: Lab) -> Measured:
    """Rightly classified images that survive APGD-CE, minus those that survive PGD with steps of eps / 4."""
    count = lab.pick(smoke=100, cpu=256)
    eps = lab.pick(smoke=0.15, cpu=8 / 255)
    model = lab.zoo(robust=True)
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    apgd = ~APGD(eps=eps, steps=100).run(model, x, y, run=lab.run).success
    pgd = ~PGD(eps=eps, steps=100, step=eps / 4).run(model, x, y, run=lab.run).success
    return Measured.difference(
        apgd, pgd, "survival under pgd", details={"survival_under_apgd": float(apgd.float().mean())}
    )


@proof(
    method="apgd",
    claim="Led towards each of the likeliest wrong classes, APGD finds what the cross-entropy misses.",
    source="Croce and Hein 2020, Table 2 (APGD-T lowers the figure of APGD-CE on nearly every defence)",
    metric="survival, targeted - untargeted",
    better="lower",
    threshold={"smoke": 0.0, "cpu": -0.01},
)
def targets_find_more_than_the_cross_entropy(lab: Lab) -> Measured:
    """Survival under APGD with nine targets minus survival under APGD-CE, on a robust model."""
    count = lab.pick(smoke=100, cpu=128)
    eps = lab.pick(smoke=0.15, cpu=8 / 255)
    model = lab.zoo(robust=True)
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    targeted = ~APGD(eps=eps, targets=9, steps=lab.pick(smoke=50, cpu=100)).run(model, x, y, run=lab.run).success
    untargeted = ~APGD(eps=eps).run(model, x, y, run=lab.run).success
    return Measured.difference(targeted, untargeted, "survival under apgd-ce")


@functools.lru_cache(maxsize=1)
def _survival_of_the_sharpened(lab: Lab) -> tuple[Tensor, Tensor, Tensor]:
    """Who survives PGD-CE, APGD-CE and APGD-DLR, on an undefended model with sharpened logits."""
    count = lab.pick(smoke=60, cpu=256)
    eps = lab.pick(smoke=0.3, cpu=8 / 255)
    model = _Sharpened(lab.zoo())
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    attacks = (PGD(eps=eps, steps=20), APGD(eps=eps), APGD(eps=eps, loss="dlr"))
    pgd, ce, dlr = (~attack.run(model, x, y, run=lab.run).success for attack in attacks)
    return pgd, ce, dlr


@proof(
    method="apgd",
    claim="Where the softmax is saturated, attacks on the cross-entropy report robustness that is not there.",
    source="Croce and Hein 2020, section 4 (logits rescaled)",
    metric="survival under the better of PGD-CE and APGD-CE",
    better="higher",
    threshold={"smoke": 0.4, "cpu": 0.4},
)
def saturated_logits_mask_the_cross_entropy(lab: Lab) -> Measured:
    """Survival of an undefended model whose logits are multiplied by 1000, under the cross-entropy."""
    pgd, ce, dlr = _survival_of_the_sharpened(lab)
    return Measured.share(
        pgd & ce,
        baseline=float(dlr.float().mean()),
        baseline_name="survival under apgd-dlr",
        details={"survival_under_pgd": float(pgd.float().mean()), "survival_under_apgd_ce": float(ce.float().mean())},
    )


@proof(
    method="apgd",
    claim="The DLR loss, which no scaling of the logits changes, breaks a network whose saturated softmax hides its "
    "gradients from the cross-entropy.",
    source="Croce and Hein 2020, section 4.2",
    metric="survival under APGD-DLR",
    better="lower",
    threshold={"smoke": 0.05, "cpu": 0.05},
)
def dlr_is_not_fooled_by_saturated_logits(lab: Lab) -> Measured:
    """Survival of an undefended model whose logits are multiplied by 1000, under the DLR loss."""
    _, ce, dlr = _survival_of_the_sharpened(lab)
    return Measured.share(dlr, baseline=float(ce.float().mean()), baseline_name="survival under apgd-ce")


@proof(
    method="apgd",
    claim="For l_1, sparse steps of adaptive sparsity that mind the box find more than PGD does in as many steps.",
    source="Croce and Hein 2021, Table 1",
    metric="survival, pgd - apgd",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
)
def for_l1_apgd_beats_pgd(lab: Lab) -> Measured:
    """Survival of a robust model under PGD-100 minus survival under APGD-100, in an l_1 ball."""
    count = lab.pick(smoke=100, cpu=256)
    eps = lab.pick(smoke=3.0, cpu=12.0)
    model = lab.zoo(robust=True)
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    pgd = ~PGD(eps=eps, norm="l1", steps=100).run(model, x, y, run=lab.run).success
    apgd = ~APGD(eps=eps, norm="l1", steps=100).run(model, x, y, run=lab.run).success
    return Measured.difference(
        pgd,
        apgd,
        "survival under pgd",
        baseline="first",
        details={"survival_under_apgd": float(apgd.float().mean())},
    )
