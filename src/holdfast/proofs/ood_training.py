"""Proofs of training for detection: with outliers, on normalised logits, under a long tail, and from several seeds.

The outliers trained with are jigsaws and mixtures of training images, and drawn shapes. Those that are tested on are of
other kinds; the shapes among them have other outlines, colours and style.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast import stats
from holdfast.data import Data, Images, LongTail, SyntheticOutliers, ood_sets
from holdfast.data.drawing import SHAPES
from holdfast.data.ood_sets import Distance
from holdfast.data.resize import fitted
from holdfast.data.shapes32 import COLOURS, Shapes32
from holdfast.models import Features, build_model, extract
from holdfast.ood import (
    ABF,
    PASCL,
    EnergyBounded,
    Modes,
    OutlierExposure,
    Separation,
    Spread,
    energy_margins,
    fit_on_features,
    separation,
    spread,
)
from holdfast.ood.long_tailed import accuracy_when_rejecting, classes_by_frequency
from holdfast.ood.pascl import tail_classes
from holdfast.proofs.lab import Base, Lab, first_per_class, mean_of
from holdfast.proofs.ood_bench import mean_separation
from holdfast.proofs.proof import Measured, proof
from holdfast.run import Run
from holdfast.training import SGD, Adam, Cosine, fit

__all__: list[str] = []

Separations = dict[str, Separation]


# --- What is tested on ------------------------------------------------------------------------------------------------


@functools.cache
def _data(lab: Lab) -> Data:
    return lab.data


def _train(lab: Lab) -> Images:
    train = _data(lab).train
    assert train is not None
    return train


@functools.cache
def _unknown(lab: Lab, distance: Distance) -> dict[str, Images]:
    """The sets of a kind; every set of smoke scale is a far one."""
    count = lab.pick(smoke=300, cpu=2000)
    found = {name: images for name, (images, d) in ood_sets(_data(lab), lab.run, count=count).items() if d == distance}
    if "shapes32" in found:
        found["shapes32"] = _shapes_of_the_first_half(lab, found["shapes32"], count // 2)
    return found


def _shapes_of_the_first_half(lab: Lab, like: Images, count: int) -> Images:
    """Drawn shapes of outlines and colours that `synthetic-outliers` has not, in the one style that it leaves out."""
    drawn = Shapes32(seed=lab.run.seed_for("proof shapes")).draw("test", 6 * count)
    colour = torch.as_tensor(drawn.columns["colour"])
    rows = ((drawn.y < len(SHAPES) // 2) & (colour < len(COLOURS) // 2)).nonzero().flatten()[:count]
    channels, height, width = like.shape
    x = fitted(drawn.x[rows], (height, width), channels)
    x = x if like.x.dtype == torch.uint8 else x.to(like.x.dtype) / 255
    return Images(x=x, y=torch.zeros(len(rows), dtype=torch.int64), classes=like.classes, name=like.name)


@dataclass(frozen=True, eq=False)
class _Net:
    """A network and what it makes of known and far images, each worked out once."""

    lab: Lab
    model: nn.Module

    @functools.cached_property
    def known(self) -> Features:
        """Of the test images."""
        return extract(self.model, _data(self.lab).test, run=self.lab.run)

    @functools.cached_property
    def far(self) -> dict[str, Features]:
        """Of each far set."""
        return {
            name: extract(self.model, images, run=self.lab.run) for name, images in _unknown(self.lab, "far").items()
        }

    @property
    def right(self) -> Tensor:
        """Which test images it classifies rightly."""
        return self.known.predictions == self.known.y

    def separations(self, detector: str, sets: Sequence[str] = (), known: Tensor | slice = slice(None)) -> Separations:
        """How well a detector that learns nothing tells far sets, by default all, from the test images or some."""
        (fit_detector,) = fit_on_features([detector], None, None).values()
        inside = fit_detector.score(self.known.select(known)).numpy()
        return {
            name: separation(
                inside,
                fit_detector.score(self.far[name]).numpy(),
                rng=self.lab.run.numpy_rng("bootstrap", name, detector),
                resamples=200,
            )
            for name in sets or self.far
        }


def _difference(after: Separations, before: Separations, metric: str, name: str, n: int, **details: object) -> Measured:
    """The mean of a metric over sets, after less before, with the interval of the one after."""
    value, half = mean_separation(after, metric)
    reference, _ = mean_separation(before, metric)
    each = {s: [round(getattr(part[s], metric), 4) for part in (before, after)] for s in after}
    return Measured(
        value=value - reference,
        low=value - reference - half,
        high=value - reference + half,
        baseline=reference,
        baseline_name=name,
        n=n,
        details={f"{metric} before and after": each, **details},
    )


def _training(lab: Lab) -> Run:
    return Run(seed=lab.run.seed, device=lab.run.device, precision=lab.pick(smoke="fp32", cpu="bf16"))


# --- Outliers to train with -------------------------------------------------------------------------------------------

_TUNED = (
    "Fine-tunes the zoo's ResNet-20 for three epochs on 20,000 images and as many outliers, with SGD at 0.01: ten "
    "times the paper's rate for a tenth of its steps."
)


@functools.cache
def _standard(lab: Lab) -> _Net:
    return _Net(lab, lab.zoo())


@functools.cache
def _tuned(lab: Lab, method: str) -> _Net:
    """The same network, fine-tuned with outliers."""
    model, run = copy.deepcopy(_standard(lab).model), _training(lab)
    train = first_per_class(_train(lab), lab.pick(smoke=100, cpu=2000))
    if method == "energy-bounded":
        m_in, m_out = energy_margins(model, train, run=lab.run)
        objective: EnergyBounded | OutlierExposure = EnergyBounded(m_in=m_in, m_out=m_out)
    else:
        objective = OutlierExposure()
    fit(
        model,
        train,
        epochs=3,
        batch_size=lab.pick(smoke=64, cpu=128),
        objective=objective,
        companions={"outliers": SyntheticOutliers()(train, run=lab.run)},
        optimizer=SGD(lr=0.01),
        schedule=Cosine(),
        transforms=lab.pick(smoke=(), cpu=("crop", "flip")),
        run=run,
    )
    return _Net(lab, model)


@proof(
    method="outlier-exposure",
    claim="Some epochs with outliers teach the softmax score to detect outliers of other kinds.",
    source="Hendrycks et al. 2019, Table 1; threshold ours",
    metric="rise of mean AUROC of msp, far sets",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.05},
    note=_TUNED,
)
def exposure_to_outliers_teaches_to_detect_others(lab: Lab) -> Measured:
    """The network after exposure against the same before it."""
    before, after = _standard(lab), _tuned(lab, "outlier-exposure")
    n = len(before.known)
    return _difference(after.separations("msp"), before.separations("msp"), "auroc", "before exposure", n)


@proof(
    method="outlier-exposure",
    claim="It hardly costs accuracy.",
    source="Hendrycks et al. 2019; threshold ours",
    metric="accuracy, after - before",
    better="higher",
    threshold={"smoke": -0.02, "cpu": -0.02},
    note=_TUNED,
)
def exposure_keeps_accuracy(lab: Lab) -> Measured:
    """The networks of the other proof, on the test images."""
    return Measured.difference(_tuned(lab, "outlier-exposure").right, _standard(lab).right, "before exposure")


@proof(
    method="energy-bounded",
    claim="Fine-tuned for a gap of energy, the energy score accepts fewer outliers at 95 % ID acceptance.",
    source="Liu et al. 2020, Table 1 (CIFAR-10: mean FPR95 33.0 % to 3.3 %); threshold ours",
    metric="mean FPR95 of energy, far sets, after - before",
    better="lower",
    threshold={"smoke": 0.0, "cpu": -0.05},
    note=f"{_TUNED} Margins: the mean energy of the training images, and 10 above it.",
)
def a_gap_of_energy_keeps_outliers_out(lab: Lab) -> Measured:
    """The network after the fine-tuning against the same before it."""
    before, after = _standard(lab), _tuned(lab, "energy-bounded")
    accuracy = [round(float(net.right.double().mean()), 4) for net in (before, after)]
    mine, theirs = (net.separations("energy") for net in (after, before))
    return _difference(mine, theirs, "fpr95_id", "before", len(before.known), accuracy=accuracy)


# --- LogitNorm --------------------------------------------------------------------------------------------------------


def _small(lab: Lab, **changes: object) -> Base:
    """A network trained from scratch on 20,000 images, which the ensemble's first mode is as well."""
    if lab.scale == "smoke":
        return lab.small(**{"epochs": 8, **changes})
    return Base(**{"per_class": 2000, "epochs": 8, **changes})  # type: ignore[arg-type]


