"""Proofs of competitions between models: few labels, chosen where the models disagree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import scipy  # its modules load on first use
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.data import Images, load_data, to_float
from holdfast.evasion.class_tree import CIFAR10_TREE
from holdfast.evasion.mad_competition import Competition, MADCompetition
from holdfast.hardening.gmad import Contest, random_pairs
from holdfast.hardening.preferences import preference
from holdfast.hardening.random_pairs import RandomPairs
from holdfast.hardening.self_gmad import SelfGMAD, Troubleshooting
from holdfast.models import build_model, predict
from holdfast.proofs.lab import Base, Lab, mean_of
from holdfast.proofs.proof import Measured, proof
from holdfast.run import Run

__all__: list[str] = []

# --- MAD: ranking classifiers ----------------------------------------------------------------------------------------


@functools.cache
def _competition(lab: Lab) -> Competition:
    """Six models, from hardly trained to well trained, on the test images with their labels behind the oracle."""
    test = lab.data.test
    recipes: dict[str, Base] = lab.pick(
        smoke={f"{e}-epochs": lab.small(epochs=e) for e in (1, 2, 4)} | {"narrow": lab.small(model="mlp", epochs=4)},
        cpu={f"{e}-epochs": Base(epochs=e) for e in (1, 2, 4)} | {"convnet": Base(model="convnet", epochs=6)},
    )
    models: dict[str, nn.Module] = {name: lab.model(base) for name, base in recipes.items()}
    models |= {"zoo": lab.zoo(), "robust": lab.zoo(robust=True)}
    method = MADCompetition(images=lab.pick(smoke=15, cpu=30), repeats=9, count="chosen")
    hidden = test.but(y=torch.zeros_like(test.y))
    tree = lab.pick(smoke=None, cpu=CIFAR10_TREE)
    return method(models, hidden, lambda index: test.y[index], run=lab.run, tree=tree)


def _accuracies(lab: Lab) -> dict[str, float]:
    """The accuracy of each model, with all labels."""
    votes = _competition(lab).votes
    return {name: float((v.label == lab.data.test.y).double().mean()) for name, v in votes.items()}


@proof(
    method="mad-competition",
    claim="A few hundred labels, spent where classifiers disagree most, rank them as all labels do.",
    source="Wang et al. 2020, section 4 (direction; threshold ours)",
    metric="rank correlation of score and accuracy",
    better="higher",
    threshold={"smoke": 0.5, "cpu": 0.75},
    note="With ten classes a class may be predicted nine times per bout instead of three, or no 30 images could be "
    "chosen. Models trained for 1, 2 and 4 epochs stand for snapshots of one training.",
)
def mad_ranks_models_by_few_labels(lab: Lab) -> Measured:
    """At most 30 labels per pair of six models; the truth is the accuracy on the whole pool."""
    result, truth = _competition(lab), _accuracies(lab)
    value = float(scipy.stats.spearmanr(result.scores.numpy(), list(truth.values())).statistic)
    return Measured(
        value=value,
        n=len(result.labels),
        details={"accuracy": truth, "scores": dict(zip(result.names, result.scores.tolist(), strict=True))}
        | {"intervals": result.intervals, "labels": len(result.labels)},
    )


@proof(
    method="mad-competition",
    claim="The images chosen set two models much further apart than as many random ones.",
    source="Wang et al. 2020, section 3 (threshold ours)",
    metric="mean gap in accuracy between two models on their bout / on random images",
    better="higher",
    threshold={"smoke": 1.5, "cpu": 3.0},
    note="See mad-ranks-models-by-few-labels. Did not hold in its first run at cpu scale (2.92). To save time, the "
    "three weakest models had seen 10,000 images alone. They were right on 35 to 53 %, the others on 72 to 91 %, so "
    "that two models were 27 points apart on random images already, and the ratio could not have passed 3.8. They see "
    "all images again.",
)
def mad_sets_models_apart(lab: Lab) -> Measured:
    """Random samples are as large as the bouts, and drawn 50 times."""
    result, truth = _competition(lab), lab.data.test.y
    rng = lab.run.rng("samples")
    gaps = []
    for (a, b), bout in result.bouts.items():
        if not len(bout.images):
            continue
        right = [(result.votes[name].label == truth).double() for name in (a, b)]
        for _ in range(50):
            rows = torch.randint(len(truth), (len(bout.images),), generator=rng)
            gaps.append(abs(float(right[0][rows].mean() - right[1][rows].mean())))
    by_chance = mean_of(gaps)
    return Measured(
        value=result.gap / max(by_chance, 1e-6),
        baseline=by_chance,
        baseline_name="gap on random images",
        n=len(result.labels),
        details={"gap": result.gap, "thresholds": {" ".join(k): b.threshold for k, b in result.bouts.items()}},
    )


# --- Self-gMAD: mending a model of quality ---------------------------------------------------------------------------

_SCATTER = 0.2  # of a single rating; qualities lie in [0, 1]

Distortion = Callable[[Tensor, float, torch.Generator], Tensor]


def _blurred(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    width = 0.2 + 2.8 * strength
    at = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-at.square() / (2 * width**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[0], 1, -1)
    padded = F.pad(x[None], (6, 6, 6, 6), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=3), kernel[:, :, :, None], groups=3)[0]


def _noisy(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    return x + 0.35 * strength * torch.randn(x.shape, generator=rng)


def _faded(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    return x.mean() + (1 - 0.95 * strength) * (x - x.mean())


def _blocky(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    coarse = F.interpolate(F.avg_pool2d(x[None], 8), scale_factor=8)[0]
    return x + strength * (coarse - x)


_OLD: tuple[Distortion, ...] = (_blurred, _noisy)
_ALL: tuple[Distortion, ...] = (*_OLD, _faded, _blocky)


def _distorted(source: Images, distortions: tuple[Distortion, ...], run: Run) -> Images:
    """Pictures distorted at random strengths; the column ``score`` is their quality, as rated once."""
    rng = run.rng("distortions", len(distortions))
    strengths = torch.rand(len(source), generator=rng)
    which = torch.randint(len(distortions), (len(source),), generator=rng)
    clean = to_float(source.x)
    x = torch.stack([distortions[int(w)](p, float(s), rng) for p, w, s in zip(clean, which, strengths, strict=True)])
    quality = 1 - strengths**0.8
    score = quality + _SCATTER / 4 * torch.randn(len(source), generator=rng)  # the mean of sixteen ratings
    y = torch.zeros(len(source), dtype=torch.int64)
    columns = {"score": score, "quality": quality}
    return Images(x=x.clamp(0, 1), y=y, classes=("picture",), columns=columns, name="pictures")


def _regressor(train: Images, epochs: int, width: int, run: Run) -> nn.Module:
    """Four convolutions fitted to the scores by least squares."""
    spec = f"convnet(width={width}, blocks=4)"
    model = build_model(spec, num_classes=1, image_shape=train.shape, run=run).train()
    score = torch.as_tensor(train.columns["score"])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(train), generator=run.rng("order", epoch)).split(32):
            loss = F.mse_loss(model(train.x[rows]).flatten(), score[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@dataclass(frozen=True, eq=False)
class _Contests:
    """Self-gMAD and random pairs with as many ratings, from one model."""

    ours: Troubleshooting
    random: Troubleshooting
    wrong_by_chance: float


@functools.cache
def _contests(lab: Lab) -> _Contests:
    sizes = lab.pick(smoke=(600, 600, 300), cpu=(3000, 3000, 2000))
    pictures = load_data(f"shapes32(n={sum(sizes) + sizes[2]}, seed={lab.run.seed})", run=lab.run).train
    assert pictures is not None
    parts = [
        pictures.select(slice(a, b)) for a, b in ((0, sizes[0]), (sizes[0], sizes[0] + sizes[1]), (-2 * sizes[2], None))
    ]
    old, pool = _distorted(parts[0], _OLD, lab.run), _distorted(parts[1], _ALL, lab.run)
    tests = {
        "all distortions": _distorted(parts[2].select(slice(0, sizes[2])), _ALL, lab.run.child("test")),
        "those trained on": _distorted(parts[2].select(slice(sizes[2], None)), _OLD, lab.run.child("test")),
    }
    epochs, width = lab.pick(smoke=(12, 8), cpu=(15, 16))
    model = _regressor(old, epochs, width, lab.run)
    quality = torch.as_tensor(pool.columns["quality"])

    def rate(first: Tensor, second: Tensor) -> Tensor:
        """Twenty people each prefer one."""
        chance = preference(quality[first], quality[second], _SCATTER)
        draws = torch.rand(20, len(first), generator=lab.run.rng("votes", *first.tolist()))
        return (draws < chance).float().mean(0)

    ours, theirs = (
        method(lr=3e-4, deviation=_SCATTER, epochs=10)(model, pool, rate, old, run=lab.run, tests=tests)
        for method in (SelfGMAD, RandomPairs)
    )
    by_chance = random_pairs(
        predict(model, pool, run=lab.run).flatten(),
        torch.ones(len(pool), dtype=torch.bool),
        levels=6,
        top=30,
        rng=lab.run.rng("same level"),
    )
    return _Contests(ours, theirs, _share_wrong(by_chance, rate))


def _share_wrong(contests: list[Contest], rate: Callable[[Tensor, Tensor], Tensor]) -> float:
    votes = rate(torch.tensor([c.better for c in contests]), torch.tensor([c.worse for c in contests]))
    return mean_of([float(c.wrong(float(p))[0]) for c, p in zip(contests, votes, strict=True)])


def _final(result: Troubleshooting, name: str) -> float:
    return result.rounds[-1].correlations[name][0]


_NOTE = (
    "Adam's rate is 3e-4, for a small network from scratch; the default 1e-5 is for large pre-trained ones. Changed "
    "after a first smoke run that failed: a rating scatters by 0.2 instead of 0.1, with which images on one level were "
    "often clearly different, the rate was 1e-3, and the model was trained for 6 epochs instead of 12."
)


@proof(
    method="self-gmad",
    claim="Rated pairs on which a model contradicts its pruned versions mend it more than as many random pairs.",
    source="Wang et al. 2021, section 4 (direction; threshold ours)",
    metric="rank correlation on all distortions, self-gmad - random pairs",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.02},
    note=_NOTE,
)
def self_gmad_beats_random_pairs(lab: Lab) -> Measured:
    """A model of quality that knows two of four distortions; two rounds of 60 rated pairs."""
    both = _contests(lab)
    ours, theirs = (_final(result, "all distortions") for result in (both.ours, both.random))
    return Measured(
        value=ours - theirs,
        baseline=theirs,
        baseline_name="rank correlation after random pairs",
        n=sum(len(r.contests) for r in both.ours.rounds),
        details={
            "self_gmad": both.ours.to_json()["rounds"],
            "random": both.random.to_json()["rounds"],
            "wrong_on_random_pairs_of_one_level": both.wrong_by_chance,
        },
    )


@proof(
    method="self-gmad",
    claim="A few rated pairs make the model better on what it had not known.",
    source="Wang et al. 2021, section 4 (direction; threshold ours)",
    metric="rank correlation on all distortions, after - before",
    better="higher",
    threshold={"smoke": 0.02, "cpu": 0.05},
    note=_NOTE,
)
def self_gmad_mends_the_model(lab: Lab) -> Measured:
    """See self-gmad-beats-random-pairs."""
    result = _contests(lab).ours
    before = result.before["all distortions"][0]
    return Measured(
        value=_final(result, "all distortions") - before,
        baseline=before,
        baseline_name="rank correlation before",
        n=sum(len(r.contests) for r in result.rounds),
    )


@proof(
    method="self-gmad",
    claim="The model keeps what it knew.",
    source="Wang et al. 2021, section 4 (threshold ours)",
    metric="rank correlation on the distortions it was trained on, before - after",
    better="lower",
    threshold={"smoke": 0.04, "cpu": 0.02},
    note=_NOTE,
)
def self_gmad_forgets_nothing(lab: Lab) -> Measured:
    """See self-gmad-beats-random-pairs."""
    result = _contests(lab).ours
    before = result.before["those trained on"][0]
    return Measured(
        value=before - _final(result, "those trained on"), baseline=before, baseline_name="rank correlation before"
    )


@proof(
    method="self-gmad",
    claim="The model is wrong on the pairs chosen so twice as often as on random pairs that it finds equally good.",
    source="Wang et al. 2021, section 4 (direction; threshold ours)",
    metric="share of pairs on which the model is wrong, gmad / random pairs of one level",
    better="higher",
    threshold={"smoke": 2.0, "cpu": 2.0},
    note="Has not held in any form tried: with pruned versions of one small network as rivals the contradictions are "
    "mostly the rivals' failures, and random pairs of one level are wrong nearly as often. An earlier, weaker demand "
    "of 1.3 times did not hold either.",
)
def self_gmad_finds_failures(lab: Lab) -> Measured:
    """The first round's pairs, before the model has learnt from them; see self-gmad-beats-random-pairs."""
    both = _contests(lab)
    found = both.ours.rounds[0]
    return Measured(
        value=found.wrong / max(both.wrong_by_chance, 1e-9),
        baseline=1.0,
        baseline_name="as often",
        n=len(found.contests),
        details={"wrong": found.wrong, "by_chance": both.wrong_by_chance, "rival_wrong": found.rival_wrong},
    )
