"""Proofs of hardening methods."""

from __future__ import annotations

from holdfast import stats
from holdfast.evasion import PGD
from holdfast.proofs.lab import Base, Lab, accuracy
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


@proof(
    method="pgd-at",
    claim="Training on PGD examples buys robust accuracy that standard training does not have.",
    source="Madry et al. 2018, Table 2 (CIFAR-10, wide: 45.8 % under 20-step PGD, standard training 0 %)",
    metric="robust accuracy under PGD-20",
    better="higher",
    threshold={"smoke": 0.5, "cpu": 0.22},
    note="At cpu scale four epochs of ResNet-20 with a 3-step attack stand in for 200 epochs of a wide network with "
    "10 steps; the threshold was set for that budget before any run.",
)
def adversarial_training_buys_robustness(lab: Lab) -> Measured:
    """PGD-AT and standard training with one recipe; robust accuracy of both under the same attack."""
    if lab.scale == "smoke":
        recipe, attack, count = lab.small(), PGD(eps=0.15, steps=20, step=0.03), 200
        objective = "pgd-at(eps=0.15, step=0.075, steps=3)"
    else:
        recipe, attack, count = Base(epochs=4), PGD(eps=8 / 255, steps=20, step=2 / 255), 1000
        objective = "pgd-at(eps=8/255, step=4/255, steps=3)"
    test = lab.data.test.select(slice(0, count))
    robust, clean = {}, {}
    from dataclasses import replace

    for name, base in (("standard", recipe), ("pgd-at", replace(recipe, objective=objective))):
        model = lab.model(base)
        clean[name] = accuracy(model, lab.data.test, lab.run)
        x, y = next(test.batches(count))
        robust[name] = 1 - float(attack.run(model, x, y, run=lab.run).success.float().mean())
    low, high = stats.wilson(round(robust["pgd-at"] * count), count)
    return Measured(
        value=robust["pgd-at"],
        low=low,
        high=high,
        baseline=robust["standard"],
        baseline_name="standard training",
        n=count,
        details={"clean_accuracy": clean, "attack": str(attack)},
    )
