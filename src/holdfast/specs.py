"""The one grammar in which methods are named: ``pgd``, ``pgd(eps=8/255, steps=20)``, ``pgd-at(attack=pgd(steps=3))``.

Values are literals (numbers, fractions of numbers, strings, booleans, ``none``, lists) or specs themselves. Nothing is
ever evaluated as code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from holdfast.errors import UserError

__all__ = ["Spec", "parse", "parse_value"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w-])) |
        (?P<name>[A-Za-z_][\w.:-]*) |
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') |
        (?P<mark>[()\[\],=/])
    )""",
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False, "none": None, "null": None, "inf": float("inf")}
_DEPTH = 20


@dataclass(frozen=True)
class Spec:
    """A parsed name with its hyperparameters; values may be specs again."""

    id: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.fields:
            return self.id
        return f"{self.id}({', '.join(f'{k}={format_value(v)}' for k, v in self.fields.items())})"


def format_value(value: Any) -> str:
    """Write `value` so that `parse_value` reads it back equal."""
    match value:
        case None | True | False:
            return str(value).lower()
        case str():
            return repr(value)
        case float() if _is_pixel_value(value):
            return f"{round(value * 255)}/255"  # 8/255 rather than 0.03137254901960784
        case list() | tuple():
            return f"[{', '.join(map(format_value, value))}]"
        case _:
            return str(value)


def _is_pixel_value(value: float) -> bool:
    """Whether the value is a fraction of 255 that has no short decimal form."""
    return math.isfinite(value) and len(repr(value)) > 8 and value == round(value * 255) / 255


def parse(text: str) -> Spec:
    """Parse a method's name with optional hyperparameters in parentheses.

    Raises:
        UserError: the text is not of that form; the message shows where it goes wrong.
    """
    reader = _Reader(text)
    spec = reader.spec()
    reader.end()
    return spec


def parse_value(text: str) -> Any:
    """Parse one value: a number, a fraction such as ``8/255``, a string, ``true``, ``none``, a list, or a spec."""
    reader = _Reader(text)
    value = reader.value()
    reader.end()
    return value


class _Reader:
    def __init__(self, text: str):
        if not isinstance(text, str):
            raise UserError(f"a method is named by text such as 'pgd(eps=8/255)', got {type(text).__name__}.")
        self.text, self.tokens, self.place, self.depth = text, [], 0, 0
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if not match:
                raise self.error(position, "this cannot be read")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()

    def error(self, position: int, problem: str) -> UserError:
        shown = self.text if len(self.text) <= 120 else self.text[:117] + "..."
        return UserError(
            f"{shown!r}: {problem} at character {position + 1}. Write for example 'pgd(eps=8/255, steps=20)'."
        )

    def peek(self) -> tuple[str, str, int]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "", len(self.text))

    def take(self, mark: str) -> bool:
        if self.peek()[:2] == ("mark", mark):
            self.place += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(self.peek()[2], f"{mark!r} is missing")

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise self.error(self.peek()[2], "nothing more was expected")

    def spec(self) -> Spec:
        kind, name, position = self.peek()
        if kind != "name":
            raise self.error(position, "a method's name is missing")
        self.place += 1
        return Spec(name, self.fields() if self.take("(") else {})

    def fields(self) -> dict[str, Any]:
        self.depth += 1
        if self.depth > _DEPTH:
            raise self.error(self.peek()[2], f"more than {_DEPTH} levels of nesting")
        fields: dict[str, Any] = {}
        while not self.take(")"):
            if fields:
                self.expect(",")
                if self.take(")"):
                    break
            kind, name, position = self.peek()
            if kind != "name":
                raise self.error(position, "a hyperparameter's name is missing")
            self.place += 1
            self.expect("=")
            if name in fields:
                raise self.error(position, f"{name!r} is given twice")
            fields[name] = self.value()
        self.depth -= 1
        return fields

    def value(self) -> Any:
        kind, token, position = self.peek()
        if kind == "number":
            return self.number()
        self.place += 1
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        if kind == "name":
            if token.lower() in _WORDS:
                return _WORDS[token.lower()]
            if self.peek()[:2] == ("mark", "("):
                self.place -= 1
                return self.spec()
            return token
        if token == "[":
            return self.list()
        raise self.error(position, "a value is missing")

    def list(self) -> list[Any]:
        self.depth += 1
        if self.depth > _DEPTH:
            raise self.error(self.peek()[2], f"more than {_DEPTH} levels of nesting")
        values: list[Any] = []
        while not self.take("]"):
            if values:
                self.expect(",")
                if self.take("]"):
                    break
            values.append(self.value())
        self.depth -= 1
        return values

    def number(self) -> int | float:
        value = self.one_number()
        if self.take("/"):
            position = self.peek()[2]
            divisor = self.one_number()
            if divisor == 0:
                raise self.error(position, "division by zero")
            return value / divisor
        return value

    def one_number(self) -> int | float:
        kind, token, position = self.peek()
        if kind != "number":
            raise self.error(position, "a number is missing")
        self.place += 1
        return int(token) if re.fullmatch(r"[-+]?\d+", token) and len(token) < 20 else float(token)
