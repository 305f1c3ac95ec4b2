"""Markdown pieces that the builders share: tables, code fences, and docstrings as prose."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

__all__ = ["cell", "fence", "literal", "prose", "table"]

_CODE = re.compile(r"(`[^`]*`)")
# What a Google-style docstring may hold besides prose. `Args` is shown as a table, elsewhere.
_SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source", "Example", "Examples", "Note", "Notes", "Warning")


def cell(value: object) -> str:
    """`value` as the content of a table cell: one line, pipes outside code escaped, two backticks become one."""
    text = " ".join(str(value).split()).replace("``", "`")
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in _CODE.split(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, or an empty string when there are no rows."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    if not lines:
        return ""
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*head, *lines]) + "\n"


def fence(language: str, code: str) -> str:
    """A fenced code block."""
    return f"```{language}\n{textwrap.dedent(code).strip()}\n```\n"


def literal(value: Any) -> str:
    """A value as one would type it in a spec or a recipe: ``8/255`` rather than ``0.03137254901960784``."""
    match value:
        case None | bool():
            return str(value).lower()
        case float():
            fraction = Fraction(value).limit_denominator(255)
            exact = fraction.denominator == 255 and float(fraction) == value
            return f"{fraction.numerator}/255" if exact else f"{value:g}"
        case list() | tuple():
            return f"[{', '.join(map(literal, value))}]"
        case _:
            return str(value)


def prose(doc: str, *, skip: Sequence[str] = ("Args",)) -> str:
    """A cleaned docstring as Markdown: sections get a bold heading, doctests a fence; those in `skip` are left out."""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}):[ \t]*$", doc.strip(), flags=re.MULTILINE)
    page = [_blocks(parts[0])]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        # A section ends where the indentation does; what follows is prose again.
        indented, rest = _split_at_dedent(body.strip("\n"))
        if name not in skip:
            page.append(f"**{name}**\n\n{_blocks(textwrap.dedent(indented))}")
        page.append(_blocks(rest))
    return "\n\n".join(block for block in page if block.strip()) + "\n"


def _split_at_dedent(body: str) -> tuple[str, str]:
    lines = body.split("\n")
    for place, line in enumerate(lines):
        if line.strip() and not line.startswith((" ", "\t")):
            return "\n".join(lines[:place]), "\n".join(lines[place:])
    return body, ""


def _blocks(text: str) -> str:
    """Paragraphs; those that are doctests are fenced, and two backticks become one."""
    blocks = re.split(r"\n\s*\n", text.strip())
    shown = [fence("pycon", b) if b.lstrip().startswith(">>>") else b.replace("``", "`") for b in blocks]
    return "\n\n".join(shown)
