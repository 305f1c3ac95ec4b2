"""The books of the engine in `holdfast.evasion.loop`: items, the slots they sit in, the queue, and what was found.

Tensors with one row per item live on the device; which sample and round a row belongs to is kept on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

__all__ = ["Items", "Ledger", "Pool", "Queue", "State", "cacheable"]

_CACHEABLE = 2**16  # values

#: Tensors with one row per item, by name.
State = dict[str, Tensor]


@dataclass
class Items:
    """Some items: their state, and the sample and round of each row."""

    state: State
    sample: np.ndarray
    round: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, which: np.ndarray) -> Items:
        """Copies of the rows at these positions."""
        index = torch.from_numpy(which)
        state = {name: values[index.to(values.device)] for name, values in self.state.items()}
        return Items(state, self.sample[which], self.round[which])

    @staticmethod
    def join(parts: list[Items]) -> Items:
        """The rows of all parts."""
        state = {name: torch.cat([part.state[name] for part in parts]) for name in parts[0].state}
        return Items(state, np.concatenate([p.sample for p in parts]), np.concatenate([p.round for p in parts]))


class Pool:
    """Slots for at most `capacity` items. Rows are moved, not reallocated: the last ones fill the gaps."""

    def __init__(self, capacity: int):
        self.capacity, self.count = capacity, 0
        self._slots: State = {}
        self._sample = np.zeros(capacity, np.int64)
        self._round = np.zeros(capacity, np.int64)

    @property
    def room(self) -> int:
        """Free slots."""
        return self.capacity - self.count

    @property
    def items(self) -> Items:
        """The items under way, as views into the slots; the mapping is read-only, for a replaced tensor is lost."""
        state = MappingProxyType({name: slot[: self.count] for name, slot in self._slots.items()})
        return Items(state, self._sample[: self.count], self._round[: self.count])  # type: ignore[arg-type]

    def put(self, items: Items) -> None:
        """Add items; there must be room."""
        start, end = self.count, self.count + len(items)
        for name, values in items.state.items():
            if name not in self._slots:
                self._slots[name] = _slots_for(values, self.capacity)
            self._slots[name][start:end] = values
        self._sample[start:end], self._round[start:end] = items.sample, items.round
        self.count = end

    def take(self, which: np.ndarray) -> Items:
        """Remove the items at these positions and return them."""
        taken = self.items.select(which)
        left = self.count - len(which)
        holes = which[which < left]
        movers = np.setdiff1d(np.arange(left, self.count), which, assume_unique=True)
        if len(holes):
            to, source = torch.from_numpy(holes), torch.from_numpy(movers)
            for slot in self._slots.values():
                slot[to.to(slot.device)] = slot[source.to(slot.device)]
            self._sample[holes], self._round[holes] = self._sample[movers], self._round[movers]
        self.count = left
        return taken


class Queue:
    """Items not yet begun, round by round."""

    def __init__(self, samples: np.ndarray, rounds: int):
        self._left = [samples for _ in range(rounds)]

    def __bool__(self) -> bool:
        return any(len(left) for left in self._left)

    def take(self, room: int, spare: int, fallen: np.ndarray, busy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose at most `room` items; returns their samples and rounds, and counts them in `busy`.

        Samples at which nothing is under way come first. A further round of a busy sample may turn out to be
        needless, so such items only fill what is left of the `spare` slots, which cost next to nothing.

        Args:
            room: free slots.
            spare: how many of them may be filled speculatively.
            fallen: per sample, its earliest successful round; later ones are dropped.
            busy: per sample, its items that were begun and have no verdict yet.
        """
        samples, rounds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for speculative in (False, True):
            if speculative:
                room = min(room, spare - sum(map(len, samples)))
            for round, left in enumerate(self._left):
                if room <= 0:
                    break
                left = left[fallen[left] > round]
                ready = (busy[left] > 0) if speculative else (busy[left] == 0)
                chosen = np.flatnonzero(ready)[:room]
                busy[left[chosen]] += 1
                samples.append(left[chosen])
                rounds.append(np.full(len(chosen), round))
                room -= len(chosen)
                self._left[round] = np.delete(left, chosen)
        return np.concatenate(samples), np.concatenate(rounds)


class Ledger:
    """What is known of each of N samples after the verdicts so far."""

    def __init__(self, x: Tensor, clean_logits: Tensor, rounds: int):
        self.rounds = rounds
        self.x_adv = x.clone()
        self.logits = clean_logits.clone()
        self.fallen = np.full(len(x), rounds)  # the earliest round that succeeded; `rounds` if none did
        self.spent = np.zeros((len(x), rounds), np.int32)  # queries by round
        self._nearest = np.full(len(x), -np.inf)  # the goal's margin at the point kept of a sample that stands
        self._nearest_round = np.full(len(x), rounds)

    @property
    def queries(self) -> np.ndarray:
        """Queries per sample, up to the round that decided it."""
        counted = np.arange(self.rounds) <= self.fallen[:, None]
        return np.where(counted, self.spent, 0).sum(1, dtype=np.int64)

    def record(
        self, items: Items, decided: np.ndarray, points: Tensor, hits: np.ndarray, margins: np.ndarray, logits: Tensor
    ) -> None:
        """Note the verdicts on items that ended.

        Args:
            items: some of which have a final verdict.
            decided: positions of those.
            points: what each item returns.
            hits: whether the point reaches the goal.
            margins: how near to the goal it is.
            logits: of the user's model at the point.
        """
        keep: dict[int, int] = {}
        for row in decided[np.lexsort((items.round[decided], items.sample[decided]))].tolist():
            sample, round = int(items.sample[row]), int(items.round[row])
            if self._fell(sample, round) if hits[row] else self._stood(sample, round, margins[row]):
                keep[sample] = row
        if keep:
            samples, rows = list(keep), list(keep.values())
            self.x_adv[samples] = points[rows].to(self.x_adv)
            self.logits[samples] = logits[rows].to(self.logits)

    def _fell(self, sample: int, round: int) -> bool:
        """Note a success; says whether it is the earliest so far."""
        earlier = bool(round < self.fallen[sample])
        if earlier:
            self.fallen[sample] = round
        return earlier

    def _stood(self, sample: int, round: int, margin: float) -> bool:
        """Note a failure; says whether its point is the one to keep: the nearest, of equals the earliest."""
        known = (self._nearest[sample], -self._nearest_round[sample])
        nearer = bool(self.fallen[sample] == self.rounds and (margin, -round) > known)
        if nearer:
            self._nearest[sample], self._nearest_round[sample] = margin, round
        return nearer


def cacheable(rows: Tensor) -> list[slice]:
    """Parts that a row of tensors like `rows` is best worked on in: on a CPU, a chain of small operations takes two
    thirds of the time where what one leaves is still in the cache for the next; elsewhere, all at once."""
    count = len(rows)
    size = max(1, _CACHEABLE // rows[0].numel()) if count and rows.device.type == "cpu" else max(1, count)
    return [slice(start, start + size) for start in range(0, count, size)]


def _slots_for(values: Tensor, capacity: int) -> Tensor:
    """Uninitialised rows like `values`, in its memory format."""
    shape = (capacity, *values.shape[1:])
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)
