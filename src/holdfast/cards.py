"""The card a method carries: what it is, where it was published, and what its hyperparameters take."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from holdfast import specs

__all__ = [
    "Card",
    "FieldCard",
    "Paper",
    "accepts",
    "argument_docs",
    "card_of",
    "default_of",
    "hyperparameters",
    "type_name",
]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method was published."""

    title: str = ""
    arxiv: str | None = None
    doi: str | None = None
    venue: str = ""
    year: int | None = None

    @property
    def url(self) -> str | None:
        """A link to the paper."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else None

    def __str__(self) -> str:
        where = ", ".join(str(part) for part in (self.title, self.venue, self.year) if part)
        return f"{where} ({self.url})" if self.url else where


@dataclass(frozen=True)
class FieldCard:
    """One hyperparameter: its name, type, default, what it accepts, and what it means."""

    name: str
    type: str
    default: Any
    accepts: str
    doc: str


@dataclass(frozen=True)
class Card:
    """What is known of a method without running it."""

    id: str
    kind: str
    family: str
    title: str
    paper: Paper | None
    summary: str
    doc: str
    fields: tuple[FieldCard, ...]

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        value = dataclasses.asdict(self)
        value["paper"] = None if self.paper is None else {**dataclasses.asdict(self.paper), "url": self.paper.url}
        for field in value["fields"]:
            field["default"] = _plain(field["default"])
        return value


def hyperparameters(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    """The dataclass fields of a method class."""
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, or `dataclasses.MISSING`."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


@functools.cache
def card_of(cls: Any) -> Card:
    """The card of a method class, from its class line, its dataclass fields and its docstring."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    described: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # what a field means may be said once, where several methods inherit it from
        described |= argument_docs(inspect.cleandoc(base.__doc__ or ""))
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(
        FieldCard(f.name, type_name(hints[f.name]), default_of(f), accepts(hints[f.name]), described.get(f.name, ""))
        for f in hyperparameters(cls)
    )
    parts = cls.__module__.split(".")
    family = parts[1] if parts[0] == "holdfast" and len(parts) > 2 else parts[0]
    title = cls.title if cls.title != cls.id else doc.split("\n", 1)[0].rstrip(".") or cls.id
    return Card(cls.id, cls.kind, family, title, cls.paper, doc.split("\n\n", 1)[0].replace("\n", " "), doc, fields)


def argument_docs(doc: str) -> dict[str, str]:
    """Read the ``Args:`` section of a Google-style docstring; ``a, b: text`` describes both."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    described: dict[str, str] = {}
    if match:
        for entry in re.split(r"\n(?= {4}\S)", match.group(1).rstrip()):
            names, _, text = entry.strip().partition(":")
            for name in names.split(","):
                described[name.strip()] = " ".join(text.split())
    return described


def type_name(hint: Any) -> str:
    """A type annotation in words a user knows, without bounds."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    args = typing.get_args(hint)
    if args and type(None) in args:
        return " | ".join(type_name(a) for a in args)
    if hint is type(None):
        return "none"
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return f"{name}[{', '.join('...' if a is ... else type_name(a) for a in args)}]" if args else name


_NOUNS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}


def accepts(hint: Any) -> str:
    """The type and bounds of a field in words, e.g. ``a number in (0, 1]``."""
    bounds: dict[str, Any] = {}
    while typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        for extra in extras:
            for item in [extra, *getattr(extra, "metadata", ())]:
                bounds |= {k: getattr(item, k) for k in ("gt", "ge", "lt", "le") if getattr(item, k, None) is not None}
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if args and type(None) in args:
        return " or ".join([accepts(a) for a in args if a is not type(None)] + ["none"])
    if typing.get_origin(hint) is tuple and args[1:] == (...,):
        return f"a list, each of it {accepts(args[0])}"
    if isinstance(hint, type) and hasattr(hint, "kind"):  # a method within a method
        return f"{'an' if hint.kind[0] in 'aeiou' else 'a'} {hint.kind}"
    noun = _NOUNS.get(getattr(hint, "__name__", ""), f"of type {type_name(hint)}")
    low = f"[{_bound(bounds['ge'])}" if "ge" in bounds else f"({_bound(bounds['gt'])}" if "gt" in bounds else None
    high = f"{_bound(bounds['le'])}]" if "le" in bounds else f"{_bound(bounds['lt'])})" if "lt" in bounds else None
    if low and high:
        return f"{noun} in {low}, {high}"
    if low:
        return f"{noun} {'of at least' if 'ge' in bounds else 'above'} {_bound(bounds.get('ge', bounds.get('gt')))}"
    if high:
        return f"{noun} {'of at most' if 'le' in bounds else 'below'} {_bound(bounds.get('le', bounds.get('lt')))}"
    return noun


def _bound(value: Any) -> str:
    fraction = Fraction(value).limit_denominator(255)
    if fraction.denominator == 255 and float(fraction) == value:
        return f"{fraction.numerator}/255"
    return f"{value:g}"


def _plain(value: Any) -> Any:
    if value is dataclasses.MISSING:
        return None
    if isinstance(value, specs.Spec) or hasattr(value, "spec"):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
