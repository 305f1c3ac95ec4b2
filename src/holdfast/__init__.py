"""holdfast audits PyTorch classifiers along every axis of machine-learning safety, and mends what it finds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError

if TYPE_CHECKING:
    from holdfast.run import Run

try:
    __version__ = version("holdfast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Run", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; `holdfast --help` should not.
    if name == "Run":
        from holdfast.run import Run

        return Run
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
