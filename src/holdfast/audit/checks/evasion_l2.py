"""Accuracy when someone changes inputs on purpose, by little in the Euclidean norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audit.check import Answer, Check, Remedy, left_out, rate
from holdfast.audit.findings import Action
from holdfast.audit.subject import Subject
from holdfast.evasion import AutoAttack

__all__ = ["EvasionL2"]


@dataclass(frozen=True, kw_only=True)
class EvasionL2(Check):
    """AutoAttack in l_2, with the budget of the profile.

    A few pixels may change much where the others do not change at all: robustness in the maximum norm says little of
    it.
    """

    id = "evasion-l2"
    section = "evasion"
    title = "Attacks in the Euclidean norm"
    question = "Can a small change make it err, small over all pixels together?"
    needs = ("gradients",)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        profile, eps = subject.profile, subject.policy.threat.eps_l2
        left_out(subject, profile.l2_images)
        n = len(subject.first(profile.l2_images))
        correct = subject.predictions("test").correct[:n]
        targets = max(1, min(profile.apgd_targets, subject.data.num_classes - 1))
        attack = AutoAttack(
            eps=eps,
            norm="l2",
            steps=max(1, profile.apgd_steps),
            targets=targets,
            queries=profile.square_queries,
        )
        found = subject.attacked(attack, np.arange(n))
        return Answer(
            metrics=[
                rate("robust-accuracy", ~found.success, title=f"Accuracy under AutoAttack, l_2 up to {eps:g}"),
                rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Train against attacks in this norm: robustness in one norm buys only a part of that in "
                        "another.",
                        method="pgd-at",
                        command="holdfast show pgd-at",
                    ),
                    when="robust-accuracy",
                )
            ],
            settings={"norm": "l2", "eps": eps, "attack": str(attack), "images": n},
            limitations=["An attack shows what breaks; what it does not break may still break."],
            doubt=subject.doubt,
            samples={"test": {"l2.success": found.success}},
        )
