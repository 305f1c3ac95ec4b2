"""``holdfast prove``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from holdfast.cli.options import Device, Json, Quiet, print_json


class Scale(StrEnum):
    """How large the experiment is."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"


def prove_command(
    id: Annotated[str | None, typer.Argument(help="A method's id; without it, the proofs are listed.")] = None,
    scale: Annotated[
        Scale, typer.Option(help="`smoke`: seconds, small data; `cpu`: minutes, real data; `gpu`: the paper's size.")
    ] = Scale.smoke,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1, max=100)] = 1,
    ledger: Annotated[Path | None, typer.Option(help="Append the evidence to this ledger (`.jsonl`).")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rerun a method's claim as an experiment and say whether it held (exit code 0) or not (1).

    Examples: `holdfast prove energy`, `holdfast prove pgd-at --scale cpu --seeds 3`
    """
    from holdfast.proofs import proofs, prove
    from holdfast.proofs.ledger import append
    from holdfast.run import Run

    if id is None:
        table = Table("method", "claim", "scales", box=None, header_style="bold", pad_edge=False)
        for proof in proofs():
            table.add_row(escape(proof.method), escape(proof.claim), ", ".join(proof.threshold))
        Console().print(table)
        return
    run = Run(device=device, progress=not (quiet or as_json))
    evidence = prove(id, scale=scale.value, seeds=seeds, run=run)
    if ledger is not None:
        append(evidence, ledger)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in evidence])
    else:
        console = Console()
        for entry in evidence:
            mark = "[green]held[/]" if entry.passed else "[red]did not hold[/]"
            console.print(f"{mark}  {escape(entry.claim)}", highlight=False)
            console.print(f"      {escape(entry.sentence)}", style="dim", highlight=False)
    if not all(entry.passed for entry in evidence):
        raise typer.Exit(1)
