"""``holdfast analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, DataSpec, Device, Guards, Json, Quiet, Seed, print_json, print_table

if TYPE_CHECKING:
    from torch import nn

    from holdfast.data import Data


def analyse_command(
    method: Annotated[
        str, typer.Argument(help="An analysis, e.g. `lsa` or `'mad-competition(images=20)'`.", show_default=False)
    ],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A model, named as in `holdfast attack`; may be repeated, for analyses that compare models.",
            show_default=False,
        ),
    ],
    data: DataSpec,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", "-w", help="As in `holdfast attack`; one for each model, in order; `-` for none."),
    ] = None,
    guard: Guards = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", help="The first N test images (default: all). A test set sorted by class is mixed first.", min=1
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for `report.json`.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a question about one or several models, and print what was found.

    Analyses change nothing; `holdfast list --kind analysis` shows them. With `--out`, writes `report.json`.

    Examples:

    `holdfast analyse lsa --model zoo:cifar10-resnet20 --model zoo:cifar10-resnet20-at --data cifar10 -n 256`

    `holdfast analyse mad-competition -m my.py:make -w first.safetensors -m my.py:make -w second.safetensors -d photos/`
    """
    from holdfast import catalog, files
    from holdfast.data import load_data
    from holdfast.data.order import first_images
    from holdfast.methods import Analysis

    analysis = catalog.build(method, kind=Analysis)
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    bundle = load_data(data, run=run)
    models = _load(model, weights or ["-"] * len(model), guard, bundle)
    images = first_images(bundle.test, n, run.rng("order", "test"))
    report = analysis.of_models(models, images, run=run)
    found = {
        "method": str(analysis),
        "models": list(models),
        "data": bundle.name,
        "n": len(images),
        "seed": seed,
        "sentence": report.sentence,
        "report": report.to_json(),
    }
    if out is not None:
        files.write_json(out / "report.json", found)
    if as_json:
        print_json(found)
        return
    print_table(getattr(report, "listing", list)())
    typer.echo(report.sentence)
    if out is not None:
        typer.echo(f"Report: {(out / 'report.json').resolve()}")


def _load(model: list[str], weights: list[str], guard: list[str] | None, bundle: Data) -> dict[str, nn.Module]:
    """The models, by the names under which they are reported."""
    from holdfast.errors import UserError
    from holdfast.models import load_model

    if len(weights) != len(model):
        raise UserError(f"--weights must be given once for each of {len(model)} models (`-` for none), or not at all.")
    models: dict[str, nn.Module] = {}
    for spec, given in zip(model, weights, strict=True):
        file = None if given == "-" else given
        name = " behind ".join([file or spec, *(guard or ())])
        if name in models:
            raise UserError(f"the model {name} is given twice.")
        network = load_model(spec, weights=file, num_classes=bundle.num_classes, image_shape=bundle.shape)
        models[name] = options.guarded(network, guard)
    return models
