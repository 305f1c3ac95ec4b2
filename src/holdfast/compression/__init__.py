"""Smaller and faster models, and how models bear damaged weights.

A pruner gives masks for the prunable weights (`masks`); `HoldMasks` keeps them while training goes on. `flip_bits`
damages stored weights the way failing memory does.
"""

from holdfast.compression.batch_norm import recalibrate
from holdfast.compression.bit_flips import Bit, WorstFlip, draw_bits, draw_exponent_bits, flip_bits, flipped, worst_flip
from holdfast.compression.global_magnitude import GlobalMagnitude
from holdfast.compression.masks import HoldMasks, Pruner, apply_masks, keep_largest, prunable, sparsity

__all__ = [
    "Bit",
    "GlobalMagnitude",
    "HoldMasks",
    "Pruner",
    "WorstFlip",
    "apply_masks",
    "draw_bits",
    "draw_exponent_bits",
    "flip_bits",
    "flipped",
    "keep_largest",
    "prunable",
    "recalibrate",
    "sparsity",
    "worst_flip",
]
