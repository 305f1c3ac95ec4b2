"""All generated pages together, and their places in the navigation."""

from __future__ import annotations

from typing import Any

from . import api, checks, commands, methods, recipe, schema, unlearners, zoo

__all__ = ["grown", "pages"]

# The entries of `nav` in mkdocs.yml that grow into sections.
_SECTIONS = {"methods/index.md": methods.nav, "checks/index.md": checks.nav, "reference/api/index.md": api.nav}


def pages() -> dict[str, str]:
    """The content of every generated file, by path below the site's root."""
    return {
        **methods.pages(),
        **checks.pages(),
        **api.pages(),
        **schema.pages(),
        "reference/cli.md": commands.page(),
        "reference/recipe.md": recipe.page(),
        "reference/unlearners.md": unlearners.page(),
        "reference/zoo.md": zoo.page(),
    }


def grown(entry: Any) -> Any:
    """A navigation in which sections of generated pages have taken the place of their index."""
    match entry:
        case list():
            return [grown(each) for each in entry]
        case dict():
            return {title: grown(below) for title, below in entry.items()}
        case str() if entry in _SECTIONS:
            return _SECTIONS[entry]()
        case _:
            return entry
