"""What comes back from a model that only answers: scores or labels, a failure in passing, or nothing at all."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Memory", "QueriesSpent", "Transient", "Unanswered", "read_answer"]

_ENTRY = 200  # bytes that an answer takes in the memory beside its scores


class Unanswered(UserError):  # noqa: N818 - as for `Transient`
    """The model could not be asked now. It says nothing about the images, so nothing may be concluded from it."""


class QueriesSpent(Unanswered):
    """The budget of queries does not suffice for the next ones."""


class Transient(Exception):  # noqa: N818 - a state of affairs, not an error of anyone's
    """Raised by a callable when the same call may succeed a little later.

    Args:
        message: what happened.
        after: seconds to wait at least before the next attempt.
    """

    def __init__(self, message: str, after: float = 0.0):
        super().__init__(message)
        self.after = after


def read_answer(answer: object, count: int, classes: int | None, who: str) -> tuple[NDArray[np.float32], bool]:
    """The scores that an answer means, and whether it was labels.

    Args:
        answer: scores (N, K), or whole-number labels (N,) or (N, 1); a tensor, an array, or lists of numbers.
        count: N, the images asked about.
        classes: K, if it is known.
        who: answered, for messages.

    Returns:
        Finite float32 scores (N, K); of labels, one-hot.

    Raises:
        UserError: the answer is something else.
    """
    wanted = f"{who} must answer {count} images with scores of shape ({count}, classes) or {count} labels"
    if isinstance(answer, Tensor):
        answer = answer.detach().cpu().numpy()
    try:
        values: NDArray[Any] = np.asarray(answer)
    except ValueError:
        raise UserError(f"{wanted}, got lists of different lengths.") from None
    if values.dtype.kind not in "biuf":
        raise UserError(f"{wanted}, got a {type(answer).__name__} of type {values.dtype}.")
    if values.dtype.kind != "f" and values.shape in ((count,), (count, 1)):
        return _one_hot(values.reshape(count).astype(np.int64), classes, who), True
    if values.ndim != 2 or len(values) != count:
        raise UserError(f"{wanted}, got shape {values.shape} of type {values.dtype}.")
    if classes is not None and values.shape[1] != classes:
        raise UserError(f"{who} must give {classes} scores an image, got {values.shape[1]}.")
    with np.errstate(over="ignore"):
        scores = values.astype(np.float32)
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(1).sum())
        raise UserError(f"{who} answered with NaN or infinite scores for {bad} of {count} images.")
    return scores, False


def _one_hot(labels: NDArray[np.int64], classes: int | None, who: str) -> NDArray[np.float32]:
    if classes is None:
        raise UserError(f"{who} answers with labels alone: give num_classes.")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < classes:
        raise UserError(f"{who} answered with labels {low}..{high}, but labels are 0..{classes - 1}.")
    return np.eye(classes, dtype=np.float32)[labels]


class Memory:
    """Scores by key, the most recently used that fit into some bytes."""

    def __init__(self, most: int):
        self._most, self._taken = most, 0
        self._scores: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The scores of that key, if they are still here."""
        scores = self._scores.get(key)
        if scores is not None:
            self._scores.move_to_end(key)
        return scores

    def put(self, key: bytes, scores: NDArray[np.float32]) -> None:
        """Remember, and drop what no longer fits."""
        if key not in self._scores:
            self._taken += scores.nbytes + _ENTRY
        self._scores[key] = scores.copy()  # a row of a batch would keep the whole batch alive
        while self._taken > self._most:
            self._taken -= self._scores.popitem(last=False)[1].nbytes + _ENTRY

    def clear(self) -> None:
        """Forget everything."""
        self._scores.clear()
        self._taken = 0
