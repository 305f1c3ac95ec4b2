"""The documentation as the site has it: pages written by hand and pages made from the code, by path."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="session")
def docs():
    """The folder of the documentation, with its builders importable."""
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    return DOCS


@pytest.fixture(scope="session")
def written(docs):
    """Pages written by hand, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md"))}


@pytest.fixture(scope="session")
def generated(docs):
    """Files made from the code, by path below the site's root."""
    from _hooks import site

    return site.pages()
