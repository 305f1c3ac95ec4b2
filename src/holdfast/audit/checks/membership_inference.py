"""Whether the model gives away which images it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast import catalog
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series, Table
from holdfast.audit.subject import Subject
from holdfast.errors import UserError
from holdfast.privacy import Leakage, MembershipInference, leakage

__all__ = ["MembershipInferenceCheck"]

_FPR = 0.01
# What is stronger, and needs to know how the model was trained.
_NEXT = "holdfast membership --model MODEL --data DATA --attack lira --shadows 16 --recipe RECIPE.yaml --out membership"


@dataclass(frozen=True, kw_only=True)
class MembershipInferenceCheck(Check):
    """Attacks that guess membership from one query: how many members are exposed at one false alarm in a hundred.

    Args:
        attacks: specs of methods of kind membership.
    """

    id = "membership-inference"
    section = "privacy"
    title = "Membership inference"
    question = "Does it give away who was in its training data?"
    needs = ("scores",)

    attacks: tuple[str, ...] = ("loss-mia", "confidence-mia", "entropy-mia", "modified-entropy-mia")

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        if not subject.has("train"):
            raise UserError("There are no training images, so there are no members to recognise.")
        members, others = subject.features("train"), subject.features("test")
        rng, resamples = subject.run.numpy_rng("membership-inference"), subject.profile.resamples
        scores, found = {}, {}
        for spec in self.attacks:
            attack = catalog.build(spec, kind=MembershipInference)
            inside, outside = attack.score(members).numpy(), attack.score(others).numpy()
            scores[attack.id] = (inside, outside)
            found[attack.id] = leakage(inside, outside, rng=rng, resamples=resamples)
        strongest = max(found, key=lambda name: (found[name].tpr[_FPR] or 0.0, found[name].auc))
        samples: dict[str, dict[str, np.ndarray[Any, Any]]] = {"train": {}, "test": {}}
        for name, (inside, outside) in scores.items():
            samples["train"][name], samples["test"][name] = inside.astype(np.float32), outside.astype(np.float32)
        return Answer(
            metrics=[
                _exposed("tpr-at-fpr-1", found[strongest], f"Members recognised at 1 % false alarms (by {strongest})"),
                *(m for name, leak in found.items() for m in _metrics(name, leak)),
            ],
            figures=[_curve(scores), _table(found)],
            remedies=[
                Remedy(
                    Action(
                        text="Membership shows through overfitting: see the generalisation gap, regularise, or train "
                        "for fewer epochs. A guarantee needs training with differential privacy."
                    )
                ),
                Remedy(
                    Action(
                        text="Attacks that compare the model with others of its kind find more, and who in particular "
                        "is exposed.",
                        method="lira",
                        command=_NEXT,
                    )
                ),
            ],
            settings={
                "members": f"{len(members)} training images",
                "non-members": f"{len(others)} test images",
                "attacks": list(self.attacks),
                "resamples": resamples,
            },
            limitations=[
                "Attacks with shadow models are stronger: this shows what one query gives away, not all there is. "
                f"Next: {_NEXT}",
                f"The strongest of {len(self.attacks)} attacks is chosen on the images it is judged on, which flatters "
                "it a little.",
                "Members and test images must be of the same kind; a shift between them looks like leakage.",
            ],
            samples=samples,
        )


def _exposed(name: str, leak: Leakage, title: str) -> Metric:
    low, high = leak.tpr_intervals.get(_FPR, (None, None))
    return Metric(
        name=name,
        value=leak.tpr[_FPR],
        low=low,
        high=high,
        n=leak.n_members + leak.n_nonmembers,
        unit="rate",
        better="lower",
        title=title,
    )


def _metrics(name: str, leak: Leakage) -> list[Metric]:
    shared: dict[str, Any] = {"n": leak.n_members + leak.n_nonmembers, "better": "lower"}
    return [
        _exposed(f"tpr-at-fpr-1/{name}", leak, f"Members recognised at 1 % false alarms, {name}"),
        Metric(
            name=f"auc/{name}",
            value=leak.auc,
            low=leak.auc_interval[0],
            high=leak.auc_interval[1],
            title=f"AUC of {name} (0.5 is chance)",
            **shared,
        ),
        Metric(
            name=f"balanced-accuracy/{name}",
            value=leak.balanced_accuracy,
            low=leak.balanced_accuracy_interval[0],
            high=leak.balanced_accuracy_interval[1],
            unit="rate",
            title=f"Balanced accuracy of {name} (50 % is chance)",
            **shared,
        ),
    ]


def _curve(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> Chart:
    fprs = np.logspace(-3, 0, 40)
    series = []
    for name, (inside, outside) in scores.items():
        order = np.sort(outside)[::-1]
        thresholds = order[np.minimum((fprs * len(order)).astype(int), len(order) - 1)]
        tprs = [float((inside > t).mean()) if f < 1 else 1.0 for f, t in zip(fprs, thresholds, strict=True)]
        series.append(Series(name=name, x=fprs.tolist(), y=list(tprs)))
    series.append(Series(name="chance", x=fprs.tolist(), y=list(fprs.tolist())))
    return Chart(
        kind="line",
        title="Members recognised",
        x_label="false alarms",
        y_label="members recognised",
        series=series,
        log_x=True,
        log_y=True,
    )


def _table(found: dict[str, Leakage]) -> Table:
    return Table(
        title="Attacks",
        columns=["attack", "AUC", "balanced accuracy", "recognised at 1 % false alarms", "at 0.1 %"],
        rows=[
            [name, leak.auc, leak.balanced_accuracy, leak.tpr[_FPR], leak.tpr.get(0.001)]
            for name, leak in found.items()
        ],
        percent=["balanced accuracy", "recognised at 1 % false alarms", "at 0.1 %"],
        caption="Empty cells: too few test images for so few false alarms.",
    )
