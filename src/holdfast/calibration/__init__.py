"""Honest confidence: calibration of probabilities, and sets of classes with a promised coverage.

`TemperatureScaling` mends overconfidence, `conformal` gives sets instead of single answers, and `ece_floor` says how
much calibration error chance alone explains.
"""

from holdfast.calibration.conformal import ConformalSets, Coverage, conformal, coverage
from holdfast.calibration.measures import Floor, ece_floor, selective_risk
from holdfast.calibration.temperature_scaling import Temperature, TemperatureScaling

__all__ = [
    "ConformalSets",
    "Coverage",
    "Floor",
    "Temperature",
    "TemperatureScaling",
    "conformal",
    "coverage",
    "ece_floor",
    "selective_risk",
]
