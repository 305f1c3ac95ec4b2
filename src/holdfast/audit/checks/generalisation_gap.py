"""How much better the model does on what it learnt from: the measure of overfitting."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Metric
from holdfast.audit.subject import Subject

__all__ = ["GeneralisationGap"]


@dataclass(frozen=True, kw_only=True)
class GeneralisationGap(Check):
    """Training accuracy minus test accuracy, both without augmentation."""

    id = "generalisation-gap"
    section = "accuracy"
    title = "Generalisation gap"
    question = "How much better is it on the images it learnt from?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        train, test = subject.predictions("train"), subject.predictions("test")
        a, b = int(train.correct.sum()), int(test.correct.sum())
        low, high = stats.newcombe(a, len(train), b, len(test))
        return Answer(
            metrics=[
                Metric(
                    name="gap",
                    value=a / len(train) - b / len(test),
                    low=low,
                    high=high,
                    n=len(train) + len(test),
                    unit="points",
                    better="lower",
                    title="Training minus test accuracy",
                ),
                rate("train-accuracy", train.correct, title="Accuracy on training images"),
                rate("test-accuracy", test.correct, title="Accuracy on test images"),
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Regularise: augmentation (crop, flip), weight decay, fewer epochs, or sharpness-aware "
                        "minimisation.",
                        method="sam",
                        command="holdfast show sam",
                    )
                ),
            ],
            settings={"train images": len(train), "test images": len(test)},
            limitations=["The training split is taken at its word: images in it that the model never saw hide a gap."],
        )
