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
    close = difflib.get_close_matches(name.lower(), [o.lower() for o in options], n=1, cutoff=0.6)
    if not close:
        return ""
    original = next(o for o in options if o.lower() == close[0])
    return f" Did you mean {original!r}?"


def one_of(what: str, name: str, options: Iterable[str]) -> UserError:
    """An error for a name that is none of `options`: suggests the nearest, or lists them when they are few."""
    options = sorted(options)
    hint = did_you_mean(name, options)
    if not hint:
        hint = f" It takes one of: {', '.join(options)}." if len(options) <= 16 else ""
    return UserError(f"{what} {name!r} is unknown.{hint}")
