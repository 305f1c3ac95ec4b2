"""Self-gMAD: let a model compete with pruned versions of itself, have the contradictions rated, and learn from them.

Pruning hurts a network first where it was unsure. Where random ensembles of its pruned versions contradict it most,
some of them are wrong, and people decide who: a few rated pairs find many failures, without a stronger rival. Model
and pruned versions then learn from the pairs, and the next round begins.

Wang et al., "Troubleshooting Blind Image Quality Models in the Wild", CVPR 2021, arXiv:2105.06747. The structure is the
paper's; numbers of competitors, levels and epochs, and how scores are made comparable, are our own choices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import scipy  # its modules load on first use
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.compression import GlobalMagnitude
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.hardening.gmad import Contest, nearness, pairs_between, ranked
from holdfast.hardening.preferences import Pairs, learn, pairs_of
from holdfast.methods import Analysis, Paper
from holdfast.models import extract, predict
from holdfast.run import Run

__all__ = ["Round", "SelfGMAD", "Troubleshooting", "Variant"]

#: Positions of the first and of the second images -> the share of votes for the first, float (M,) in [0, 1].
Rate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """A version of the model under test.

    Args:
        model: the network.
        masks: its pruned weights; none of an unpruned one.
    """

    model: nn.Module
    masks: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round.

    Args:
        contests: the pairs that were rated, and the votes for the one the attacker found better.
        votes: one share for each.
        right_before, right_after: the share of pairs that the model orders as the votes do, before and after it learnt
            from them; before, the pairs are new to it.
        correlations: by test set, Spearman's and Pearson's correlation with the ratings, after the round.
        rivals: Spearman's correlation of each rival on the old images when the round began. Rivals much worse than the
            model find their own failures, not its.
    """

    contests: tuple[Contest, ...]
    votes: tuple[float, ...]
    right_before: float
    right_after: float
    correlations: Mapping[str, tuple[float, float]]
    rivals: tuple[float, ...]

    @property
    def wrong(self) -> float:
        """The share of the pairs on which the model is wrong."""
        verdicts = [c.wrong(p)[0] for c, p in zip(self.contests, self.votes, strict=True)]
        return sum(verdicts) / max(1, len(verdicts))

    @property
    def rival_wrong(self) -> float:
        """The share of the pairs on which the rival is wrong."""
        verdicts = [c.wrong(p)[1] for c, p in zip(self.contests, self.votes, strict=True)]
        return sum(verdicts) / max(1, len(verdicts))


@dataclass(frozen=True, kw_only=True, eq=False)
class Troubleshooting:
    """What came out.

    Args:
        model: the one that has learnt; a copy of the given one.
        before: by test set, Spearman's and Pearson's correlation of the given model.
        rounds: one after the other.
    """

    model: nn.Module
    before: Mapping[str, tuple[float, float]]
    rounds: tuple[Round, ...]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        wrong = ", ".join(f"{r.wrong:.0%}" for r in self.rounds)
        rated = sum(len(r.contests) for r in self.rounds)
        gains = [
            f"{name} {rho:.3f} to {self.rounds[-1].correlations[name][0]:.3f}" for name, (rho, _) in self.before.items()
        ]
        rest = f" Rank correlation: {'; '.join(gains)}." if gains else ""
        return f"Of {rated} rated pairs, the model was wrong on {wrong}, round by round.{rest}"

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "before": {name: list(pair) for name, pair in self.before.items()},
            "rounds": [
                {
                    "wrong": r.wrong,
                    "rival_wrong": r.rival_wrong,
                    "right_before": r.right_before,
                    "right_after": r.right_after,
                    "correlations": {name: list(pair) for name, pair in r.correlations.items()},
                    "rivals": list(r.rivals),
                    "pairs": [[c.better, c.worse, p] for c, p in zip(r.contests, r.votes, strict=True)],
                }
                for r in self.rounds
            ],
        }