@functools.cache
def _from_scratch(lab: Lab, objective: str) -> _Net:
    return _Net(lab, lab.model(_small(lab, objective=objective)))


@proof(
    method="logit-norm",
    claim="Trained on normalised logits, the softmax score detects far outliers at least as well.",
    source="Wei et al. 2022, abstract (mean FPR95 down by up to 42.30 points); threshold ours",
    metric="mean AUROC of msp, far sets, logit-norm - cross-entropy",
    better="higher",
    threshold={"smoke": -0.01, "cpu": -0.01},
)
def normalised_logits_detect_as_well(lab: Lab) -> Measured:
    """Same start, data and epochs with both losses."""
    nets = {name: _from_scratch(lab, name) for name in ("logit-norm", "cross-entropy")}
    accuracy = {name: round(float(net.right.double().mean()), 4) for name, net in nets.items()}
    mine, theirs = (net.separations("msp") for net in nets.values())
    return _difference(mine, theirs, "auroc", "cross-entropy", len(nets["logit-norm"].known), accuracy=accuracy)


@proof(
    method="logit-norm",
    claim="Trained on normalised logits, a network is less confident on outliers.",
    source="Wei et al. 2022, Figure 1; threshold ours",
    metric="mean confidence on far sets, logit-norm - cross-entropy",
    better="lower",
    threshold={"smoke": 0.0, "cpu": 0.0},
)
def normalised_logits_are_less_confident_outside(lab: Lab) -> Measured:
    """The networks of the other proof: the mean of the largest probability, over sets."""
    nets = {name: _from_scratch(lab, name) for name in ("logit-norm", "cross-entropy")}
    each = {
        name: {s: round(float(f.probabilities.amax(1).mean()), 4) for s, f in net.far.items()}
        for name, net in nets.items()
    }
    mine, theirs = (mean_of(list(sets.values())) for sets in each.values())
    return Measured(value=mine - theirs, baseline=theirs, baseline_name="cross-entropy", details=each)


