"""What is left of a guarded model's robustness once the attacker knows the guard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.errors import UserError
from holdfast.evasion import PGD, Evasion, Square
from holdfast.evasion.adaptive import Adaptive

__all__ = ["Guard"]


@dataclass(frozen=True, kw_only=True)
class Guard(Check):
    """The same attacks on a guarded model, by someone who does not know the guard and by someone who does."""

    id = "guard"
    section = "evasion"
    title = "The guard, once it is known"
    question = "Does its robustness rest on the attacker's not knowing the guard?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        if not isinstance(subject.model, Adaptive):
            raise UserError("The model has no guard that says how an attacker sees it who knows it.")
        n = len(subject.first(subject.profile.guard_images))
        correct = subject.predictions("test").correct[:n]
        standing = {"unaware": correct.copy(), "knowing": correct.copy()}
        rows: list[list[str | float | int | None]] = []
        for attack in _attacks(subject):
            survived = {}
            for who, left in standing.items():
                found = subject.attacked(attack, np.arange(n), knowing=who == "knowing")
                survived[who] = ~found.success
                left &= survived[who]
            rows.append([str(attack), float(survived["unaware"].mean()), float(survived["knowing"].mean())])
        # Whoever knows the guard can also attack as if they did not.
        knowing: NDArray[np.bool_] = standing["unaware"] & standing["knowing"]
        low, high = stats.newcombe_paired(standing["unaware"], knowing)
        return Answer(
            metrics=[
                Metric(
                    name="gap",
                    value=float(standing["unaware"].mean() - knowing.mean()),
                    low=low,
                    high=high,
                    n=n,
                    unit="points",
                    better="lower",
                    title="Robust accuracy lost once the guard is known",
                ),
                rate("unaware-accuracy", standing["unaware"], title="Accuracy under attack, the guard unknown"),
                rate("knowing-accuracy", knowing, title="Accuracy under attack, the guard known"),
                rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
            ],
            figures=[
                Table(
                    title="Attacks without and with knowledge of the guard",
                    columns=["attack", "guard unknown", "guard known"],
                    rows=rows,
                    percent=["guard unknown", "guard known"],
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Count the guard as a delay, not as robustness, and harden the model behind it.",
                        method="pgd-at",
                        command="holdfast show pgd-at",
                    ),
                    when="gap",
                )
            ],
            settings={"eps": subject.policy.threat.eps, "attacks": [str(a) for a in _attacks(subject)], "images": n},
            limitations=["The attacker who knows the guard uses what the guard itself offers; others may find better."],
            samples={"test": {"guard.knowing": knowing, "guard.unaware": standing["unaware"]}},
        )


def _attacks(subject: Subject) -> list[Evasion]:
    profile, eps = subject.profile, subject.policy.threat.eps
    square = Square(eps=eps, queries=profile.square_queries)
    if subject.only_answers:
        return [square]
    return [PGD(eps=eps, steps=profile.pgd_steps), PGD(eps=eps, steps=profile.pgd_steps, loss="margin"), square]
