"""QueryNet: surrogates that are trained on the queries already paid for propose the next one, and judge the proposals.

Every query's answer is a training example. Small networks learn them, each proposes for every image the point its
gradient leads to, Square proposes a patch, and the networks vote on which proposal is worth a query. Votes count by how
often a network's own proposals helped; when Square's help more often, it takes over.

Chen et al., "Query Attack by Multi-Identity Surrogates", 2021, arXiv:2105.15010, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import distance
from holdfast.evasion.losses import Aim, goal_margin, loss_for, reached
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import Outcome, check_inputs, check_labels
from holdfast.evasion.pool import State
from holdfast.evasion.square import Square
from holdfast.evasion.surrogates import Answers, Surrogate
from holdfast.methods import Paper
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, content_keys

__all__ = ["Mode", "QueryNet", "grid_ball", "mode_of", "reweighted"]

Mode = Literal["surrogates", "square+", "square"]

_TRIAL = 0x3C6EF372FE94F82B  # odd: keeps the random numbers of an image's trials apart
_ARCHITECTURES = ("convnet(width=16)", "convnet(width=32, blocks=2)", "convnet(width=24)")
_LEARNT = 0.02  # a surrogate's squared error, as a share of the answers' variance, at which training ends
_ROUNDING = 1e-4  # of the steps of a byte


@dataclass(frozen=True, kw_only=True)
class QueryNet(
    Evasion,
    id="querynet",
    title="QueryNet",
    paper=Paper(title="Query Attack by Multi-Identity Surrogates", arxiv="2105.15010", year=2021),
):
    """Query attack by multi-identity surrogates (l_inf).

    For an attacker who wants many images fooled with few queries each and has no data of the victim's: up to an order
    of magnitude fewer queries than Square. It attacks a set of images together, since all of them teach the surrogates,
    so a result depends on the company; a handful of images teaches too little, and Square does the work. Guards that
    answer untruthfully teach the surrogates wrongly, as they should.

    All queries are 8-bit images. The cost is the training of the surrogates: `batches` a round for each of them.

    The paper searches the surrogates' architectures anew in each round (PC-DARTS); here they are fixed small networks,
    which is its cheaper variant.

    Args:
        eps: radius of the l_inf ball, in pixel units of [0, 1].
        queries: budget per image, the one for the image itself included: its answer is the first lesson.
        surrogates: how many, 0 to 3; none leaves Square+.
        p_init: share of the pixels in the first squares, as for `square`, with its schedule stretched to the budget.
        trials: how often Square+ draws a patch until one is promising by what is known of the victim's slopes; 1 is
            plain Square.
        ambition: in Square+, how near the boundary a patch must be able to come, as a share of the nearest so far.
        first_batches: that the surrogates are trained on before their first proposal.
        batches: the same before each further one.
        batch_size: answers in each.
        trust_after: an attacker whose proposals were queried for fewer images than this in a round has no weight.
        memory: answers kept per image.
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 8 / 255
    queries: Annotated[int, Field(ge=2)] = 1000
    surrogates: Annotated[int, Field(ge=0, le=3)] = 2
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.05
    trials: Annotated[int, Field(ge=1)] = 50
    ambition: Annotated[float, Field(ge=0)] = 0.7
    first_batches: Annotated[int, Field(ge=0)] = 200
    batches: Annotated[int, Field(ge=0)] = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    trust_after: Annotated[int, Field(ge=1)] = 10
    memory: Annotated[int, Field(ge=2)] = 64

    norm = "linf"
    joint: ClassVar[bool] = True

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack all images together; see `Evasion.run`."""
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "any" if target is None else "given"
        with consult(model, x[:8], run) as oracle:
            x_adv, spent = x.clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
            clean = oracle.verdicts(x)
            check_labels(self.id, clean.shape[1], y, None if target is None else goal)
            logits = clean.clone()
            rows = (~reached(aim, clean, y, goal)).nonzero().squeeze(1)
            if len(rows):
                siege = Siege(self, oracle, x[rows], y[rows], goal[rows], aim, clean[rows], run)
                siege.run()
                x_adv[rows], spent[rows] = siege.state["best"].to(x_adv), siege.spent.to(x.device)
                logits[rows] = oracle.verdicts(x_adv[rows])
        return Outcome(
            x_adv=x_adv,
            success=reached(aim, logits, y, goal),
            correct=clean.argmax(1) == y,
            queries=spent,
            gradients=torch.zeros_like(spent),
            distance=distance(x_adv, x, "linf"),
            logits=logits,
            clean_logits=clean,
            norm="linf",
            eps=self.eps,
        )


class Siege:
    """One call's work on the images that are not fooled at the start; arguments as in `QueryNet.run`."""

    def __init__(
        self,
        attack: QueryNet,
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        goal: Tensor,
        aim: Aim,
        clean: Float[Tensor, "n k"],
        run: Run,
    ):
        device = oracle.device
        self.attack, self.oracle, self.aim, self.track = attack, oracle, aim, run.track
        x0 = fast_layout(x.float(), device)
        self.y, self.goal = y.to(device), goal.to(device)
        # The first query is taken by the image itself.
        plain = Square(eps=attack.eps, queries=attack.queries - 1, p_init=attack.p_init, rescale=True)
        self.square = plain.search(aim, run.seed_for("square"))
        self.state: State = {
            "x0": x0,
            "best": x0.clone(),
            "best_loss": torch.full((len(x0),), -float("inf"), device=device),
            "key": content_keys(x0),
            "step": torch.zeros(len(x0), dtype=torch.int64, device=device),
        }
        self.square.begin(self.state)
        self.state["low"], self.state["high"] = grid_ball(x0, attack.eps)
        self.fooled = torch.zeros(len(x0), dtype=torch.bool, device=device)
        self.spent = torch.ones_like(self.state["step"])
        self.answers = Answers(x0, clean.shape[1], attack.memory)
        scores = oracle.as_logits(clean.to(device))
        everyone = torch.arange(len(x0), device=device)
        self.answers.add(everyone, x0, scores, goal_margin(aim, scores, self.y, self.goal))
        kinds = _ARCHITECTURES[: attack.surrogates]
        self.surrogates = [Surrogate(kind, self.answers, run.child(f"surrogate-{kind}")) for kind in kinds]
        self.taught = False
        self.weights = [1.0] * len(self.surrogates) + [0.0, 0.0]

    def run(self) -> None:
        """Spend the budget: the stripes first, then one proposal a round for every image that stands."""
        with self.track(self.attack.queries - 1, self.attack.id) as ticker:
            for _ in range(self.attack.queries - 1):
                rows = (~self.fooled).nonzero().squeeze(1)
                if not len(rows):
                    return
                self._round(rows)
                ticker.advance(1, f"standing {float((~self.fooled).double().mean()):.1%}")

    def _round(self, rows: Int64[Tensor, " m"]) -> None:
        here = {name: values[rows] for name, values in self.state.items()}
        if int(here["step"][0]) == 0:
            self._query(rows, here, self.square.propose(here))
            return
        proposers, proposals = self._proposals(rows, here)
        chosen = self._vote(rows, proposals)
        points = torch.stack(proposals)[chosen, torch.arange(len(rows), device=rows.device)]
        improved = self._query(rows, here, points)
        if len(proposers) > 1:
            self.weights = reweighted(self.weights, proposers, chosen, improved, self.attack.trust_after)

    def _proposals(self, rows: Tensor, here: State) -> tuple[list[int], list[Tensor]]:
        """Who proposes in this round, as positions in the weights, and what."""
        count = len(self.surrogates)
        mode = mode_of(self.weights)
        if not count:
            return [0], [self._square_plus(rows, here)]
        if mode == "square":
            return [count + 1], [self.square.propose(here)]
        if mode == "square+":
            other = self.square.propose(_afresh(here, self.attack.trials))
            return [count, count + 1], [self._square_plus(rows, here), other]
        a = self.attack
        for surrogate in self.surrogates:
            surrogate.fit(a.batches if self.taught else a.first_batches, a.batch_size, _LEARNT)
        self.taught = True
        led = [self._led(surrogate, rows, here) for surrogate in self.surrogates]
        return [*range(count), count], [*led, self._square_plus(rows, here)]

    def _led(self, surrogate: Surrogate, rows: Tensor, here: State) -> Float[Tensor, "m c h w"]:
        """Where a surrogate's gradient leads: a step of twice eps along its sign, which ends on the ball's surface."""
        best = here["best"]
        gradient = surrogate.gradient(best, loss_for(self.aim, "ce"), self.y[rows], self.goal[rows])
        return torch.where(gradient > 0, here["high"], torch.where(gradient < 0, here["low"], best))

    def _square_plus(self, rows: Tensor, here: State) -> Float[Tensor, "m c h w"]:
        """Square's proposal, drawn again where it is not promising."""
        proposal = self.square.propose(here)
        poor = torch.arange(len(rows), device=rows.device)
        for trial in range(1, self.attack.trials):
            poor = poor[~self.answers.promising(rows[poor], proposal[poor], self.attack.ambition)]
            if not len(poor):
                break
            again = {name: values[poor] for name, values in here.items()}
            proposal[poor] = self.square.propose(_afresh(again, trial))
        return proposal

    def _vote(self, rows: Tensor, proposals: list[Tensor]) -> Int64[Tensor, " m"]:
        """Which proposal the surrogates take for the best, by their weighted mean; of equals the first."""
        if len(proposals) == 1:
            return torch.zeros_like(rows)
        votes = torch.zeros(len(proposals), len(rows), device=rows.device)
        for weight, surrogate in zip(self.weights, self.surrogates, strict=False):
            if not weight:
                continue
            for vote, points in zip(votes, proposals, strict=True):
                vote += weight * goal_margin(self.aim, surrogate.scores(points), self.y[rows], self.goal[rows])
        return votes.argmax(0)

    def _query(self, rows: Tensor, here: State, points: Float[Tensor, "m c h w"]) -> Bool[Tensor, " m"]:
        """Ask the user's model, book the answers, and say which points are nearer to the goal than any before."""
        answers = self.oracle.verdicts(points)
        scores = self.oracle.as_logits(answers)
        y, goal = self.y[rows], self.goal[rows]
        fooled = reached(self.aim, answers, y, goal)
        loss = self.square.loss(scores, y, goal).masked_fill(fooled, float("inf"))
        improved = loss > here["best_loss"]
        self.state["best"][rows[improved]] = points[improved]
        self.state["best_loss"][rows[improved]] = loss[improved]
        self.state["step"][rows] += 1
        self.spent[rows] += 1
        self.fooled[rows] = fooled
        if self.attack.trials > 1 or self.surrogates:
            self.answers.add(rows, points, scores, goal_margin(self.aim, scores, y, goal))
        return improved


