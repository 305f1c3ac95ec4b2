"""Whether the same image always gets the same answer, whenever it is asked for and whoever shares its batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.models import asked_afresh

__all__ = ["Determinism"]


@dataclass(frozen=True, kw_only=True)
class Determinism(Check):
    """Logits over repeated runs, batch sizes, and batches of other neighbours.

    Args:
        runs: repetitions.
        batch_sizes: beside that of the run.
    """

    id = "determinism"
    section = "sanity"
    title = "Determinism"
    question = "Does an image always get the same answer, whoever shares its batch?"

    runs: int = 3
    batch_sizes: tuple[int, ...] = (1, 7, 32)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        with asked_afresh(subject.model):
            return self._compare(subject)

    def _compare(self, subject: Subject) -> Answer:
        x = to_float(subject.first(subject.profile.sanity_images).x).contiguous(memory_format=torch.channels_last)
        reference = subject.respond(x)
        scale = max(1.0, float(reference[torch.isfinite(reference)].abs().max()))
        others = {f"run {i}": subject.respond(x) for i in range(2, self.runs + 1)}
        others |= {f"batches of {size}": subject.respond(x, batch_size=size) for size in self.batch_sizes}
        # Every image among strangers: in reverse order, beside the negatives of the others.
        strangers = torch.stack([x.flip(0), 1 - x], 1).flatten(0, 1)
        others["other neighbours"] = subject.respond(strangers)[::2].flip(0)

        differences = {name: _difference(reference, logits) / scale for name, logits in others.items()}
        flips = {name: reference.argmax(1) != logits.argmax(1) for name, logits in others.items()}
        worst = max(differences, key=lambda name: differences[name])
        rows: list[list[str | float | int | None]] = [
            [name, differences[name], int(flips[name].sum())] for name in others
        ]
        flipped = torch.stack(list(flips.values())).any(0).numpy()
        causes = [m for m in subject.model.modules() if "Dropout" in type(m).__name__]
        hint = " Its dropout may be active in evaluation mode." if causes else ""
        return Answer(
            metrics=[
                Metric(
                    name="logit-difference",
                    value=differences[worst],
                    n=len(x),
                    better="lower",
                    title=f"Largest difference between logits of one image, relative to the largest logit ({worst})",
                ),
                rate(
                    "label-flips", flipped, better="lower", title="Images whose label is not always the same"
                ).model_copy(
                    # A count of defects, not a sample of chances: zero seen is what is asked for.
                    update={"low": None, "high": None}
                ),
            ],
            figures=[
                Table(
                    title="Compared with the first run",
                    columns=["", "largest relative difference", "labels flipped"],
                    rows=rows,
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Look for randomness and for statistics over the batch in forward(), such as batch norm "
                        f"in training mode.{hint}"
                    )
                )
            ],
            settings={"images": len(x), "runs": self.runs, "batch sizes": list(self.batch_sizes)},
        )


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; a value that is finite in one and not in the other counts as very large."""
    both = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return 1e30
    return float((a - b)[both].abs().max()) if both.any() else 0.0
