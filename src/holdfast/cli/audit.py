"""``holdfast audit``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from holdfast.cli import options
from holdfast.cli.options import (
    BatchSize,
    DataSpec,
    Device,
    Guards,
    Json,
    MaxQueries,
    MaxRate,
    Model,
    Quiet,
    Seed,
    Weights,
    print_json,
)

_STYLES = {"pass": "green", "attention": "yellow", "fail": "red", "not assessed": "dim"}


class Profile(StrEnum):
    """How much is measured."""

    quick = "quick"
    standard = "standard"
    full = "full"


def audit_command(
    model: Model,
    data: DataSpec,
    weights: Weights = None,
    guard: Guards = None,
    profile: Annotated[Profile, typer.Option("--profile", "-p", help="How much is measured.")] = Profile.quick,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="YAML with your own limits; what it leaves out keeps the defaults.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this check, or this section; may be repeated.")
    ] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 1 when a verdict is `fail`.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the report.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the report. With the same folder, a stopped audit goes on.")
    ] = Path("holdfast-out/audit"),
    max_queries: MaxQueries = None,
    max_rate: MaxRate = None,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Audit a model on data and write a report.

    Examples:

    `holdfast audit --model zoo:digits-convnet --data digits`

    `holdfast audit --model my.py:make --weights my.safetensors --data photos/ --profile standard --gate`
    """
    from holdfast.audit import audit
    from holdfast.report import write_model_card, write_report

    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    network, bundle = options.load(model, weights, data, run)
    options.limit(network, max_queries, max_rate)
    result = audit(
        options.guarded(network, guard),
        bundle,
        profile=profile.value,
        policy=policy,
        only=only or None,
        name=name or " behind ".join([weights or model, *(guard or ())]),
        command=_command(model, weights, guard, data, profile, policy, max_queries, seed, out),
        run=run,
    )
    page = write_report(result, out)
    write_model_card(result, out)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        options.say_usage(network)
        _summary(result, page)
    if gate and result.failed:
        raise typer.Exit(1)


def _command(
    model: str,
    weights: str | None,
    guard: list[str] | None,
    data: str,
    profile: Profile,
    policy: Path | None,
    max_queries: int | None,
    seed: int,
    out: Path,
) -> str:
    import shlex

    words = ["holdfast", "audit", "--model", model]
    words += ["--weights", weights] if weights else []
    words += [word for spec in guard or () for word in ("--guard", spec)]
    words += ["--data", data, "--profile", profile.value]
    words += ["--policy", str(policy)] if policy else []
    words += ["--max-queries", str(max_queries)] if max_queries else []
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words)


def _summary(result: object, page: Path) -> None:
    from holdfast.audit import Audit

    assert isinstance(result, Audit)
    console = Console()
    table = Table("section", "verdict", "why", box=None, header_style="bold", pad_edge=False)
    for section in result.sections:
        style = _STYLES[section.verdict]
        table.add_row(escape(section.title), f"[{style}]{section.verdict}[/]", escape(section.reason))
    console.print(table)
    console.print()
    # the path alone on its line, unwrapped, so that terminals and scripts can pick it up
    typer.echo(f"Report: {page.resolve()}")
