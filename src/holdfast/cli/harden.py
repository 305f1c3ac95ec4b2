"""``holdfast harden``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, DataSpec, Device, Json, Model, Quiet, Seed, Weights, print_json


def harden_command(
    guard: Annotated[
        str, typer.Argument(help="A guard that learns, e.g. `c-avp` or `'cdd-red(epochs=20)'`.", show_default=False)
    ],
    model: Model,
    data: DataSpec,
    weights: Weights = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the guard; a stopped training goes on in it."),
    ] = Path("holdfast-out/harden"),
    n: Annotated[
        int | None,
        typer.Option(
            "-n", help="The first N training images (default: all). A set sorted by class is mixed first.", min=1
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a guard around a model whose weights stay as they are.

    Writes `guard.safetensors`, and says how to put the model behind it: with `--guard`, in `holdfast attack` and
    `holdfast audit`. Training that changes the model itself, such as `pgd-at`, is `holdfast train`.

    Example: `holdfast harden c-avp --model zoo:cifar10-resnet20 --data cifar10 -n 4000 --out runs/c-avp`
    """
    from holdfast import catalog, stats
    from holdfast.data.order import first_images
    from holdfast.errors import UserError
    from holdfast.evasion.guard import TrainedGuard, save_guard
    from holdfast.methods import Method, Objective
    from holdfast.models import predict

    method = catalog.build(guard, kind=Method)
    if isinstance(method, Objective):
        raise UserError(
            f"{method.id} trains the model itself: name it as the objective of a recipe for holdfast train."
        )
    if not isinstance(method, TrainedGuard):
        raise UserError(f"{method.id} is no guard that learns; see `holdfast list` for those of kind surgery.")
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    network, bundle = options.load(model, weights, data, run)
    if bundle.train is None:
        raise UserError(f"{data}: there are no training images to learn the guard from.")
    guarded = method.train(network, first_images(bundle.train, n, run.rng("order", "train")), run=run)
    path = out / "guard.safetensors"
    save_guard(guarded, path)
    use = replace(cast(Any, method), weights=str(path))
    accuracy = {}
    for name, net in (("without", network), ("with", guarded)):
        right, count = int((predict(net, bundle.test, run=run).argmax(1) == bundle.test.y).sum()), len(bundle.test)
        low, high = stats.wilson(right, count)
        accuracy[name] = {"value": right / count, "low": low, "high": high, "n": count}
    if as_json:
        print_json({"guard": str(use), "accuracy": accuracy})
        return
    after, before = accuracy["with"]["value"], accuracy["without"]["value"]
    typer.echo(f"Test accuracy {after:.2%} with the guard, {before:.2%} without, of {len(bundle.test)} images.")
    typer.echo(f"Use it: --guard {options.quoted(str(use))}")
