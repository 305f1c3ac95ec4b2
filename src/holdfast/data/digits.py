"""`digits`: scikit-learn's 1,797 handwritten digits, 8x8 grey; real, small, and always there.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
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
        table = _table()
        images = Images(
            x=torch.from_numpy(table[:, :-1]).float().div(16).reshape(-1, 1, 8, 8),
            y=torch.from_numpy(table[:, -1]).long(),
            classes=tuple(map(str, range(10))),
            name="digits",
        )
        parts = split(images, FRACTIONS, Run(scope=("digits",)))
        return Data(name="digits", train=parts["train"], val=parts["val"], test=parts["test"])


def _table() -> np.ndarray[Any, Any]:
    """The levels of the 64 pixels and the digit, a row for each image, float64 (1797, 65).

    scikit-learn takes a second and a half to import. Its file of digits takes none.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # which knows where else it may be

    found = load_digits()
    return np.column_stack([found.data, found.target])
