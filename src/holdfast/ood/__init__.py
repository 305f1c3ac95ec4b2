"""Out-of-distribution detection: which inputs lie outside what the model has learnt?

A detector reads features (logits, penultimate activations) and scores them, higher being more anomalous;
`fit_detectors` fits any number of them in one pass of the model, and `separation` says how well scores tell two sets
apart.
"""

from holdfast.ood.abf import ABF, TwoBranches
from holdfast.ood.ash import ASH
from holdfast.ood.bats import BATS
from holdfast.ood.comparison import Comparison, Standing, compare_detectors
from holdfast.ood.conformal import ConformalAlarm, conformal_alarm, smallest_alarm_rate
from holdfast.ood.dice import DICE
from holdfast.ood.energy import Energy
from holdfast.ood.energy_bounded import EnergyBounded, energy_margins
from holdfast.ood.entropy import Entropy
from holdfast.ood.evaluation import Separation, separation
from holdfast.ood.fdbd import FDBD
from holdfast.ood.fitted import FittedDetector, detecting, fit_detectors, fit_on_features, observe, score_detectors
from holdfast.ood.gen import GEN
from holdfast.ood.gradnorm import GradNorm
from holdfast.ood.gram import Gram
from holdfast.ood.klm import KLMatching
from holdfast.ood.knn import KNN
from holdfast.ood.kpca_cogau import KernelPCACoGau
from holdfast.ood.kpca_ood import KernelPCAOOD
from holdfast.ood.logit_norm import LogitNorm
from holdfast.ood.low_dim_grad import LowDimGrad
from holdfast.ood.mahalanobis import Mahalanobis
from holdfast.ood.max_logit import MaxLogit
from holdfast.ood.mode_ensemble import ModeEnsemble
from holdfast.ood.modes import Modes, Spread, WithModes, modes_of, spread
from holdfast.ood.monitor import MonitorSettings, OODMonitor, Reading, fit_monitor, monitor_settings
from holdfast.ood.msp import MSP
from holdfast.ood.network import NetworkDetector
from holdfast.ood.nnguide import NNGuide
from holdfast.ood.odin import ODIN
from holdfast.ood.openmax import OpenMax
from holdfast.ood.outlier_exposure import OutlierExposure
from holdfast.ood.pascl import PASCL
from holdfast.ood.pca_residual import PCAResidual
from holdfast.ood.rankfeat import RankFeat
from holdfast.ood.react import ReAct
from holdfast.ood.relative_mahalanobis import RelativeMahalanobis
from holdfast.ood.scale import SCALE
from holdfast.ood.she import SHE
from holdfast.ood.vim import ViM
from holdfast.ood.vra import VRA

__all__ = [
    "ABF",
    "ASH",
    "BATS",
    "DICE",
    "FDBD",
    "GEN",
    "KNN",
    "MSP",
    "ODIN",
    "PASCL",
    "SCALE",
    "SHE",
    "VRA",
    "Comparison",
    "ConformalAlarm",
    "Energy",
    "EnergyBounded",
    "Entropy",
    "FittedDetector",
    "GradNorm",
    "Gram",
    "KLMatching",
    "KernelPCACoGau",
    "KernelPCAOOD",
    "LogitNorm",
    "LowDimGrad",
    "Mahalanobis",
    "MaxLogit",
    "ModeEnsemble",
    "Modes",
    "MonitorSettings",
    "NNGuide",
    "NetworkDetector",
    "OODMonitor",
    "OpenMax",
    "OutlierExposure",
    "PCAResidual",
    "RankFeat",
    "ReAct",
    "Reading",
    "RelativeMahalanobis",
    "Separation",
    "Spread",
    "Standing",
    "TwoBranches",
    "ViM",
    "WithModes",
    "compare_detectors",
    "conformal_alarm",
    "detecting",
    "energy_margins",
    "fit_detectors",
    "fit_monitor",
    "fit_on_features",
    "modes_of",
    "monitor_settings",
    "observe",
    "score_detectors",
    "separation",
    "smallest_alarm_rate",
    "spread",
]
