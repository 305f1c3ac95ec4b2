"""Whether test images are also in the training data, which would make every number here too good."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Gallery, Metric
from holdfast.audit.pictures import picture
from holdfast.audit.subject import Subject
from holdfast.data import Images
from holdfast.errors import UserError

__all__ = ["Leakage"]


@dataclass(frozen=True, kw_only=True)
class Leakage(Check):
    """Test images that occur, pixel by pixel, in the training split; all images of both are compared."""

    id = "leakage"
    section = "sanity"
    title = "Leakage"
    question = "Was it trained on images it is tested on?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        test, train = subject.data.test, subject.data.train
        if train is None:
            raise UserError("There are no training images to look for the test images in.")
        if train.x.dtype != test.x.dtype:
            raise UserError("Training and test images are of different types, so equal ones cannot be told.")
        in_train = _hashes(train)
        own = _hashes(test)
        leaked = np.isin(own, in_train)
        _, first = np.unique(own, return_index=True)
        order = subject.indices("test")
        return Answer(
            metrics=[
                # All images are compared, so that the share is known and needs no interval.
                rate(
                    "exact-duplicates", leaked, better="lower", title="Test images that are also training images"
                ).model_copy(update={"low": None, "high": None}),
                Metric(
                    name="repeated-test-images",
                    value=len(own) - len(first),
                    n=len(own),
                    unit="count",
                    better="lower",
                    title="Test images that repeat another test image",
                ),
            ],
            figures=_gallery(test, leaked, subject.profile.gallery),
            remedies=[
                Remedy(
                    Action(text="Remove the duplicates from the training data and train again, or from the test data.")
                )
            ],
            settings={"test images": len(test), "training images": len(train)},
            limitations=["Near duplicates (cropped, recompressed, of the same scene) are not looked for."],
            samples={"test": {"in-train": leaked[order]}},
        )


def _hashes(images: Images) -> NDArray[np.uint64]:
    rows = (hashlib.blake2b(x.contiguous().numpy().tobytes(), digest_size=8).digest() for x in images.x)
    return np.frombuffer(b"".join(rows), dtype=np.uint64)


def _gallery(test: Images, leaked: NDArray[np.bool_], most: int) -> list[Gallery]:
    shown = np.flatnonzero(leaked)[:most].tolist()
    if not shown:
        return []
    groups = [[picture(test.x[i], test.classes[int(test.y[i])], f"test image {i}")] for i in shown]
    return [Gallery(title="Test images that were trained on", groups=groups)]