# --- PASCL and its second branch --------------------------------------------------------------------------------------

_LONG_TAIL = (
    "CIFAR-10-LT, 12,406 images, of which each class's are drawn at random; ResNet-20, Adam at 1e-3, ten epochs. The "
    "paper trains a ResNet-18 for 200 with tiny images as outliers."
)
_FEW_NOISES = ("uniform-noise", "gaussian-noise")


@functools.cache
def _tail(lab: Lab) -> Images:
    return LongTail(rho=lab.pick(smoke=20, cpu=100))(_train(lab), run=lab.run)


def _views(lab: Lab) -> tuple[str, ...]:
    views: tuple[str, ...] = lab.pick(smoke=("crop(padding=1)",), cpu=("crop", "flip", "color-jitter", "grayscale"))
    return views


@functools.cache
def _exposed(lab: Lab, contrast: bool) -> _Net:
    """Trained on the long tail with outliers, with the contrast or without."""
    train, run = _tail(lab), _training(lab)
    name = lab.pick(smoke="convnet", cpu="resnet20")
    model = build_model(name, num_classes=train.num_classes, image_shape=train.shape, run=run)
    fit(
        model,
        train,
        epochs=lab.pick(smoke=15, cpu=10),
        batch_size=lab.pick(smoke=64, cpu=256),
        objective=PASCL() if contrast else PASCL(contrast=0),
        companions={"outliers": SyntheticOutliers()(train, run=lab.run)},
        optimizer=Adam(lr=lab.pick(smoke=3e-3, cpu=1e-3), weight_decay=5e-4),
        schedule=Cosine(),
        transforms=_views(lab),
        run=run,
    )
    return _Net(lab, model)


@functools.cache
def _branched(lab: Lab) -> _Net:
    """PASCL's network with a second branch, which answers."""
    method = ABF(
        epochs=5, lr=lab.pick(smoke=5e-3, cpu=5e-4), batch_size=lab.pick(smoke=64, cpu=128), transforms=_views(lab)
    )
    return _Net(lab, method.train(_exposed(lab, True).model, _tail(lab), run=_training(lab)))


def _second_branch(lab: Lab, which: Tensor) -> Measured:
    """Accuracy on some test images: that of the second branch less that of the first."""
    first, second = _exposed(lab, True), _branched(lab)
    counts = torch.bincount(_tail(lab).y, minlength=_data(lab).num_classes)
    groups = {
        name: [round(float(net.right[classes[net.known.y]].double().mean()), 4) for net in (first, second)]
        for name, classes in classes_by_frequency(counts).items()
    }
    scores = fit_on_features(["msp"], None, None)["msp"].score(first.known)
    rejecting = {
        f"{share:.0%}": [round(accuracy_when_rejecting(net.right, scores, share), 4) for net in (first, second)]
        for share in (0.001, 0.01, 0.1)
    }
    details = {"accuracy of first and second branch": groups, "with the most anomalous rejected": rejecting}
    return Measured.difference(second.right[which], first.right[which], "first branch", details=details)


