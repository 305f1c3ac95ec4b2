"""`digits`: scikit-learn's 1,797 handwritten digits, 8x8 grey; real, small, and always there.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from holdfast.data.images import Data, Images
from holdfast.data.source import Source
from holdfast.data.splits import FRACTIONS, split
from holdfast.run import Run

__all__ = ["Digits"]


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """scikit-learn's 1,797 handwritten digits as floats: 0..16 levels of ink divided by 16, shape (N, 1, 8, 8).

    The split into train, val and test is stratified and always the same, so that a model trained once is never judged
    on what it saw.
    """

    id: ClassVar[str] = "digits"

    def __call__(self, *, run: Run) -> Data:
        """The digits."""
        from sklearn.datasets import load_digits  # takes a second to import, which not every use should pay

        found = load_digits()
        images = Images(
            x=torch.from_numpy(found.images).float().div(16).unsqueeze(1).contiguous(),
            y=torch.from_numpy(found.target).long(),
            classes=tuple(map(str, range(10))),
            name="digits",
        )
        parts = split(images, FRACTIONS, Run(scope=("digits",)))
        return Data(name="digits", train=parts["train"], val=parts["val"], test=parts["test"])
