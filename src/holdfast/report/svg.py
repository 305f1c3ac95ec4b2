"""SVG, one escaped element at a time.

Elements carry classes, never colours: the page's style sheet gives the colours, so that one drawing serves the light
page, the dark page and the printed one. Numbers are rounded to a tenth of a pixel, so equal charts give equal bytes.
"""

from __future__ import annotations

from markupsafe import Markup, escape

__all__ = ["Size", "element", "fit", "text_width", "title"]

Size = tuple[float, float]

# Advance widths of a common sans-serif in thousandths of the font size: labels are set before a browser measures them.
_NARROW, _WIDE = set("iljftrI|!.,:;'()[] -1"), set("mwMWGOQ%@")


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An SVG element. `class_` becomes ``class``, underscores in other names become hyphens, None leaves one out.

    Children that are not `Markup` are escaped.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else _number(value)
            parts.append(f' {name.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inside = "".join(escape(child) for child in children)
    parts.append(f">{inside}</{tag}>" if inside else "/>")
    return Markup("".join(parts))


def title(text: str) -> Markup:
    """The tooltip of the element it stands in."""
    return element("title", text)


def text_width(text: str, size: float = 12.0) -> float:
    """The estimated width of `text` in pixels, on the generous side."""
    return size * sum(0.36 if c in _NARROW else 0.9 if c in _WIDE else 0.59 for c in text)


def fit(text: str, width: float, size: float = 12.0) -> str:
    """`text`, cut with an ellipsis where it would be wider than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _number(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