def _afresh(state: State, trial: int) -> State:
    """The same with other random numbers."""
    return {**state, "key": state["key"] + torch.tensor(trial, device=state["key"].device) * _TRIAL}


def mode_of(weights: Sequence[float]) -> Mode:
    """Who proposes, by the weights of the surrogates, of Square+ and of Square: who is heaviest.

    The surrogates must be heavier than both. Where nobody has any weight, Square+ goes on.
    """
    most = max(weights)
    if weights[-2] == most:
        return "square+"
    return "square" if weights[-1] == most else "surrogates"


def reweighted(
    weights: Sequence[float],
    proposers: Sequence[int],
    chosen: Int64[Tensor, " m"],
    improved: Bool[Tensor, " m"],
    least: int,
) -> list[float]:
    """The weights after a round: for those who proposed, the share of their chosen proposals that helped.

    Args:
        weights: before.
        proposers: their positions in the weights.
        chosen: for each image, whose proposal was queried, as a position in `proposers`.
        improved: whether it helped.
        least: with fewer chosen proposals than this the share says nothing, and is 0.
    """
    after = list(weights)
    for place, who in enumerate(proposers):
        own = improved[chosen == place]
        after[who] = float(own.double().mean()) if len(own) >= least else 0.0
    return after


def grid_ball(x: Float[Tensor, "n c h w"], eps: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest 8-bit image within `eps` of each image, l_inf.

    A pixel with no whole byte within reach, or only its own, keeps its value.
    """
    exact = x.double() * 255
    low = torch.ceil(exact - eps * 255 - _ROUNDING).clamp_min(0)
    high = torch.floor(exact + eps * 255 + _ROUNDING).clamp_max(255)

    def settled(level: Tensor) -> Tensor:
        own = (low > high) | ((level - exact).abs() <= _ROUNDING)
        return torch.where(own, x, (level / 255).float())

    return settled(low), settled(high)
