"""Out-of-distribution detection: which inputs lie outside what the model has learnt?

A detector reads features (logits, penultimate activations) and scores them, higher being more anomalous;
`fit_detectors` fits any number of them in one pass of the model, and `separation` says how well scores tell two sets
apart.
"""

from holdfast.ood.ash import ASH
from holdfast.ood.bats import BATS
from holdfast.ood.comparison import Comparison, Standing, compare_detectors
from holdfast.ood.conformal import ConformalAlarm, conformal_alarm, smallest_alarm_rate
from holdfast.ood.dice import DICE
from holdfast.ood.energy import Energy
from holdfast.ood.entropy import Entropy
from holdfast.ood.evaluation import Separation, separation
from holdfast.ood.fdbd import FDBD
from holdfast.ood.fitted import FittedDetector, fit_detectors, fit_on_features, observe, score_detectors
from holdfast.ood.gen import GEN
from holdfast.ood.gradnorm import GradNorm
from holdfast.ood.knn import KNN
from holdfast.ood.kpca_cogau import KernelPCACoGau
from holdfast.ood.kpca_ood import KernelPCAOOD
from holdfast.ood.max_logit import MaxLogit
from holdfast.ood.monitor import MonitorSettings, OODMonitor, Reading, fit_monitor, monitor_settings
from holdfast.ood.msp import MSP
from holdfast.ood.network import NetworkDetector
from holdfast.ood.nnguide import NNGuide
from holdfast.ood.odin import ODIN
from holdfast.ood.react import ReAct
from holdfast.ood.scale import SCALE
from holdfast.ood.vra import VRA

__all__ = [
    "ASH",
    "BATS",
    "DICE",
    "FDBD",
    "GEN",
    "KNN",
    "MSP",
    "ODIN",
    "SCALE",
    "VRA",
    "Comparison",
    "ConformalAlarm",
    "Energy",
    "Entropy",
    "FittedDetector",
    "GradNorm",
    "KernelPCACoGau",
    "KernelPCAOOD",
    "MaxLogit",
    "MonitorSettings",
    "NNGuide",
    "NetworkDetector",
    "OODMonitor",
    "ReAct",
    "Reading",
    "Separation",
    "Standing",
    "compare_detectors",
    "conformal_alarm",
    "fit_detectors",
    "fit_monitor",
    "fit_on_features",
    "monitor_settings",
    "observe",
    "score_detectors",
    "separation",
    "smallest_alarm_rate",
]
