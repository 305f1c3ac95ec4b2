"""`Sign`: one test for masked gradients, with its number, its limit, and the attack it calls for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Sign", "share", "sign"]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One test for masked gradients.

    Args:
        name: kebab-case.
        ok: the value is within its limit.
        value: what was measured; a share of the images unless the explanation says otherwise.
        limit: the largest value of a model that behaves.
        severity: what a value beyond the limit means: ``"fail"``, the robustness measured is not real; ``"warn"``, a
            stronger attack is needed.
        explanation: what the value is, and what it means beyond the limit.
        suggests: the attack to try where the value is beyond the limit.
    """

    name: str
    ok: bool
    value: float
    limit: float
    severity: Literal["fail", "warn"]
    explanation: str
    suggests: str = ""

    @property
    def result(self) -> Literal["pass", "warn", "fail"]:
        """The outcome in a word."""
        return "pass" if self.ok else self.severity


def sign(
    name: str, value: float, limit: float, severity: Literal["fail", "warn"], explanation: str, suggests: str
) -> Sign:
    """A sign that is raised by a value above its limit."""
    return Sign(
        name=name,
        ok=value <= limit,
        value=value,
        limit=limit,
        severity=severity,
        explanation=explanation,
        suggests=suggests,
    )


def share(flags: Tensor) -> float:
    """The share of true values."""
    return float(flags.double().mean())
