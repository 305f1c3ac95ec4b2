"""Out-of-distribution detection: which inputs lie outside what the model has learnt?

A detector reads features (logits, penultimate activations) and scores them, higher being more anomalous;
`fit_detectors` fits any number of them in one pass of the model, and `separation` says how well scores tell two sets
apart.
"""

from holdfast.ood.energy import Energy
from holdfast.ood.evaluation import Separation, separation
from holdfast.ood.fitted import FittedDetector, fit_detectors, fit_on_features, observe, score_detectors
from holdfast.ood.knn import KNN
from holdfast.ood.max_logit import MaxLogit
from holdfast.ood.msp import MSP
from holdfast.ood.network import NetworkDetector

__all__ = [
    "KNN",
    "MSP",
    "Energy",
    "FittedDetector",
    "MaxLogit",
    "NetworkDetector",
    "Separation",
    "fit_detectors",
    "fit_on_features",
    "observe",
    "score_detectors",
    "separation",
]
