"""``holdfast compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.options import Json, print_json


def compare_command(
    audits: Annotated[list[Path], typer.Argument(help="Two or more folders of audits.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page.")] = Path("holdfast-out/compare"),
    as_json: Json = False,
) -> None:
    """Show several audits side by side, with differences and their significance.

    Example: `holdfast compare holdfast-out/before holdfast-out/after`
    """
    from holdfast.audit import Audit
    from holdfast.errors import UserError
    from holdfast.report import compare, write_comparison

    if len(audits) < 2:
        raise UserError(f"compare takes two or more folders of audits, got {len(audits)}.")
    comparison = compare([Audit.load(folder) for folder in audits], [folder.name for folder in audits])
    page = write_comparison(comparison, out)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        typer.echo(comparison.to_text())
        typer.echo(f"Page: {page.resolve()}")
