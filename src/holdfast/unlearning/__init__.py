"""Removing the influence of part of the training data from a model, and telling whether that worked.

Unlearners take a model, the images to forget and those to retain, and return a new model; `forgetting`, `average_gap`
and `divergences` compare it with one that was retrained.
"""

from holdfast.unlearning.evidence import Forgetting, average_gap, divergences, forgetting, mia_nonmember_rate
from holdfast.unlearning.ft import FT
from holdfast.unlearning.reinitialise import reinitialised
from holdfast.unlearning.retrain import Retrain

__all__ = [
    "FT",
    "Forgetting",
    "Retrain",
    "average_gap",
    "divergences",
    "forgetting",
    "mia_nonmember_rate",
    "reinitialised",
]
