"""Proofs of PubDef, the defence against images made on public models.

The networks are those of `holdfast.proofs.evasion_transfer`: trained from ``std-a`` on images attacked on ``std-cnn``
and ``at``; ``std-b`` is a source that was not trained on.
"""

from __future__ import annotations

import copy
import dataclasses
import functools

from torch import Tensor

from holdfast import stats
from holdfast.evasion import PGD
from holdfast.hardening import PubDef, WorstTransfer, transfer_sets, worst_transfer
from holdfast.proofs.evasion_transfer import attack_at, radius, standard
from holdfast.proofs.lab import Lab, accuracy
from holdfast.proofs.proof import Measured, proof
from holdfast.training import SGD, OneCycle, fit

__all__: list[str] = []


@dataclasses.dataclass(frozen=True, eq=False)
class _Defended:
    """PubDef, and what it is compared with, under the same attacks from the same sources."""

    pubdef: WorstTransfer
    undefended: WorstTransfer
    clean: dict[str, float]
    white_box: float
    n: int

    def details(self) -> dict[str, object]:
        return {
            "clean_accuracy": self.clean,
            "white_box_pgd_20": self.white_box,
            "pubdef": self.pubdef.to_json(),
            "undefended": self.undefended.to_json(),
        }


@functools.lru_cache(maxsize=2)
def _defended(lab: Lab) -> _Defended:
    """Four epochs from std-a on images attacked on std-cnn and at; std-b is a source that was not trained on."""
    models, robust = standard(lab), lab.zoo(robust=True)
    sources = {"std-cnn": models["std-cnn"], "at": robust, "std-b": models["std-b"]}
    assert lab.data.train is not None
    run = lab.run.but(precision=lab.precision)
    train = lab.data.train.select(slice(0, 10_000))
    augment = lab.pick(smoke=(), cpu=("crop", "flip"))
    seen = ("std-cnn", "at")
    copies = lab.pick(smoke=4, cpu=1)
    stack = transfer_sets(train, [sources[name] for name in seen], eps=radius(lab), copies=copies, run=run)
    model = fit(
        copy.deepcopy(models["std-a"]),
        stack,
        epochs=lab.pick(smoke=20, cpu=4),
        objective=PubDef(loss="random", transforms=augment),
        optimizer=SGD(lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=OneCycle(),
        transforms=list(augment),
        run=run,
    ).model
    attacks = [
        attack_at(lab, s) for s in ("i-fgsm(random_start=true)", "mi-fgsm", "di-fgsm", "ni-si-ti-di", "apgd(steps=50)")
    ]
    test = lab.data.test.select(slice(0, lab.pick(smoke=150, cpu=300)))
    compared = {"pubdef": model, "undefended": models["std-a"]}
    found = worst_transfer(compared, sources, attacks, test, seen=seen, run=lab.run)
    x, y = next(test.batches(len(test)))
    return _Defended(
        **found,
        clean={name: accuracy(m, lab.data.test, lab.run) for name, m in {**compared, "at": robust}.items()},
        white_box=PGD(eps=radius(lab), steps=20).run(model, x, y, run=lab.run).robust_accuracy,
        n=len(test),
    )


def _worst(found: WorstTransfer) -> Tensor:
    return found.right[found.worst]


@proof(
    method="pubdef",
    claim="Trained on two public sources, the network keeps its accuracy under the worst of all pairs of a source and "
    "an attack far better than before.",
    source="Sitawarin et al. 2024, Table 1 (CIFAR-10, 88.6 % against 69.4 % for the best previous defence)",
    metric="least accuracy over pairs, pubdef - undefended",
    better="higher",
    threshold={"smoke": 0.1, "cpu": 0.25},
    note="Made cheaper at cpu scale before its first whole run there: 10,000 training images instead of 15,000, with a "
    "peak rate of 0.02 for the fewer steps instead of 0.05, and 300 test images instead of 500.",
)
def pubdef_withstands_transfer_attacks(lab: Lab) -> Measured:
    """Sources std-cnn and at (seen) and std-b (unseen); attacks PGD (seen), MI, DI, NI-SI-TI-DI and APGD (unseen)."""
    found = _defended(lab)
    low, high = stats.newcombe_paired(_worst(found.pubdef).numpy(), _worst(found.undefended).numpy())
    return Measured(
        value=found.pubdef.worst_accuracy - found.undefended.worst_accuracy,
        low=low,
        high=high,
        baseline=found.undefended.worst_accuracy,
        baseline_name="undefended",
        n=found.n,
        details=found.details(),
    )


@proof(
    method="pubdef",
    claim="It costs hardly any clean accuracy.",
    source="Sitawarin et al. 2024, Table 1",
    metric="clean accuracy, pubdef - undefended",
    better="higher",
    threshold={"smoke": -0.04, "cpu": -0.04},
)
def pubdef_keeps_clean_accuracy(lab: Lab) -> Measured:
    """On the whole test set."""
    clean = _defended(lab).clean
    return Measured(
        value=clean["pubdef"] - clean["undefended"],
        baseline=clean["undefended"],
        baseline_name="undefended",
        details=clean,
    )


@proof(
    method="pubdef",
    claim="Its clean accuracy is far above that of adversarial training.",
    source="Sitawarin et al. 2024, Table 1",
    metric="clean accuracy, pubdef - at",
    better="higher",
    threshold={"smoke": -0.02, "cpu": 0.1},
    note="On digits, at smoke scale, adversarial training costs next to nothing, so there it only has to keep up.",
)
def pubdef_is_more_accurate_than_adversarial_training(lab: Lab) -> Measured:
    """On the whole test set; white-box robustness, which it does not have, is in the details."""
    found = _defended(lab)
    return Measured(
        value=found.clean["pubdef"] - found.clean["at"],
        baseline=found.clean["at"],
        baseline_name="adversarial training",
        details=found.details(),
    )


@proof(
    method="pubdef",
    claim="What it has learnt holds for a source that it was not trained on.",
    source="Sitawarin et al. 2024, section 5.2",
    metric="mean accuracy, seen - unseen sources",
    better="lower",
    threshold={"smoke": 0.12, "cpu": 0.12},
    note="Changed after its first smoke run, which failed (0.134): at smoke scale the training now has the paper's 4 "
    "copies per source instead of 1, and 20 epochs instead of 8.",
)
def pubdef_generalises_to_other_sources(lab: Lab) -> Measured:
    """The mean over attacks from std-cnn and at, minus that from std-b."""
    found = _defended(lab).pubdef
    seen, unseen = found.mean_over(seen=True) or 0.0, found.mean_over(seen=False) or 0.0
    return Measured(value=seen - unseen, baseline=seen, baseline_name="seen sources", details=found.to_json())
