"""``holdfast list`` and ``holdfast show``: what there is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from holdfast.cli.options import Json, print_json
from holdfast.specs import format_value


def list_command(
    pattern: Annotated[str, typer.Argument(help="An id pattern such as `'*pgd*'`.")] = "*",
    kind: Annotated[str | None, typer.Option(help="Only this kind: attack, detector, objective, ...")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family: evasion, ood, ...")] = None,
    as_json: Json = False,
) -> None:
    """List the methods.

    Examples: `holdfast list`, `holdfast list --kind attack`, `holdfast list --json`.
    """
    from holdfast import catalog

    cards = catalog.cards(kind=kind, family=family, pattern=pattern)
    if as_json:
        print_json([card.to_json() for card in cards])
        return
    table = Table("id", "kind", "family", "what it is", box=None, header_style="bold", pad_edge=False)
    for card in cards:
        table.add_row(f"[bold]{escape(card.id)}[/]", card.kind, card.family, escape(card.title))
    Console().print(table)


def show_command(
    id: Annotated[str, typer.Argument(help="A method's id, e.g. `pgd`.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show one method: its paper, hyperparameters, and the evidence that it does what its paper says.

    Example: `holdfast show pgd`.
    """
    from holdfast import catalog
    from holdfast.proofs.ledger import latest

    card = catalog.describe(id)
    evidence = [entry for entry in latest() if entry.method == id]
    if as_json:
        print_json({**card.to_json(), "evidence": [entry.model_dump(mode="json") for entry in evidence]})
        return
    console = Console()
    console.print(f"[bold]{escape(card.id)}[/]  {escape(card.title)}  [dim]({card.kind}, {card.family})[/]")
    if card.paper is not None:
        console.print(escape(str(card.paper)), style="dim", highlight=False)
    console.print()
    console.print(escape(_prose(card.doc.split("\nArgs:", 1)[0])), highlight=False)
    if card.fields:
        table = Table("hyperparameter", "default", "takes", "meaning", box=None, header_style="bold", pad_edge=False)
        for field in card.fields:
            table.add_row(
                field.name, escape(format_value(field.default)), escape(field.accepts), escape(_prose(field.doc))
            )
        console.print()
        console.print(table)
    console.print()
    if not evidence:
        console.print("No proof of this method is in the ledger.", style="dim")
    for entry in evidence:
        mark = "[green]held[/]" if entry.passed else "[red]did not hold[/]"
        console.print(
            f"{mark}  {escape(entry.claim)}  [dim]({entry.scale}: {entry.metric} {entry.value:.4g}, "
            f"baseline {entry.baseline if entry.baseline is None else format(entry.baseline, '.4g')}, "
            f"threshold {entry.threshold:.4g})[/]",
            highlight=False,
        )


def _prose(doc: str) -> str:
    """A docstring for the terminal: paragraphs on one line each, to be wrapped there; marks of code removed."""
    paragraphs = (" ".join(p.split()) for p in doc.strip().split("\n\n"))
    return "\n\n".join(paragraphs).replace("``", "").replace("`", "")
