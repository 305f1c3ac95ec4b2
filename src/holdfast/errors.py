"""What went wrong, in one sentence, with the remedy.

Everything a user can cause raises `UserError`; the command line prints its message and exits with 2. Any other
exception is a defect of holdfast and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean", "one_of"]


class UserError(Exception):
    """A mistake the user can mend: the message names the offender, what it got, and what it takes."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'pgd'?"`` when an option resembles `name`, else an empty string."""
    wanted, originals = name.lower(), {option.lower(): option for option in options}
    close = difflib.get_close_matches(wanted, originals, n=5, cutoff=0.6)
    if not close:
        return ""
    # Of equally close ones, that which begins alike: 'resnet21' is resnet20 rather than resnet32.
    best = max(close, key=lambda option: (_similarity(wanted, option), _shared_start(wanted, option)))
    return f" Did you mean {originals[best]!r}?"


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _shared_start(a: str, b: str) -> int:
    return next((i for i, (p, q) in enumerate(zip(a, b, strict=False)) if p != q), min(len(a), len(b)))


def one_of(what: str, name: str, options: Iterable[str]) -> UserError:
    """An error for a name that is none of `options`: suggests the nearest, or lists them when they are few."""
    options = sorted(options)
    hint = did_you_mean(name, options)
    if not hint:
        hint = f" It takes one of: {', '.join(options)}." if len(options) <= 16 else ""
    return UserError(f"{what} {name!r} is unknown.{hint}")
