"""holdfast audits PyTorch classifiers along every axis of machine-learning safety, and mends what it finds."""

from importlib.metadata import PackageNotFoundError, version

from holdfast.errors import UserError
from holdfast.run import Run

try:
    __version__ = version("holdfast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Run", "UserError", "__version__"]
