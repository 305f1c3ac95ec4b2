"""A page per method, from its card, its docstrings and the ledger; and the index of all of them by family."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from holdfast import catalog
from holdfast.methods import Card, Method, Paper
from holdfast.proofs import Proof, proofs
from holdfast.proofs.ledger import Entry, latest

from . import markdown, usage

__all__ = ["nav", "pages"]

_HELD, _FAILED, _UNTRIED = "✓", "✗", "–"
_SCALES = ("smoke", "cpu", "gpu")
_INDEX = """\
# Methods

Every method is a published technique in one file. Its fields are its hyperparameters, with the paper's values as
defaults where the paper gives them. The same list is printed by `holdfast list`, and a page by `holdfast show ID`.

The marks say what the ledger holds, at each scale of [proof](../proofs.md): ✓ every claim that was run held,
✗ at least one did not hold, – nothing was run at that scale.
"""


def pages() -> dict[str, str]:
    """The index and the method pages, by path."""
    cards, evidence, claims = catalog.cards(), latest(), proofs()
    made = {
        f"methods/{card.id}.md": _page(
            card, [e for e in evidence if e.method == card.id], [p for p in claims if p.method == card.id]
        )
        for card in cards
    }
    return {"methods/index.md": _index(cards, evidence)} | made


def nav() -> list[Any]:
    """The navigation below `Methods`: the index, then families with their methods."""
    families = itertools.groupby(catalog.cards(), key=lambda card: card.family)
    below = [{_family(family): [{c.id: f"methods/{c.id}.md"} for c in members]} for family, members in families]
    return ["methods/index.md", *below]


def _family(family: str) -> str:
    return catalog.FAMILIES.get(family, family)


def _index(cards: Sequence[Card], evidence: Sequence[Entry]) -> str:
    page = [_INDEX]
    for family, members in itertools.groupby(cards, key=lambda card: card.family):
        rows = [
            (f"[`{c.id}`]({c.id}.md)", c.kind, c.title, *(_mark(c.id, scale, evidence) for scale in _SCALES))
            for c in members
        ]
        columns = ("method", "kind", "what it is", *_SCALES)
        page += [f"## {_family(family)}", f"In `holdfast.{family}`.\n", markdown.table(columns, rows)]
    return "\n".join(page)


def _mark(method: str, scale: str, evidence: Sequence[Entry]) -> str:
    outcomes = [e.passed for e in evidence if (e.method, e.scale) == (method, scale)]
    return _UNTRIED if not outcomes else _HELD if all(outcomes) else _FAILED


def _page(card: Card, evidence: Sequence[Entry], claims: Sequence[Proof]) -> str:
    method = catalog.find(card.id, Method)
    facts = [f"**Kind** {card.kind}", f"**Family** {_family(card.family)}"]
    if card.paper is not None:
        facts.append(f"**Paper** {_cited(card.paper)}")
    rows = [
        (
            f"`{f.name}`",
            "required" if f.default is dataclasses.MISSING else f"`{markdown.literal(f.default)}`",
            f.accepts,
            f.doc,
        )
        for f in card.fields
    ]
    knobs = markdown.table(("name", "default", "takes", "meaning"), rows) or "It has none.\n"
    return "\n\n".join(
        [
            f"# {card.title}",
            f"`{card.id}`{{ .id }}",
            "  \n".join(facts),
            *_described(card, method),
            "## Hyperparameters",
            knobs,
            "## Use",
            usage.examples(card, method),
            "## Evidence",
            _evidence(card, evidence, claims),
        ]
    )


def _cited(paper: Paper) -> str:
    name = paper.title or (f"arXiv:{paper.arxiv}" if paper.arxiv else paper.doi) or "no title"
    where = ", ".join(str(part) for part in (paper.venue, paper.year) if part)
    return (f"[{name}]({paper.url})" if paper.url else name) + (f", {where}" if where else "")


def _described(card: Card, method: type[Method]) -> list[str]:
    """The idea, from the docstring of the method's own file, and what it does, from that of its class."""
    own = method.__module__.rpartition(".")[2] == card.id.replace("-", "_")
    idea = inspect.getdoc(sys.modules[method.__module__]) or ""
    first, _, rest = card.doc.partition("\n\n")
    doc = rest if first.rstrip(".") == card.title else card.doc  # the heading says it already
    parts = {"## Idea": markdown.prose(idea) if own else "", "## What it does": markdown.prose(doc)}
    return [text for heading, body in parts.items() if body.strip() for text in (heading, body)]


def _evidence(card: Card, evidence: Sequence[Entry], claims: Sequence[Proof]) -> str:
    if not claims and not evidence:
        return "No proof of this method exists yet, so nothing here says that it does what its paper says.\n"
    page = []
    for claim in claims:
        page += [f"**Claim** {claim.claim}  \n**Source** {claim.source}  \n**Proof** `{claim.id}`", ""]
        if claim.note:
            page += [claim.note, ""]
        page += [_runs([e for e in evidence if e.proof == claim.id]), ""]
    # what was run once stays in the ledger even when its experiment is gone
    retired = [e for e in evidence if e.proof not in {c.id for c in claims}]
    if retired:
        page += ["**Earlier claims**, whose experiments are no longer part of holdfast:", "", _runs(retired), ""]
    if claims:
        page += ["Rerun it:", "", markdown.fence("bash", f"holdfast prove {card.id}")]
    return "\n".join(page)


def _runs(entries: Sequence[Entry]) -> str:
    rows = [
        (
            _HELD if e.passed else f"**{_FAILED}**",
            e.scale,
            f"{e.metric} {e.value:.4g}" + ("" if e.low is None else f" ({e.low:.4g} to {e.high:.4g})"),
            f"{'at least' if e.better == 'higher' else 'at most'} {e.threshold:.4g}",
            "" if e.baseline is None else f"{e.baseline:.4g} {e.baseline_name}",
            ", ".join(map(str, e.seeds)),
            f"{e.machine}, {e.seconds:.0f} s",
            f"{e.date[:10]} `{e.commit[:9]}`",
        )
        for e in sorted(entries, key=lambda e: _SCALES.index(e.scale))
    ]
    columns = ("held", "scale", "measured", "needed", "baseline", "seeds", "machine", "when")
    return markdown.table(columns, rows) or "No run of it is in the ledger yet.\n"
