"""Accuracy when one and the same pattern is added to every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, left_out, rate
from holdfast.audit.findings import Action, Gallery, Metric
from holdfast.audit.pictures import difference, picture
from holdfast.audit.subject import Subject
from holdfast.data import Images, to_float
from holdfast.evasion import SGDUAP, Pattern

__all__ = ["UniversalPerturbation"]


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Check):
    """A universal perturbation fitted to training images, and its effect on test images it has not seen.

    Without training images it is fitted to one half of the test images and judged on the other.
    """

    id = "universal-perturbation"
    section = "evasion"
    title = "One pattern for all images"
    question = "Is there one small pattern that makes it err on most images?"
    needs = ("gradients",)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        count, eps = subject.profile.universal_images, subject.policy.threat.eps
        left_out(subject, count)
        fitted_to, judged, source = _split(subject, count)
        attack = SGDUAP(eps=eps)

        def compute() -> dict[str, Tensor]:
            pattern: Pattern = attack.fit(subject.model, fitted_to, run=subject.run)
            effect = pattern.effect(subject.model, judged, run=subject.run)
            return {"v": pattern.v, "clean": effect.clean, "attacked": effect.attacked}

        settings: dict[str, Any] = {"attack": str(attack), "fitted to": len(fitted_to), "images": len(judged)}
        kept = subject.store.tensors("universal", settings, compute)
        right, hit = ((kept[name] == judged.y).numpy() for name in ("clean", "attacked"))
        low, high = stats.newcombe_paired(right, hit)
        return Answer(
            metrics=[
                Metric(
                    name="drop",
                    value=float(right.mean() - hit.mean()),
                    low=low,
                    high=high,
                    n=len(judged),
                    unit="points",
                    better="lower",
                    title="Accuracy lost to one pattern for all images",
                ),
                rate("universal-accuracy", hit, title="Accuracy with the pattern added"),
                rate(
                    "fooling-rate",
                    (kept["attacked"] != kept["clean"]).numpy(),
                    title="Share of predictions that the pattern changes",
                    better="lower",
                ),
            ],
            figures=_gallery(subject, judged, kept),
            remedies=[
                Remedy(
                    Action(
                        text="Adversarial training stops universal patterns before it stops those made for one image.",
                        method="pgd-at",
                        command="holdfast show pgd-at",
                    ),
                    when="drop",
                )
            ],
            settings=settings | {"norm": "linf", "eps": eps, "split": source},
            limitations=[
                "A pattern by gradients on this model; one made for a single class may do more to that class."
            ],
        )


def _split(subject: Subject, count: int) -> tuple[Images, Images, str]:
    """Images to fit to, images to judge on, and where they come from."""
    test = subject.first(subject.profile.test_images)
    if subject.has("train"):
        train = subject.images("train")
        return train.select(slice(0, count)), test, "fitted to training images, judged on test images"
    half = torch.arange(len(test)) % 2 == 0
    return test.select(half).select(slice(0, count)), test.select(~half), "fitted to one half of the test images"


def _gallery(subject: Subject, judged: Images, kept: dict[str, Tensor]) -> list[Gallery]:
    classes, seen = subject.data.classes, kept["attacked"]
    fooled = ((kept["clean"] == judged.y) & (seen != judged.y)).nonzero().flatten().tolist()
    if not fooled:
        return []
    groups = []
    for i in fooled[: max(1, subject.profile.gallery // 2)]:
        clean = to_float(judged.x[i])
        changed = (clean + kept["v"]).clamp(0, 1)
        groups.append(
            [
                picture(clean, classes[int(judged.y[i])], "clean"),
                picture(changed, classes[int(seen[i])], "with the pattern"),
                difference(clean, changed),
            ]
        )
    return [Gallery(title="The pattern on test images", groups=groups, caption="The same pattern each time.")]
