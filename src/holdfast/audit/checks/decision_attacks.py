"""Accuracy when someone who sees nothing but labels changes inputs on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audit.check import Answer, Check, left_out, rate
from holdfast.audit.findings import Metric
from holdfast.audit.subject import Subject
from holdfast.errors import UserError
from holdfast.evasion import HopSkipJump

__all__ = ["DecisionAttacks"]


@dataclass(frozen=True, kw_only=True)
class DecisionAttacks(Check):
    """HopSkipJump, which asks for labels alone.

    What it finds, no hiding of scores or gradients would have prevented.
    """

    id = "decision-attacks"
    section = "evasion"
    title = "Attacks that see labels only"
    question = "Can someone who sees only its labels find small changes that make it err?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        profile, eps = subject.profile, subject.policy.threat.eps
        left_out(subject, profile.decision_images)
        if subject.labels_only:
            raise UserError("The model gives labels alone, so that the check of attacks is this one already.")
        n = len(subject.first(profile.decision_images))
        correct = subject.predictions("test").correct[:n]
        attack = HopSkipJump(norm="linf", queries=profile.decision_queries)
        right = np.flatnonzero(correct)
        found = subject.attacked(attack, right)
        away = np.where(found.success, found.distance, np.inf)
        standing = correct.copy()
        standing[right[away <= eps]] = False
        metrics = [
            rate("label-only-accuracy", standing, title=f"Accuracy after {attack.queries} queries for labels"),
            rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
        ]
        if np.isfinite(away).any():
            metrics.append(
                Metric(
                    name="median-distance",
                    value=float(np.median(away[np.isfinite(away)])),
                    n=len(away),
                    unit="radius",
                    better="higher",
                    title="Median distance of the errors found (l_inf)",
                )
            )
        return Answer(
            metrics=metrics,
            settings={"norm": "linf", "eps": eps, "attack": str(attack), "images": n},
            limitations=["More queries find nearer errors; gradients, where an attacker has them, far nearer ones."],
        )
