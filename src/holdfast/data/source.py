"""The kind of a data set that has a name: ``digits``, ``shapes32(n=2000)``."""

from __future__ import annotations

from abc import abstractmethod

from holdfast.data.images import Data
from holdfast.methods import Method
from holdfast.run import Run

__all__ = ["Source"]


class Source(Method, kind="data set"):
    """A data set by name. Its settings are validated as those of methods; it stays out of the catalogue."""

    @abstractmethod
    def __call__(self, *, run: Run) -> Data:
        """Load or draw it; `run` serves for a progress bar alone."""