@dataclass(frozen=True, kw_only=True)
class SelfGMAD(
    Analysis,
    id="self-gmad",
    title="Self-gMAD",
    paper=Paper(
        title="Troubleshooting Blind Image Quality Models in the Wild", arxiv="2105.06747", venue="CVPR", year=2021
    ),
):
    """Finds, with few ratings, where a model of scores fails, and mends it.

    For models that give an image one number: quality, age, severity. Needs images with scores (those it was trained
    on), a pool without, and somebody to compare pairs. With `rivals`, other models take the place of the pruned ones
    (plain gMAD). Costs, per round, a pass of each version over the pool and a short training of each.

    Compare with `random-pairs`, its baseline: on small networks (see the evidence) chosen pairs mended the model little
    more than as many random ones did, and the model was wrong on them hardly more often.

    Args:
        rounds: of choosing, rating and learning.
        ratios: sparsity of each pruned version.
        members: how many pruned versions make one rival, by the mean of their ranks.
        competitors: rivals per round, drawn at random; each meets the model once in either role.
        levels: of the defender's scores; a pair lies on one level.
        top: pairs per level, role and rival. A round rates up to ``2 competitors levels top`` pairs.
        similarity: as long as there are others, no image is chosen in a round that is more like a chosen one than this:
            the cosine of their features, less the pool's mean.
        epochs: passes over all rated pairs after a round; each comes with as many pairs of old images.
        warm_up: epochs in which a freshly pruned version regains its accuracy, of as many pairs as old images.
        batch_size: pairs per step.
        lr: of Adam.
        deviation: by how much a single rating scatters, in the units of the scores; none takes a quarter of the
            scores' standard deviation.
    """

    needs = "a model of scores, a pool of images without them, and somebody who compares pairs"

    rounds: Annotated[int, Field(ge=1)] = 2
    ratios: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.2, 0.35, 0.5, 0.65, 0.8)
    members: Annotated[int, Field(ge=1)] = 3
    competitors: Annotated[int, Field(ge=1)] = 5
    levels: Annotated[int, Field(ge=1)] = 6
    top: Annotated[int, Field(ge=1)] = 1
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.9
    epochs: Annotated[int, Field(ge=1)] = 5
    warm_up: Annotated[int, Field(ge=0)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 1e-5
    deviation: Annotated[float, Field(gt=0)] | None = None

    def __call__(
        self,
        model: nn.Module,
        pool: Images,
        rate: Rate,
        old: Images,
        *,
        run: Run,
        tests: Mapping[str, Images] | None = None,
        rivals: Sequence[nn.Module] | None = None,
    ) -> Troubleshooting:
        """Troubleshoot a model.

        Args:
            model: from images to scores (N, 1); left as it was.
            pool: images without scores; their labels and columns are not read.
            rate: compares pairs of the pool.
            old: images with a column ``score``.
            run: device, seed, batch size.
            tests: further images with a column ``score``, by name, on which progress is measured.
            rivals: models to compete with in the place of pruned versions; left as they were.

        Raises:
            UserError: the model does not give one score per image, a column is missing, or votes are not shares.
        """
        scores = _scores(self.id, old)
        deviation = float(scores.std()) / 4 if self.deviation is None else self.deviation
        tests = tests or {}
        mine = Variant(model=copy.deepcopy(model).to(run.torch_device))
        if tuple(predict(mine.model, pool.select(slice(0, 2)), run=run).shape[1:]) != (1,):
            raise UserError(f"{self.id}: the model must give one score per image.")
        others = self.rivals(model, rivals, old, scores, deviation, run)
        before = {name: _correlations(self.id, mine.model, images, run) for name, images in tests.items()}
        free, rated, rounds = torch.ones(len(pool), dtype=torch.bool), None, []
        for number in range(self.rounds):
            here = run.child(f"round-{number}")
            contests = self.pairs(mine, others, pool, free, run=here)
            pairs = _rated(self.id, contests, pool, rate)
            agreed, standing = _agreement(mine.model, pairs, run), _standing(self.id, others, old, run)
            rated = pairs if rated is None else rated.join(pairs)
            for place, variant in enumerate((mine, *others)):
                self._learn(variant, rated, old, scores, deviation, here.child(str(place)))
            rounds.append(
                Round(
                    contests=tuple(contests),
                    votes=tuple(pairs.p.tolist()),
                    right_before=agreed,
                    right_after=_agreement(mine.model, pairs, run),
                    correlations={name: _correlations(self.id, mine.model, t, run) for name, t in tests.items()},
                    rivals=standing,
                )
            )
        return Troubleshooting(model=mine.model, before=before, rounds=tuple(rounds))

    def pairs(
        self, mine: Variant, others: Sequence[Variant], pool: Images, free: Bool[Tensor, " n"], *, run: Run
    ) -> list[Contest]:
        """The pairs to be rated in one round; images chosen are struck off `free`."""
        features = extract(mine.model, pool, run=run)
        own = features.logits.flatten()
        directions = nearness(own[:, None] if features.penultimate is None else features.penultimate)
        theirs = torch.stack([ranked(predict(v.model, pool, run=run).flatten()) for v in others])
        rng, fresh, found = run.rng("competitors"), torch.ones_like(free), []
        for _ in range(self.competitors):
            rival = theirs[torch.randperm(len(theirs), generator=rng)[: self.members]].mean(0)
            for attacks, (defender, attacker) in enumerate(((own, rival), (rival, own))):
                found += pairs_between(
                    defender,
                    attacker,
                    free,
                    fresh,
                    levels=self.levels,
                    top=self.top,
                    attacks=bool(attacks),
                    directions=directions,
                    similarity=self.similarity,
                )
        return found

    def rivals(
        self,
        model: nn.Module,
        given: Sequence[nn.Module] | None,
        old: Images,
        scores: Tensor,
        deviation: float,
        run: Run,
    ) -> list[Variant]:
        """Copies of the given rivals, or pruned versions of the model that have regained what they lost."""
        if given is not None:
            return [Variant(model=copy.deepcopy(rival).to(run.torch_device)) for rival in given]
        made = []
        for place, ratio in enumerate(self.ratios):
            here = run.child(f"variant-{place}")
            pruner = GlobalMagnitude(sparsity=ratio)
            masks = pruner.masks(model, old, ratio, run=here)
            variant = pruner(model, old, run=here).to(run.torch_device)
            learn(
                variant,
                lambda epoch, here=here: pairs_of(old, scores, len(old), deviation, here.rng("old", epoch)),  # type: ignore[misc]
                epochs=self.warm_up if ratio else 0,
                batch_size=self.batch_size,
                lr=self.lr,
                deviation=deviation,
                masks=masks,
                run=here,
            )
            made.append(Variant(model=variant, masks=masks))
        return made

    def _learn(self, variant: Variant, rated: Pairs, old: Images, scores: Tensor, deviation: float, run: Run) -> None:
        """Some epochs on all rated pairs and as many old ones."""

        def mixed(epoch: int) -> Pairs:
            return rated.join(pairs_of(old, scores, len(rated), deviation, run.rng("old", epoch)))

        learn(
            variant.model,
            mixed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            deviation=deviation,
            masks=variant.masks,
            run=run,
        )


def _scores(who: str, images: Images) -> Float[Tensor, " n"]:
    if "score" not in images.columns:
        raise UserError(f"{who}: {images.name} must have a column 'score'.")
    return torch.as_tensor(images.columns["score"]).double()


def _rated(who: str, contests: Sequence[Contest], pool: Images, rate: Rate) -> Pairs:
    """Have the pairs rated."""
    if not contests:
        raise UserError(f"{who}: {pool.name} has no pairs left to rate; take a larger pool, or ask for fewer.")
    better, worse = torch.tensor([[c.better, c.worse] for c in contests]).T
    votes = torch.as_tensor(rate(better, worse)).float()
    if votes.shape != better.shape or not bool(((votes >= 0) & (votes <= 1)).all()):
        raise UserError(f"{who}: votes for {len(better)} pairs must be as many shares in [0, 1].")
    return Pairs(pool.x[better], pool.x[worse], votes)


def _agreement(model: nn.Module, pairs: Pairs, run: Run) -> float:
    """The share of pairs that the model orders as the votes do; ties of the votes count half."""
    first, second = (_score(model, x, run) for x in (pairs.first, pairs.second))
    told = (first - second).sign() * (pairs.p - 0.5).sign()
    return float(((told + 1) / 2).double().mean())


def _score(model: nn.Module, x: Tensor, run: Run) -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return predict(model, Images(x=x, y=y, classes=("image",), name="pairs"), run=run).flatten()


def _correlations(who: str, model: nn.Module, images: Images, run: Run) -> tuple[float, float]:
    got, truth = predict(model, images, run=run).flatten().double().numpy(), _scores(who, images).numpy()
    return float(scipy.stats.spearmanr(got, truth).statistic), float(scipy.stats.pearsonr(got, truth).statistic)


def _standing(who: str, others: Sequence[Variant], old: Images, run: Run) -> tuple[float, ...]:
    return tuple(_correlations(who, v.model, old, run)[0] for v in others)
