"""``holdfast zoo``: the bundled models."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from holdfast.cli.options import Json, print_json


def list_zoo(as_json: Json = False) -> None:
    """List the bundled models."""
    from holdfast.models import zoo_card, zoo_names

    cards = [zoo_card(name) for name in zoo_names()]
    if as_json:
        print_json([card.model_dump(mode="json") for card in cards])
        return
    table = Table(
        "name", "architecture", "data", "accuracy", "robust accuracy", box=None, header_style="bold", pad_edge=False
    )
    for card in cards:
        robust = ", ".join(f"{100 * r.value:.1f} % under {r.attack}" for r in card.robust_accuracy)
        table.add_row(card.name, card.architecture, card.data, f"{100 * card.accuracy.value:.2f} %", robust)
    Console().print(table)


def show_zoo(name: Annotated[str, typer.Argument(help="A model's name.", show_default=False)]) -> None:
    """Show a bundled model's card."""
    from holdfast.models import zoo_card

    print_json(zoo_card(name).model_dump(mode="json"))
