"""What a stream of requests leaves of a model's knowledge, after each request: of what remains, and of what must go.

A task is what one request taught. Its accuracy is that on test images of its classes, as far as they remain: a class
that was forgotten on demand counts against nobody. With a(i, j) the accuracy on task j after request i, the average is
the mean over tasks of a(n, j), and forgetting the mean of max over i of a(i, j) - a(n, j), over tasks learnt before the
last request (Chaudhry et al., ECCV 2018, arXiv:1801.10112; Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.continual.memory import Memory, ids_of
from holdfast.continual.request import Request
from holdfast.data import Images, concat
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["Account", "Record"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known after a request; rates are in [0, 1], and ``None`` where there is nothing to measure.

    Args:
        number: of the request, counted from 1.
        title: the request in words.
        learnt, forgotten: its images.
        hits: right answers and images of the test set, for each class that was ever taught.
        tasks: accuracy on each task so far.
        remaining: accuracy on test images of all classes that remain.
        unlearned: accuracy on all training images forgotten so far. It ought to be that of a model that never saw them,
            which for a whole class is 0 and for single images is not.
        average: mean over the tasks.
        forgetting: mean loss of accuracy since each task was known best, over tasks learnt before this request.
        remembered: images in the memory.
        seconds: it took.
    """

    number: int
    title: str
    learnt: int
    forgotten: int
    hits: Mapping[str, tuple[int, int]]
    tasks: tuple[float | None, ...]
    remaining: float | None
    unlearned: float | None
    average: float | None
    forgetting: float | None
    remembered: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """What `to_json` gave."""
        hits = {name: (right, count) for name, (right, count) in value["hits"].items()}
        return cls(**{**value, "hits": hits, "tasks": tuple(value["tasks"])})


class Account:
    """Keeps count of tasks, classes and forgotten images over a stream.

    Args:
        test: images to measure on, of all classes that will come.
    """

    def __init__(self, test: Images):
        self.test = test
        self.tasks: list[tuple[int, frozenset[int]]] = []  # when it was learnt, counted from 0, and its classes
        self.learnt: dict[int, int] = {}  # class of each image that is known, by id
        self.forgotten: Images | None = None
        self.hits: list[Tensor] = []  # after each request, right answers and images by class (2, K)

    def note(self, request: Request) -> None:
        """Take notice of a request."""
        if request.learn is not None:
            self.tasks.append((len(self.hits), frozenset(request.learn.y.tolist())))
            self.learnt.update(zip(ids_of(request.learn).tolist(), request.learn.y.tolist(), strict=True))
        if request.forget is not None:
            for id in ids_of(request.forget).tolist():
                self.learnt.pop(id, None)
            more = request.forget.but(columns={})
            self.forgotten = more if self.forgotten is None else concat(self.forgotten, more)

    def recall(self, record: Record) -> None:
        """Take over what was measured in another session."""
        names = self.test.classes
        self.hits.append(torch.tensor([record.hits.get(name, (0, 0)) for name in names]).T)

    def measure(self, model: nn.Module, request: Request, memory: Memory, seconds: float, *, run: Run) -> Record:
        """What the model knows after a request that was noted."""
        shown = sorted(set().union(*(known for _, known in self.tasks)))
        test = self.test.select(torch.isin(self.test.y, torch.tensor(shown, dtype=torch.int64)))
        right = predict(model, test, run=run).argmax(1) == test.y
        counts = [torch.bincount(test.y[which], minlength=test.num_classes) for which in (right, slice(None))]
        self.hits.append(torch.stack(counts))
        unlearned = None
        if self.forgotten is not None:
            answers = predict(model, self.forgotten, run=run).argmax(1)
            unlearned = float((answers == self.forgotten.y).double().mean())
        tasks = [self._accuracy(-1, known) for _, known in self.tasks]
        return Record(
            number=len(self.hits),
            title=request.title,
            learnt=0 if request.learn is None else len(request.learn),
            forgotten=0 if request.forget is None else len(request.forget),
            hits={self.test.classes[k]: (int(self.hits[-1][0, k]), int(self.hits[-1][1, k])) for k in shown},
            tasks=tuple(tasks),
            remaining=self._accuracy(-1, frozenset(self.learnt.values())),
            unlearned=unlearned,
            average=_mean(tasks),
            forgetting=_mean([self._lost(begin, known) for begin, known in self.tasks if begin < len(self.hits) - 1]),
            remembered=len(memory),
            seconds=round(seconds, 2),
        )

    def _accuracy(self, after: int, known: frozenset[int]) -> float | None:
        """On those of the classes that remain, after a request."""
        left = sorted(known & set(self.learnt.values()))
        right, count = self.hits[after][:, left].sum(1).tolist()
        return right / count if count else None

    def _lost(self, begin: int, known: frozenset[int]) -> float | None:
        course = [self._accuracy(after, known) for after in range(begin, len(self.hits))]
        values = [value for value in course if value is not None]
        return max(values) - values[-1] if values else None


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
