"""The reference of the Python API: one page per package with its public names, which mkdocstrings fills in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import holdfast

from . import markdown

__all__ = ["nav", "pages"]

# Where users begin; the families follow in the order of the alphabet.
_FIRST = ("holdfast", "holdfast.data", "holdfast.models", "holdfast.training", "holdfast.audit", "holdfast.report")
_CORE = ("holdfast.methods", "holdfast.catalog", "holdfast.specs", "holdfast.run", "holdfast.stats", "holdfast.errors")
# The command line has a page of its own, and has no names to import.
_NOT_SHOWN = ("holdfast.cli",)


def pages() -> dict[str, str]:
    """The index and a page per package, by path."""
    rows = [(f"[`{name}`]({name}.md)", _summary(name)) for name in _names()]
    index = (
        "# Python API\n\nWhat each package offers to those who import it. Methods and checks have pages of their own: "
        "[methods](../../methods/index.md), [checks](../../checks/index.md).\n\n"
    )
    made = {f"reference/api/{name}.md": f"# {name}\n\n::: {name}\n" for name in _names()}
    return {"reference/api/index.md": index + markdown.table(("package", "what it is for"), rows)} | made


def nav() -> list[Any]:
    """The navigation below `Python API`."""
    return ["reference/api/index.md", *({name: f"reference/api/{name}.md"} for name in _names())]


def _names() -> list[str]:
    found = [f"holdfast.{module.name}" for module in pkgutil.iter_modules(holdfast.__path__)]
    rest = [n for n in found if n not in (*_FIRST, *_CORE, *_NOT_SHOWN)]
    return [*_FIRST, *rest, *_CORE]


def _summary(name: str) -> str:
    doc = inspect.getdoc(importlib.import_module(name)) or ""
    return doc.split("\n\n", 1)[0]
