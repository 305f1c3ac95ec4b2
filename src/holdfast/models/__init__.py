"""Models: reference architectures, loading and saving, the frozen forward and the feature tap, inspection, the zoo.

A model is a plain `nn.Module` from float images in [0, 1] to logits. Nothing needs to be subclassed.
"""

from holdfast.models.answers import QueriesSpent, Transient, Unanswered
from holdfast.models.build import architectures, build_model
from holdfast.models.dncnn import DnCNN
from holdfast.models.features import Features, Probe, Seen, classifier_head, extract, predict, tap
from holdfast.models.freeze import (
    MixesSamples,
    NonDeterministic,
    check_model,
    declares_mixing,
    frozen,
    full_precision,
)
from holdfast.models.fuse import fuse_for_inference, round_for_inference
from holdfast.models.gradients import sample_gradients
from holdfast.models.inspection import Cost, LayerInfo, layers, measure
from holdfast.models.load import load_model
from holdfast.models.normalize import Normalize
from holdfast.models.passes import images_per_pass
from holdfast.models.queryable import Queryable, Usage, asked_afresh, forget, only_answers, queryables
from holdfast.models.reinitialise import reinitialised
from holdfast.models.replay import Replays
from holdfast.models.served import connect
from holdfast.models.timing import Latency, latency
from holdfast.models.twin import fast_twin
from holdfast.models.weights import load_weights, read_weights, save_tensors, save_weights, weights_hash
from holdfast.models.zoo import Measured, ZooCard, publish, zoo_card, zoo_names, zoo_weights

__all__ = [
    "Cost",
    "DnCNN",
    "Features",
    "Latency",
    "LayerInfo",
    "Measured",
    "MixesSamples",
    "NonDeterministic",
    "Normalize",
    "Probe",
    "QueriesSpent",
    "Queryable",
    "Replays",
    "Seen",
    "Transient",
    "Unanswered",
    "Usage",
    "ZooCard",
    "architectures",
    "asked_afresh",
    "build_model",
    "check_model",
    "classifier_head",
    "connect",
    "declares_mixing",
    "extract",
    "fast_twin",
    "forget",
    "frozen",
    "full_precision",
    "fuse_for_inference",
    "images_per_pass",
    "latency",
    "layers",
    "load_model",
    "load_weights",
    "measure",
    "only_answers",
    "predict",
    "publish",
    "queryables",
    "read_weights",
    "reinitialised",
    "round_for_inference",
    "sample_gradients",
    "save_tensors",
    "save_weights",
    "tap",
    "weights_hash",
    "zoo_card",
    "zoo_names",
    "zoo_weights",
]
