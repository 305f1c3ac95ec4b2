"""`Check`, one question the audit asks, and `Answer`, what it measured.

A check is one file in ``audit/checks``: a frozen dataclass that inherits `Check` and is registered thereby. It only
measures; the verdict is the policy's. So that a new check needs no second file, it may bring its own `limits`:

    @dataclass(frozen=True, kw_only=True)
    class MirrorStability(Check):
        \"\"\"Do predictions survive a mirror?\"\"\"

        id, section, title = "mirror-stability", "corruption", "Mirroring"
        question = "Do predictions survive a mirror?"
        limits = {"changed": Rule(better="lower", pass_at=0.05, fail_beyond=0.15, source="Our own demand.")}

        def __call__(self, subject: Subject) -> Answer:
            mirrored = predict(subject.model, subject.test.but(x=subject.test.x.flip(-1)), run=subject.run)
            changed = mirrored.argmax(1).numpy() != subject.predictions().label
            return Answer(metrics=[rate("changed", changed, better="lower")])
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from holdfast import stats
from holdfast.audit.findings import Action, Figure, Metric
from holdfast.audit.policy import Rule
from holdfast.audit.sections import AXES
from holdfast.errors import UserError, one_of

if TYPE_CHECKING:
    from holdfast.audit.subject import Subject

__all__ = ["Answer", "Check", "Remedy", "all_checks", "among", "checks_named", "left_out", "rate"]


@dataclass(frozen=True)
class Remedy:
    """What to do when a metric does not pass.

    Args:
        action: the advice.
        when: the metric it mends; the advice is given when its decision is not a pass. ``""``: whenever the finding
            does not pass.
    """

    action: Action
    when: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a check measured.

    Args:
        metrics: numbers, with intervals where they have one; the policy decides on those it has limits for.
        figures: charts, tables, galleries.
        remedies: what to do about metrics that do not pass.
        settings: all that the numbers depend on.
        limitations: what the numbers do not show, in plain words.
        doubt: why the numbers should not be believed; it turns a pass into attention.
        samples: per-sample columns: by split (``test``, ``train``, ``val``, or the name of an OOD set), then by name;
            one value for each of the split's first images.
    """

    metrics: Sequence[Metric]
    figures: Sequence[Figure] = ()
    remedies: Sequence[Remedy] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    limitations: Sequence[str] = ()
    doubt: str = ""
    samples: Mapping[str, Mapping[str, Tensor | np.ndarray[Any, Any]]] = field(default_factory=dict)


class Check(ABC):
    """One question of the audit; see the module's example.

    Raises:
        UserError: from ``__call__``, when the question cannot be answered for this subject (no training images, no
            groups, ...): the finding is then `not assessed`, with the error's sentence as its reason.
    """

    id: ClassVar[str]
    section: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    limits: ClassVar[Mapping[str, Rule]] = {}
    #: What it needs of the model beside answers: ``weights``, ``gradients``, or ``scores`` (more than labels). Where
    #: the model has none to give, the finding is `not assessed`.
    needs: ClassVar[tuple[str, ...]] = ()

    registry: ClassVar[dict[str, type[Check]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("id", "section", "title", "question"):
            if not isinstance(getattr(cls, name, None), str):
                raise TypeError(f"{cls.__qualname__}: a check must have a text for {name!r}")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.id):
            raise TypeError(f"{cls.__qualname__}: a check's id is kebab-case, got {cls.id!r}")
        if not set(cls.needs) <= {"weights", "gradients", "scores"}:
            raise TypeError(f"{cls.__qualname__}: a check may need weights, gradients or scores, got {cls.needs!r}")
        if cls.section not in {axis.id for axis in AXES}:
            raise TypeError(f"{cls.__qualname__}: there is no section {cls.section!r}")
        taken = Check.registry.get(cls.id)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"the id {cls.id!r} of {cls.__qualname__} is taken by {taken.__module__}")
        Check.registry[cls.id] = cls

    @abstractmethod
    def __call__(self, subject: Subject) -> Answer:
        """Measure."""

    @property
    def settings(self) -> dict[str, Any]:
        """The check's own hyperparameters."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def code(self) -> str:
        """The text of the file that defines the check: findings of an edited check are not taken up."""
        path = inspect.getsourcefile(type(self))
        return Path(path).read_text(encoding="utf-8") if path and Path(path).is_file() else ""


def all_checks() -> list[Check]:
    """One of each check, by section and then by id."""
    package = importlib.import_module("holdfast.audit.checks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"holdfast.audit.checks.{module.name}")
    order = {axis.id: place for place, axis in enumerate(AXES)}
    return [cls() for cls in sorted(Check.registry.values(), key=lambda c: (order[c.section], c.id))]


def checks_named(names: Sequence[str] | None) -> list[Check]:
    """The checks of the given ids or sections; all when there are none.

    Raises:
        UserError: a name is neither a check nor a section.
    """
    checks = all_checks()
    if not names:
        return checks
    known = {check.id for check in checks} | {check.section for check in checks}
    for name in names:
        if name not in known:
            raise one_of("check", name, known)
    return [check for check in checks if check.id in names or check.section in names]


def left_out(subject: Subject, count: int | None) -> None:
    """Leave a check unassessed where the profile gives it no images.

    Raises:
        UserError: it gives none.
    """
    if count == 0:
        raise UserError(f"The profile {subject.profile.name} leaves it out, for the time it takes.")


def among(count: int) -> float:
    """The level at which to take the interval of the worst of `count` rates, so that it holds for all (Bonferroni)."""
    return 1 - 0.05 / max(count, 1)


def rate(
    name: str,
    outcomes: ArrayLike,
    *,
    title: str = "",
    better: Literal["higher", "lower", "neither"] = "higher",
) -> Metric:
    """The share of true outcomes, with Wilson's interval; no value when there are no outcomes."""
    outcomes = np.asarray(outcomes, dtype=bool)
    k, n = int(outcomes.sum()), len(outcomes)
    if not n:
        return Metric(name=name, value=None, n=0, unit="rate", better=better, title=title)
    low, high = stats.wilson(k, n)
    return Metric(name=name, value=k / n, low=low, high=high, n=n, unit="rate", better=better, title=title)
