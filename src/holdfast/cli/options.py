"""The options that commands share, and what they make of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from holdfast.data import Data
    from holdfast.run import Run

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="An architecture (`resnet20`), `zoo:NAME`, your own `my.py:make` or `package.module:factory`, "
        "a `.safetensors` file that names its architecture, or the address of a deployed model, "
        "`http://host:port/v2/models/NAME`.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", "-w", help="A `.safetensors` file, a `torch.save`d state dict, or `zoo:NAME`."),
]
DataSpec = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="`digits`, `shapes32(n=2000)`, `cifar10`, `cifar100`, or a path: a folder per class, `.npz`, "
        "`.parquet`, or an archive of one.",
        show_default=False,
    ),
]
Guards = Annotated[
    list[str] | None,
    typer.Option(
        "--guard",
        help="Put the model behind a guard (or any surgery) first, e.g. `'aaa(tau=6)'`; may be repeated, in order.",
    ),
]
MaxQueries = Annotated[
    int | None,
    typer.Option(
        "--max-queries",
        help="Send a deployed model at most so many images (in this start of the command); the rest is left out.",
        min=1,
    ),
]
MaxRate = Annotated[
    float | None,
    typer.Option("--max-rate", help="Send a deployed model at most so many images a second.", min=0.001),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for results. With the same folder, a stopped run goes on.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of all randomness.")]
Device = Annotated[str, typer.Option("--device", help="`auto`, `cpu`, `cuda`, `cuda:1`, ...")]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of passes that may round, such as gradients: `fp32`, `bf16`, or `auto`, which is bf16 where the hardware "
        "computes in it. Verdicts are fp32 either way.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images per forward pass; does not change results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def make_run(
    *,
    seed: int,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 512,
    out: Path | None,
    quiet: bool,
) -> Run:
    """The run that the common options describe."""
    from holdfast.run import Run

    exact: Any = precision  # `Run` says what it takes
    return Run(seed=seed, device=device, precision=exact, batch_size=batch_size, out=out, progress=not quiet)


def load(model: str, weights: str | None, data: str, run: Run) -> tuple[nn.Module, Data]:
    """Load the data first, since an architecture needs the number of classes and the image size, then the model."""
    from holdfast.data import load_data
    from holdfast.models import load_model

    bundle = load_data(data, run=run)
    return load_model(model, weights=weights, num_classes=bundle.num_classes, image_shape=bundle.shape), bundle


def limit(model: nn.Module, max_queries: int | None, max_rate: float | None) -> None:
    """Set the budget and the rate of a model that is asked.

    Raises:
        UserError: it is not asked, but computed here.
    """
    from holdfast.errors import UserError
    from holdfast.models import queryables

    asked = queryables(model)
    if not asked and (max_queries is not None or max_rate is not None):
        raise UserError("--max-queries and --max-rate are for models that are asked, such as http://..., not for this.")
    for part in asked:
        part.limit(max_queries=max_queries, max_rate=max_rate)


def say_usage(model: nn.Module) -> None:
    """Say what the queries of a model that is asked came to."""
    from holdfast.models import queryables

    for part in queryables(model):
        typer.echo(f"{part.name}: {part.usage}")


def guarded(model: nn.Module, guards: list[str] | None) -> nn.Module:
    """The model behind the guards, the first one innermost."""
    from holdfast import catalog
    from holdfast.methods import Surgery

    for spec in guards or ():
        model = catalog.build(spec, kind=Surgery)(model)
    return model


def quoted(text: str) -> str:
    """A spec as a word of the shell; those with texts in them stay readable."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same columns as a table, if there are any."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in rows[0]:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console().print(table)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
