"""The engine of the iterative attacks: a pool of slots in which items are worked on side by side.

An item is one attempt at one sample: (sample, round), where a round is one restart towards one target. A fixed number
of slots hold the state of the items under way. Whenever one succeeds or runs out of steps, its slot goes to the next
item, so the model always sees full batches. Against an undefended network nearly all samples fall within three steps,
and a hundred-step attack costs a few per cent of what it would cost in lockstep. Items are taken round by round, and
a sample that has fallen takes no part in later rounds.

A sample's result does not depend on its neighbours, on the number of slots or on the order of the samples:

- its random numbers are a function of its content and round (see `holdfast.run.uniform_at`);
- the model does not mix the samples of a batch (`holdfast.models.frozen` refuses one that does);
- the earliest successful round decides, whichever happens to finish first: rounds before it are run to their end, and
  what rounds after it have found is discarded.

What the search takes for a success is a suspect until the user's model has judged it in float32. Suspects are judged
in full batches; one that is denied goes back into a slot and searches on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from holdfast.evasion.losses import Aim, Loss, goal_margin, reached
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pool import Items, Ledger, Pool, Queue, State
from holdfast.run import Ticker

__all__ = ["Drive", "Search"]

#: With fewer rows a pass is inefficient (ResNet-20 on a CPU: 1.4 ms an image in batches of 8, 1.0 from 32 up).
FEW = 32

#: What bf16, with its 8 bits, leaves open of a difference of logits, as a share of their range: about the standard
#: deviation of its error (0.7 to 1.5 times that on ResNet-20, undefended and robust).
_BLUR = 2.0**-9


class Search(ABC):
    """What an attack does to the items in the slots; the engine does the rest.

    The engine provides the entries ``x0`` (the image), ``y`` and ``target`` (int64), ``key`` (int64, of the item's
    random numbers), ``step`` (int64, steps done), ``best`` (the point to return), ``best_loss`` and ``fooled`` (bool).

    Args:
        steps: an item ends after this many.
        aim: what counts as success.
        loss: what the search maximises; compares the points of one item.
        gradients: taken per step.
        queries: of the model, for each item, per step.
    """

    def __init__(self, *, steps: int, aim: Aim, loss: Loss, gradients: int, queries: int = 1):
        self.steps, self.aim, self.loss = steps, aim, loss
        self.gradients, self.queries = gradients, queries

    @abstractmethod
    def begin(self, fresh: State) -> None:
        """Add the search's own entries to the state of items that start."""

    @abstractmethod
    def step(self, oracle: Oracle, state: State) -> None:
        """Query the model `queries` times for each row, and move on.

        The tensors are views into the slots: write into them. Set ``fooled`` where the point queried reaches the aim,
        and keep that point in ``best`` with an infinite ``best_loss``; move on all the same, for the verdict may be
        that it does not.
        """

    def note(self, state: State, points: Tensor, logits: Tensor, *, ties: bool = False) -> Tensor:
        """Book points that were queried: who reaches the aim, and the best so far.

        Args:
            state: of the items, one row for each point; written into.
            points: what was queried.
            logits: the answers.
            ties: prefer the new point where it is just as good.

        Returns:
            Which points are now the best of their item.
        """
        fooled = reached(self.aim, logits, state["y"], state["target"])
        loss = self.loss(logits, state["y"], state["target"]).masked_fill(fooled, float("inf"))
        better = loss >= state["best_loss"] if ties else loss > state["best_loss"]
        state["fooled"].copy_(fooled)
        torch.maximum(loss, state["best_loss"], out=state["best_loss"])
        rows = better.nonzero().squeeze(1)  # few, as a rule
        state["best"][rows] = points[rows]
        return better

    def consider(self, oracle: Oracle, state: State, points: Tensor, *, ties: bool = False) -> Tensor:
        """Query points and book them, as `note` does; arguments and result are the same.

        With ``precision="bf16"`` a pass in bf16 looks at the points first. Those whose loss it finds lower than the
        best so far, by more than it is usually wrong, are given up; the others get a pass in float32, which alone
        decides what is kept, at which loss, and what is a success. Hence nothing is kept by mistake, and only small
        gains are missed. The second pass is arithmetic of ours, not a query: the model was asked about that point.
        """
        rough = oracle.screen(points)
        if rough is None:
            return self.note(state, points, oracle.logits(points), ties=ties)
        y, target = state["y"], state["target"]
        most = self.loss(rough, y, target) + _BLUR * (rough.amax(1) - rough.amin(1))
        hopeless = (most < state["best_loss"]) & ~reached(self.aim, rough, y, target)
        rows = (~hopeless).nonzero().squeeze(1)  # NaN is not hopeless
        better = torch.zeros_like(hopeless)
        state["fooled"].zero_()
        if len(rows):
            some = {name: state[name][rows] for name in ("y", "target", "best", "best_loss", "fooled")}
            better[rows] = self.note(some, points[rows], oracle.logits(points[rows]), ties=ties)
            for name in ("best", "best_loss", "fooled"):
                state[name][rows] = some[name]
        return better

    def unqueried(self, state: State) -> Tensor | None:
        """Where items that ran out of steps stand, if no query has seen these points; they are judged too."""
        return None