@proof(
    method="abf",
    claim="A second branch, finetuned on in-distribution images alone, classifies long-tailed data better.",
    source="Wang et al. 2022, abstract (CIFAR-10-LT: 3.24 points above the best before); threshold ours",
    metric="accuracy, second - first branch",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.03},
    note=_LONG_TAIL,
)
def a_second_branch_classifies_better(lab: Lab) -> Measured:
    """Both branches on all test images."""
    return _second_branch(lab, torch.ones(len(_data(lab).test), dtype=torch.bool))


@proof(
    method="abf",
    claim="Rare classes gain the most.",
    source="Wang et al. 2022, section 3.3; threshold ours",
    metric="accuracy on the rarest third of the classes, second - first branch",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.08},
    note=_LONG_TAIL,
)
def a_second_branch_knows_rare_classes(lab: Lab) -> Measured:
    """Both branches on the test images of rare classes."""
    few = classes_by_frequency(torch.bincount(_tail(lab).y, minlength=_data(lab).num_classes))["few"]
    return _second_branch(lab, few[_data(lab).test.y])


def _pascl_against_exposure(lab: Lab, known: Tensor | slice = slice(None)) -> Measured:
    """Mean AUROC of msp over the far sets but noise: with the contrast less without."""
    nets = [_exposed(lab, contrast) for contrast in (True, False)]
    sets = [name for name in nets[0].far if name not in _FEW_NOISES]
    accuracy = [round(float(net.right.double().mean()), 4) for net in nets]
    with_, without = (net.separations("msp", sets, known) for net in nets)
    return _difference(with_, without, "auroc", "without the contrast", len(nets[0].known), accuracy=accuracy)


@proof(
    method="pascl",
    claim="With the contrast between rare classes and outliers, outliers are detected at least as well.",
    source="Wang et al. 2022, abstract (CIFAR-10-LT: FPR95 1.29 points below the best before); threshold ours",
    metric="mean AUROC of msp, far sets, pascl - outlier exposure",
    better="higher",
    threshold={"smoke": -0.005, "cpu": -0.005},
    note=_LONG_TAIL,
)
def a_partial_contrast_detects_as_well(lab: Lab) -> Measured:
    """Same start, data, outliers and epochs, with the term and without."""
    return _pascl_against_exposure(lab)


@proof(
    method="pascl",
    claim="With the contrast, rare classes are told from outliers better.",
    source="Wang et al. 2022, section 3.2; threshold ours",
    metric="mean AUROC of msp, tail images against far sets, pascl - outlier exposure",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.0},
    note=f"{_LONG_TAIL} At smoke scale it does not hold: on digits outlier exposure alone leaves little to gain "
    "(0.97 to 1), and the contrast costs 0.01 of it, while accuracy rises by 5 points.",
)
def a_partial_contrast_tells_rare_classes_from_outliers(lab: Lab) -> Measured:
    """The networks of the other proof, on the test images of the tail."""
    counts = torch.bincount(_tail(lab).y, minlength=_data(lab).num_classes)
    return _pascl_against_exposure(lab, tail_classes(counts, PASCL().tail)[_data(lab).test.y])


# --- Modes ------------------------------------------------------------------------------------------------------------

_MODES = "Four ResNet-20 of eight epochs on 20,000 images. Triples share members, which alone makes them vary less."


@functools.cache
def _made_of(lab: Lab) -> dict[str, list[Features]]:
    """What each of four modes makes of each set."""
    labs = [Lab(lab.scale, lab.run.but(seed=4 * lab.run.seed + s)) for s in range(4)]
    modes = Modes([one.model(_small(one)) for one in labs])
    train = first_per_class(_train(lab), lab.pick(smoke=50, cpu=500))
    sets = {"train": train, "test": _data(lab).test, **_unknown(lab, "near"), **_unknown(lab, "far")}
    found = {}
    for name, images in sets.items():
        seen = extract(modes, images, run=lab.run, layers=modes.taps, pool=False).layers
        found[name] = [
            Features(logits=seen[f"logits.{s}"], penultimate=seen[f"features.{s}"], y=images.y)
            for s in range(len(labs))
        ]
    return found


