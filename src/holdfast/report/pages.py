"""HTML pages that are one file: styles, script and drawings inside, and a policy that lets nothing else in or out.

All text of an audit is untrusted. Templates escape it; beyond that, the page's content security policy allows only the
script and the style sheet whose hashes it names, so that even text that slipped through could neither run nor call out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

import holdfast
from holdfast.files import write_text
from holdfast.report import numbers

__all__ = ["render", "write_page"]


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Render a template to the file `out`, atomically, and return it."""
    write_text(out, render(template, **values))
    return out


def render(template: str, **values: Any) -> str:
    """The page of a template, with its style, script and content security policy."""
    environment = _environment()
    style = environment.get_template("style.css.j2").render()
    script = environment.get_template("script.js").render()
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page = environment.get_template(template)
    return page.render(
        policy=policy, style=Markup(style), script=Markup(script), version=holdfast.__version__, **values
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("holdfast.report"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "slug": lambda verdict: verdict.replace(" ", "-"),
        "label": numbers.title_of,
        "shown": numbers.shown,
        "interval": numbers.interval,
        "whole": numbers.whole,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "prose": _prose,
    }
    return environment


def _prose(text: str) -> Markup:
    """Escaped text in which what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one that is never closed
        return escape(text)
    marked = (Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts))
    return Markup("").join(marked)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