class Drive:
    """One search through many items.

    Args:
        search: what to do.
        oracle: the model.
        ledger: of all samples; filled in.
        samples: positions of those to attack.
        capacity: slots.
        start: the engine's part of the state of new items, from their samples and rounds.
    """

    def __init__(
        self,
        search: Search,
        oracle: Oracle,
        ledger: Ledger,
        samples: np.ndarray,
        *,
        capacity: int,
        start: Callable[[np.ndarray, np.ndarray], State],
    ):
        self.search, self.oracle, self.ledger, self.start = search, oracle, ledger, start
        self.samples = samples
        self.pool, self.queue = Pool(capacity), Queue(samples, ledger.rounds)
        # A GPU works on all slots at once; on a CPU every row beyond the first few is paid for.
        self.spare = capacity if oracle.device.type == "cuda" else min(capacity, FEW)
        self.busy = np.zeros(len(ledger.fallen), np.int64)
        self.suspects: list[Items] = []
        self.denied: list[Items] = []

    def run(self, ticker: Ticker) -> None:
        """Work until every item has its verdict; the ticker counts steps."""
        few = min(FEW, self.pool.capacity)
        while True:
            starving = self.pool.count == 0 or (self.pool.count < few and bool(self.queue))
            if sum(map(len, self.suspects)) >= self.pool.capacity or starving:
                self._judge(ticker)
            self._fill()
            if not self.pool.count:
                return
            standing = (self.ledger.fallen[self.samples] == self.ledger.rounds).sum()
            ticker.advance(self.pool.count, f"robust {standing / len(self.ledger.fallen):.1%}")
            self._step()

    def _fill(self) -> None:
        """Give the free slots to denied suspects, then to new items."""
        pool = self.pool
        while self.denied and pool.room:
            items = self.denied.pop()
            if len(items) > pool.room:
                self.denied.append(items.select(np.arange(pool.room, len(items))))
                items = items.select(np.arange(pool.room))
            pool.put(items)
        if pool.room:
            spare = self.spare - pool.count
            sample, round = self.queue.take(pool.room, spare, self.ledger.fallen, self.busy)
            if len(sample):
                fresh = self.start(sample, round)
                self.search.begin(fresh)
                pool.put(Items(fresh, sample, round))

    def _step(self) -> None:
        items = self.pool.items
        self.search.step(self.oracle, items.state)
        self.ledger.spent[items.sample, items.round] += 1
        over = items.state["step"].add_(1) >= self.search.steps
        ended = (items.state["fooled"] | over).cpu().numpy()
        if ended.any():
            self.suspects.append(self.pool.take(np.flatnonzero(ended)))

    def _judge(self, ticker: Ticker) -> None:
        """Have the user's model decide on the items that ended, then drop those that an earlier round has overtaken."""
        while self.suspects:
            items = Items.join(self.suspects)
            self.suspects = []
            state, last = items.state, self.search.unqueried(items.state)
            fooled = state["fooled"].clone()
            points = state["best"] if last is None else torch.where(_rows(fooled, last), state["best"], last)
            logits, hits, margins = self._verdict(points, state)
            loss = self.search.loss(self.oracle.as_logits(logits), state["y"], state["target"])
            earlier = (~hits & ~fooled & (loss < state["best_loss"])).nonzero().squeeze(1)
            if last is not None and len(earlier):  # an earlier point came nearer than the last: it is returned
                points[earlier] = state["best"][earlier]
                rows = {name: state[name][earlier] for name in ("y", "target")}
                logits[earlier], hits[earlier], margins[earlier] = self._verdict(points[earlier], rows)
            # A denied suspect is a point like any other. Its item goes on; if its steps are over, to its last point.
            denied = fooled & ~hits
            state["best_loss"] = torch.where(denied, loss, state["best_loss"])
            state["fooled"] = fooled & hits
            over = state["step"] >= self.search.steps
            for which, where in ((denied & ~over, self.denied), (denied & over, self.suspects)):
                if which.any():
                    where.append(items.select(_positions(which)))
            decided = _positions(~denied)
            self._settle(items, decided, points, hits.cpu().numpy(), margins.cpu().numpy(), logits, ticker)
        current = self.pool.items
        overtaken = np.flatnonzero(self.ledger.fallen[current.sample] < current.round)
        if len(overtaken):
            np.subtract.at(self.busy, self.pool.take(overtaken).sample, 1)

    def _settle(
        self,
        items: Items,
        decided: np.ndarray,
        points: Tensor,
        hits: np.ndarray,
        margins: np.ndarray,
        logits: Tensor,
        ticker: Ticker,
    ) -> None:
        self.ledger.record(items, decided, points, hits, margins, logits)
        np.subtract.at(self.busy, items.sample[decided], 1)
        planned = self.search.steps * self.ledger.rounds
        ticker.advance(float((planned - self.ledger.spent[items.sample[decided[hits[decided]]]].sum(1)).sum()))

    def _verdict(self, points: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The user's model's logits at the points, whether they reach the aim, and how near to it they are."""
        logits = self.oracle.verdict(points)
        seen = (self.search.aim, logits, state["y"], state["target"])
        return logits, reached(*seen), goal_margin(*seen)


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.ndim - 1))


def _positions(flags: Tensor) -> np.ndarray:
    return np.flatnonzero(flags.cpu().numpy())
