"""MAD competition: label only the images on which two classifiers disagree most, and rank classifiers by those.

Of a pool without labels, each pair of classifiers is shown the images where both are sure of themselves and furthest
apart in the hierarchy of classes. At most one of the two is right, so a few labels tell which of them is better, and
every label shows somebody's error. The results of all pairs make one ranking.

Wang et al., "I Am Going MAD: Maximum Discrepancy Competition for Comparing Classifiers Adaptively", ICLR 2020,
arXiv:2002.10648, algorithm 1.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.evasion.class_tree import Tree, tree_distances
from holdfast.methods import Analysis, Paper
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["Bout", "Competition", "MADCompetition", "Votes", "dominance", "perron"]

#: Positions in the pool -> the true labels there, both int64 (M,).
Ask = Callable[[Tensor], Tensor]

_RELAX = 0.05  # by how much the confidence asked for falls while too few images qualify
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Votes:
    """A model's predictions on the pool: int64 (N,) classes, and float32 (N,) softmax probabilities of them."""

    label: Tensor
    confidence: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Bout:
    """The images on which two models compete.

    Args:
        images: positions in the pool, in the order they were chosen: the most distant predictions first.
        threshold: the confidence that both models have at least; lower than asked for where too few had that.
    """

    images: Int64[Tensor, " m"]
    threshold: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Competition:
    """What came out.

    Args:
        pool: the name of the images, and their fingerprint.
        votes: the models' predictions on the whole pool, by name.
        bouts: by pair of names, in the order of `votes`.
        labels: the true labels that were asked for, by position in the pool.
        seed: of the resampling behind `intervals`.
    """

    pool: tuple[str, str]
    votes: Mapping[str, Votes]
    bouts: Mapping[tuple[str, str], Bout]
    labels: Mapping[int, int]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The models, in the order of the matrices."""
        return tuple(self.votes)

    @functools.cached_property
    def scores(self) -> Float[Tensor, " m"]:
        """Positive and summing to 1; larger is better. Relative to this pool and these models."""
        return perron(dominance(self._counts(lambda right: right.sum(1))))

    @functools.cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each score, from resampling the labelled images of each bout."""
        rng = torch.Generator().manual_seed(self.seed)

        def resampled(right: Tensor) -> Tensor:
            return right[:, torch.randint(right.shape[1], (_RESAMPLES, right.shape[1]), generator=rng)].sum(2)

        scores = perron(dominance(self._counts(resampled, _RESAMPLES)))
        low, high = scores.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
        return {name: (low[i], high[i]) for i, name in enumerate(self.names)}

    @property
    def ranking(self) -> list[str]:
        """The models, best first."""
        return [self.names[i] for i in self.scores.argsort(descending=True, stable=True)]

    @property
    def accuracy(self) -> Float[Tensor, "m m"]:
        """In row i and column j, the accuracy of model i on its bout with model j; NaN where there is none."""
        sizes = self._counts(lambda right: torch.full((2,), right.shape[1]))
        return self._counts(lambda right: right.sum(1)) / sizes

    @property
    def gap(self) -> float:
        """How far apart two models are on their bout, on average over pairs that have one."""
        difference = (self.accuracy - self.accuracy.T).abs()
        return float(difference[~difference.isnan()].mean())

    def failures(self, name: str) -> list[int]:
        """Positions of the labelled images that a model gets wrong."""
        return [i for i, label in sorted(self.labels.items()) if int(self.votes[name].label[i]) != label]

    def right(self, pair: tuple[str, str]) -> Bool[Tensor, "2 m"]:
        """Whether each of two models is right on each image of their bout."""
        images = self.bouts[pair].images
        truth = torch.tensor([self.labels[i] for i in images.tolist()], dtype=torch.int64)
        return torch.stack([self.votes[name].label[images] == truth for name in pair])

    @property
    def sentence(self) -> str:
        """The ranking in words."""
        order = " > ".join(f"{name} {float(self.scores[self.names.index(name)]):.3f}" for name in self.ranking)
        return f"{order} on {self.pool[0]}, by {len(self.labels)} labels."

    def listing(self) -> list[dict[str, str]]:
        """A row per model, best first, in words."""
        return [
            {
                "model": name,
                "score": f"{float(self.scores[self.names.index(name)]):.3f}",
                "95 % interval": "{:.3f} to {:.3f}".format(*self.intervals[name]),
                "errors found": str(len(self.failures(name))),
            }
            for name in self.ranking
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values; the gap is none where no two models disagree."""
        return {
            "pool": self.pool[0],
            "ranking": self.ranking,
            "scores": dict(zip(self.names, self.scores.tolist(), strict=True)),
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "labels": {str(i): label for i, label in sorted(self.labels.items())},
            "gap": None if math.isnan(self.gap) else self.gap,
            "bouts": [
                {
                    "models": list(pair),
                    "images": bout.images.tolist(),
                    "threshold": bout.threshold,
                    "right": self.right(pair).sum(1).tolist(),
                }
                for pair, bout in self.bouts.items()
            ],
            "failures": {name: self.failures(name) for name in self.names},
        }

    def _counts(self, statistic: Callable[[Tensor], Tensor], *shape: int) -> Float[Tensor, "*r m m"]:
        """In row i and column j, what `statistic` makes of model i's rights and wrongs against model j."""
        counts = torch.zeros(*shape, len(self.names), len(self.names), dtype=torch.float64)
        for pair, bout in self.bouts.items():
            if len(bout.images):
                i, j = (self.names.index(name) for name in pair)
                counts[..., i, j], counts[..., j, i] = statistic(self.right(pair)).double()
        return counts


@dataclass(frozen=True, kw_only=True)
class MADCompetition(
    Analysis,
    id="mad-competition",
    title="Maximum discrepancy competition",
    paper=Paper(
        title="I Am Going MAD: Maximum Discrepancy Competition for Comparing Classifiers Adaptively",
        arxiv="2002.10648",
        venue="ICLR",
        year=2020,
    ),
):
    """Rank classifiers on real-world images with a few labels, and collect their errors on the way.

    For choosing between models when there are many images and few labels. Costs one pass of each model over the pool,
    and at most `images` labels per pair of models. The scores are relative to the pool and to the other models. A model
    that joins later needs labels for its own bouts only; see `known`.

    Args:
        images: to be labelled per pair of models, at most.
        confidence: softmax probability that both models must give their predictions. While fewer than `images` can
            be chosen it falls in steps of 0.05, which the bout records.
        repeats: in one bout, how many images a class may be predicted on, by either model. With few classes the
            paper's 3 leaves few images: of ten classes at most 15.
        count: ``"examined"`` counts a class for every image looked at, as the authors' code does; ``"chosen"`` for
            those chosen, which leaves more to choose from.
        weighting: of a node in the distance on the tree: ``"halving"`` with each level below the root, or ``"equal"``.
        across: of several paths to a class, the ``"nearest"`` pair decides, or the ``"mean"`` of all.
    """

    images: Annotated[int, Field(ge=1)] = 30
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.8
    repeats: Annotated[int, Field(ge=1)] = 3
    count: Literal["examined", "chosen"] = "examined"
    weighting: Literal["halving", "equal"] = "halving"
    across: Literal["nearest", "mean"] = "nearest"

    def __call__(
        self,
        models: Mapping[str, nn.Module],
        pool: Images,
        ask: Ask,
        *,
        run: Run,
        tree: Tree | None = None,
        known: Competition | None = None,
    ) -> Competition:
        """Let the models compete.

        Args:
            models: by name; with `known`, those that join.
            pool: images whose labels are not read.
            ask: gives the true labels at some positions of the pool, each position at most once.
            run: device, batch size.
            tree: paths from the root to each class; see `tree_distances`. Without one, all classes are equally far
                apart.
            known: an earlier competition on this pool; its models, bouts and labels are kept.

        Raises:
            UserError: there are fewer than two models, a name is taken, the pool is another one, the tree does not
                have the pool's classes, or the answers are not labels.
        """
        distances = tree_distances(pool.classes, tree, weighting=self.weighting, across=self.across)
        here = (pool.name, pool.fingerprint())
        if known is not None and known.pool[1] != here[1]:
            raise UserError(f"{self.id}: the earlier competition was on other images than {pool.name}.")
        votes = {} if known is None else dict(known.votes)
        for name, model in models.items():
            if name in votes:
                raise UserError(f"{self.id}: the name {name!r} is taken.")
            votes[name] = _votes(model, pool, run)
        if len(votes) < 2:
            raise UserError(f"{self.id}: it takes at least two models to compete, got {len(votes)}.")
        bouts = {} if known is None else dict(known.bouts)
        for pair in itertools.combinations(votes, 2):
            if pair not in bouts:
                bouts[pair] = self.choose(votes[pair[0]], votes[pair[1]], distances)
        labels = {} if known is None else dict(known.labels)
        wanted = sorted({i for bout in bouts.values() for i in bout.images.tolist()} - set(labels))
        if wanted:
            labels |= dict(zip(wanted, _answers(self.id, ask, wanted, pool.num_classes), strict=True))
        return Competition(pool=here, votes=votes, bouts=bouts, labels=labels, seed=run.seed_for(self.id))

    def of_models(self, models: Mapping[str, nn.Module], images: Images, *, run: Run) -> Competition:
        """Let the models compete on the images; of their labels only those are read that would have to be asked for."""
        return self(models, images, lambda places: images.y[places], run=run)

    def choose(self, first: Votes, second: Votes, distances: Float[Tensor, "k k"]) -> Bout:
        """The images on which two models disagree most, each of them sure."""
        level = 0
        while True:
            threshold = max(0.0, round(self.confidence - level * _RELAX, 10))
            chosen = self._greedy(first, second, distances, threshold)
            if len(chosen) == self.images or threshold == 0:
                return Bout(images=torch.tensor(chosen, dtype=torch.int64), threshold=threshold)
            level += 1

    def _greedy(self, first: Votes, second: Votes, distances: Tensor, threshold: float) -> list[int]:
        """In order of distance, then of confidence; neither a class nor a pair of classes too often."""
        sure = (first.confidence >= threshold) & (second.confidence >= threshold)
        rows = (sure & (first.label != second.label)).nonzero().flatten().tolist()
        far = distances[first.label, second.label].tolist()
        certain = (first.confidence + second.confidence).tolist()
        rows.sort(key=lambda i: (-far[i], -certain[i], i))
        chosen: list[int] = []
        seen: Counter[int] = Counter()
        pairs: set[frozenset[int]] = set()
        for i in rows:
            classes = frozenset((int(first.label[i]), int(second.label[i])))
            good = classes not in pairs and all(seen[c] < self.repeats for c in classes)
            if good or self.count == "examined":
                seen.update(classes)
            if good:
                chosen.append(i)
                pairs.add(classes)
            if len(chosen) == self.images:
                break
        return chosen


def dominance(rights: Float[Tensor, "*r m m"]) -> Float[Tensor, "*r m m"]:
    """How much better row is than column, from how often each was right on their bout; 1 is added to both counts."""
    return (rights + 1) / (rights.transpose(-1, -2) + 1)


def perron(matrix: Float[Tensor, "*r m m"], steps: int = 100) -> Float[Tensor, "*r m"]:
    """The one positive eigenvector of a positive matrix, summing to 1, by power iteration."""
    vector = matrix.new_full(matrix.shape[:-1], 1 / matrix.shape[-1])
    for _ in range(steps):
        vector = (matrix @ vector[..., None])[..., 0]
        vector = vector / vector.sum(-1, keepdim=True)
    return vector


def _votes(model: nn.Module, pool: Images, run: Run) -> Votes:
    confidence, label = predict(model, pool, run=run).softmax(1).max(1)
    return Votes(label, confidence)


def _answers(who: str, ask: Ask, wanted: list[int], classes: int) -> list[int]:
    answers = ask(torch.tensor(wanted))
    if not isinstance(answers, Tensor) or answers.shape != (len(wanted),) or answers.dtype != torch.int64:
        raise UserError(f"{who}: asked for {len(wanted)} labels, a tensor of as many int64 is needed, got {answers!r}.")
    if not 0 <= int(answers.min()) <= int(answers.max()) < classes:
        raise UserError(f"{who}: labels must lie in 0..{classes - 1}, got {int(answers.min())}..{int(answers.max())}.")
    return answers.tolist()