def _mean(parts: Sequence[Features]) -> Features:
    penultimate = torch.stack([p.penultimate for p in parts if p.penultimate is not None]).mean(0)
    return Features(logits=torch.stack([p.logits for p in parts]).mean(0), penultimate=penultimate, y=parts[0].y)


@functools.cache
def _aurocs(lab: Lab, size: int) -> dict[str, dict[str, list[float]]]:
    """AUROC by detector and set, of every choice of so many modes."""
    made = _made_of(lab)
    found: dict[str, dict[str, list[float]]] = {}
    for chosen in itertools.combinations(range(4), size):
        of = {name: _mean([parts[s] for s in chosen]) for name, parts in made.items()}
        for name, fitted_detector in fit_on_features(["msp", "energy", "knn"], of["train"], None).items():
            inside = fitted_detector.score(of["test"]).numpy()
            for s in (s for s in of if s not in ("train", "test")):
                value = stats.auroc(inside, fitted_detector.score(of[s]).numpy())
                found.setdefault(name, {}).setdefault(s, []).append(value)
    return found


def _over_sets(aurocs: dict[str, dict[str, list[float]]], sets: Sequence[str]) -> dict[str, dict[str, Spread]]:
    return {name: {s: spread(values) for s, values in by.items() if s in sets} for name, by in aurocs.items()}


def _in_words(spreads: dict[str, dict[str, Spread]]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {s: [round(v, 4) for v in (x.mean, x.std, x.range)] for s, x in by.items()}
        for name, by in spreads.items()
    }


@proof(
    method="mode-ensemble",
    claim="Three modes together detect near outliers better than one does on average.",
    source="Fang et al. 2024, section 4; threshold ours",
    metric="rise of mean AUROC, the lesser of msp's and energy's",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.007},
    note=f"{_MODES} At smoke scale there is no near set, and the far ones are taken.",
)
def modes_together_detect_better(lab: Lab) -> Measured:
    """All triples of four modes against all single ones."""
    sets = list(_unknown(lab, "near") or _unknown(lab, "far"))
    one, three = (_over_sets(_aurocs(lab, size), sets) for size in (1, 3))
    rises = {
        name: mean_of([three[name][s].mean - one[name][s].mean for s in sets]) for name in ("msp", "energy", "knn")
    }
    least = min(("msp", "energy"), key=lambda name: rises[name])
    return Measured(
        value=rises[least],
        baseline=mean_of([one[least][s].mean for s in sets]),
        baseline_name=f"AUROC of {least}, single modes",
        n=len(_data(lab).test),
        details={"rise": rises, "single: mean, std, range": _in_words(one), "triples": _in_words(three)},
    )


@proof(
    method="mode-ensemble",
    claim="Detection varies less over ensembles of modes than over modes.",
    source="Fang et al. 2024, abstract (RankFeat: FPR95 from 46.58 % to 84.70 % among five modes); threshold ours",
    metric="standard deviation of AUROC, triples / single modes, mean over detectors and sets",
    better="lower",
    threshold={"smoke": 1.0, "cpu": 1.0},
    note=_MODES,
)
def modes_together_vary_less(lab: Lab) -> Measured:
    """All triples of four modes against all single ones, on all sets."""
    sets = [*_unknown(lab, "near"), *_unknown(lab, "far")]
    one, three = (_over_sets(_aurocs(lab, size), sets) for size in (1, 3))
    single, triple = (mean_of([x.std for by in part.values() for x in by.values()]) for part in (one, three))
    return Measured(
        value=triple / single,
        baseline=1.0,
        baseline_name="single modes",
        details={"single: mean, std, range": _in_words(one), "triples": _in_words(three)},
    )


@proof(
    method="mode-ensemble",
    claim="Three modes together classify better than one does on average.",
    source="Fang et al. 2024; threshold ours",
    metric="accuracy, triples - single modes",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.01},
    note=_MODES,
)
def modes_together_classify_better(lab: Lab) -> Measured:
    """All triples of four modes against all single ones."""
    parts = _made_of(lab)["test"]
    accuracy = {
        size: [
            float((_mean(chosen).predictions == parts[0].y).double().mean())
            for chosen in itertools.combinations(parts, size)
        ]
        for size in (1, 3)
    }
    one, three = (mean_of(values) for values in accuracy.values())
    return Measured(
        value=three - one,
        baseline=one,
        baseline_name="single modes",
        n=len(parts[0]),
        details={"single": accuracy[1], "triples": accuracy[3]},
    )
