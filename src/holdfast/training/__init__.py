"""Training: `fit`, the one loop; its optimizers, schedules, losses and augmentation; recipes in YAML.

`fit` trains any module on images in memory; `train` does so by a recipe and writes weights, metrics and a card.
"""

from holdfast.training.clip_gradient import ClipGradient
from holdfast.training.color_jitter import ColorJitter
from holdfast.training.crop import Crop
from holdfast.training.cross_entropy import CrossEntropy
from holdfast.training.cutout import Cutout
from holdfast.training.fit import FitResult, fit
from holdfast.training.flip import Flip
from holdfast.training.grayscale import Grayscale
from holdfast.training.logit_adjustment import LogitAdjustment
from holdfast.training.optimizers import SGD, Adam, AdamW, Optimizer, SignSGD
from holdfast.training.order import Alternating, Interleaved, InTurn, Order, Shuffled
from holdfast.training.recipe import Recipe
from holdfast.training.schedules import Constant, Cosine, MultiStep, OneCycle, Schedule
from holdfast.training.state import Companion, State, Step, statistics_kept
from holdfast.training.train import train

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Alternating",
    "ClipGradient",
    "ColorJitter",
    "Companion",
    "Constant",
    "Cosine",
    "Crop",
    "CrossEntropy",
    "Cutout",
    "FitResult",
    "Flip",
    "Grayscale",
    "InTurn",
    "Interleaved",
    "LogitAdjustment",
    "MultiStep",
    "OneCycle",
    "Optimizer",
    "Order",
    "Recipe",
    "Schedule",
    "Shuffled",
    "SignSGD",
    "State",
    "Step",
    "fit",
    "statistics_kept",
    "train",
]
