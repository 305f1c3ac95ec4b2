"""Optimisation: wrappers that change how an optimizer steps, for `holdfast.training.fit` or any loop with closures.

`sam.py` seeks flat minima.
"""

from holdfast.optim.sam import SAM

__all__ = ["SAM"]
