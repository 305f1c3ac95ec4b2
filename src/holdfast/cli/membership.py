"""``holdfast membership``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.options import (
    BatchSize,
    DataSpec,
    Device,
    Json,
    Model,
    Quiet,
    Seed,
    Weights,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from holdfast.privacy import FitRecipe


def membership_command(
    model: Model,
    data: DataSpec,
    weights: Weights = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            help="E.g. `lira`, `'rmia(a=0.3)'`, `loss-mia`; may be repeated. Without it: `lira`, `rmia`, `loss-mia`.",
        ),
    ] = None,
    shadows: Annotated[
        int, typer.Option("--shadows", help="Models to train for comparison; even. 16 show much, 64 nearly all.")
    ] = 16,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="The recipe the model was trained by, as `holdfast train` takes it."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Instead of a recipe: of the training.", min=1)] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="Instead of a recipe, e.g. `'sgd(lr=0.1)'`.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="Instead of a recipe, e.g. `cosine`.")] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option("--transform", help="Instead of a recipe, e.g. `crop`; may be repeated, in order."),
    ] = None,
    train_batch_size: Annotated[
        int | None, typer.Option("--train-batch-size", help="Instead of a recipe: images per training step.", min=1)
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for results and shadow models; a stopped run goes on in it."),
    ] = Path("holdfast-out/membership"),
    seed: Seed = 0,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="Of the trainings: `fp32`, `bf16` or `auto`; by default the recipe's, or fp32."
        ),
    ] = None,
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask how many training images could be recognised by what the model makes of them.

    `lira` and `rmia` compare the model with shadow models, trained here in the same way on random halves of the
    training and test images. For them, say how the model was trained, by `--recipe` or by `--epochs` and what differs
    from the defaults of `holdfast train`. Writes `membership.json` and, per image, `scores.parquet`.

    Examples:

    `holdfast membership --model resnet20 --weights my.safetensors --data photos/ --recipe my.yaml --shadows 16`

    `holdfast membership --model zoo:digits-convnet --data digits --attack lira --shadows 16 --epochs 12`
    """
    import pyarrow.parquet as pq

    from holdfast import files
    from holdfast.errors import UserError
    from holdfast.privacy import audit_with_shadows

    given = {
        "epochs": epochs,
        "batch_size": train_batch_size,
        "optimizer": optimizer,
        "schedule": schedule,
        "transforms": transform,
    }
    how, usual = _recipe(recipe, {name: value for name, value in given.items() if value is not None})
    run = options.make_run(
        seed=seed, device=device, precision=precision or usual, batch_size=batch_size, out=out, quiet=quiet or as_json
    )
    network, bundle = options.load(model, weights, data, run)
    if bundle.train is None:
        raise UserError(f"{bundle.name}: there are no training images, so there are no members to recognise.")
    attacks = attack or ["lira", "rmia", "loss-mia"]
    result = audit_with_shadows(network, bundle.train, bundle.test, how, attacks=attacks, shadows=shadows, run=run)
    found = {
        "model": weights or model,
        "data": bundle.name,
        "seed": seed,
        "recipe": how and repr(how),
        **result.to_json(),
    }
    files.write_json(out / "membership.json", found)
    with files.atomic_path(out / "scores.parquet") as temporary:
        pq.write_table(result.table(), temporary)
    if as_json:
        print_json(found)
        return
    print_table([_row(name, values) for name, values in found["attacks"].items()])
    typer.echo(f"{found['members']} members, {found['nonmembers']} others; in brackets 95 % intervals.")
    for note in result.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"Per image: {(out / 'scores.parquet').resolve()}")


def _recipe(path: Path | None, given: dict[str, Any]) -> tuple[FitRecipe | None, str]:
    """How to train, if that is said, and in which precision."""
    from holdfast.errors import UserError
    from holdfast.privacy import FitRecipe
    from holdfast.training import Recipe

    if path is not None:
        if given:
            raise UserError("--recipe says how to train; leave out --epochs and the other options that say so.")
        plan = Recipe.load(path)
        return FitRecipe.of(plan), plan.precision
    if given and "epochs" not in given:
        raise UserError("say by --epochs how long the model was trained.")
    return FitRecipe(**given) if given else None, "fp32"


def _row(name: str, values: dict[str, Any]) -> dict[str, str]:
    rates = {"AUC": values["auc"], "balanced accuracy": values["balanced_accuracy"]}
    rates |= {f"TPR at {float(fpr):.4g} FPR": rate for fpr, rate in values["tpr"].items()}
    return {"attack": name} | {title: _shown(rate) for title, rate in rates.items()}


def _shown(rate: dict[str, float | None]) -> str:
    if rate["value"] is None:
        return "too few others"
    return f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"
