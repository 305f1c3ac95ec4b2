"""``holdfast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options
from holdfast.cli.options import Device, Json, Quiet, print_json


def train_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for weights, metrics and checkpoints (default: the "
            "recipe's name under holdfast-out). With the same folder, a stopped training goes on.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the recipe's.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe.

    Example: `holdfast train recipes/digits-convnet.yaml --out runs/digits`
    """
    from holdfast.training import Recipe, train

    plan = Recipe.load(recipe)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    run = options.make_run(
        seed=plan.seed,
        device=device,
        out=out or Path("holdfast-out") / recipe.stem,
        quiet=quiet or as_json,
    )
    card = train(plan, run)
    if as_json:
        print_json(card)
    else:
        accuracy = card["accuracy"]
        typer.echo(f"Test accuracy {100 * accuracy['value']:.2f} % of {accuracy['n']} images.")
        typer.echo(f"Weights: {Path(run.out or '.').resolve() / 'weights.safetensors'}")
