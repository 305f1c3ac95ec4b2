"""``holdfast parse train`` and ``holdfast parse read``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, DataSpec, Device, Json, Quiet, Seed, print_json, print_table

if TYPE_CHECKING:
    from torch import nn

    from holdfast.data import Data


def train_parser(
    data: DataSpec,
    method: Annotated[
        str, typer.Argument(help="Settings, e.g. `'model-parsing(attacks=[pgd], epochs=30)'`.")
    ] = "model-parsing",
    victim: Annotated[
        list[str] | None,
        typer.Option(
            "--victim", help="A model to tell from the others, instead of the small family; named twice or more often."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Of training each of the small family.", min=1)] = 10,
    n: Annotated[
        int | None,
        typer.Option("-n", help="The first N test images. A test set sorted by class is mixed first.", min=1),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for parser and report; a stopped training goes on in it.")
    ] = Path("holdfast-out/parse"),
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn to tell from adversarial images what kind of model they were made on.

    Trains nine small networks (kernel 3, 5, 7; relu, tanh, elu), attacks them, and learns to tell them apart. With
    `--victim`, it learns to tell those models apart instead: which of them had the attacker? Writes
    `parser.safetensors`, for `holdfast parse read`, and `report.json`.

    Example: `holdfast parse train --data cifar10 -n 2500 --out runs/parser`
    """
    from holdfast import catalog, files
    from holdfast.data import load_data
    from holdfast.data.order import first_images
    from holdfast.errors import UserError
    from holdfast.evasion.model_parsing import ModelParsing
    from holdfast.evasion.victims import train_victims

    analysis = catalog.build(method, kind=ModelParsing)
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    bundle = load_data(data, run=run)
    images = first_images(bundle.test, n, run.rng("order", "test"))
    if victim:
        report = analysis.of_models(_models(victim, bundle), images, run=run)
    elif bundle.train is None:
        raise UserError(f"{bundle.name}: there are no training images for the victims; name models with --victim.")
    else:
        report = analysis(train_victims(bundle.train, epochs=epochs, run=run.child("victims")), images, run=run)
    report.parser.save(out / "parser.safetensors")
    files.write_json(out / "report.json", report.to_json())
    if as_json:
        print_json(report.to_json())
        return
    print_table(report.listing())
    typer.echo(report.sentence)
    typer.echo(f"Use it: holdfast parse read {out / 'parser.safetensors'} --images FOLDER --data {data}")


def read_parser(
    parser: Annotated[Path, typer.Argument(help="What `holdfast parse train` wrote.", show_default=False)],
    images: Annotated[
        Path,
        typer.Option(
            "--images",
            "-i",
            help="Attacked images: the folder of `holdfast attack --out`, a folder of pictures, or a file with an "
            "array `x_adv` (`.npz`, `.safetensors`).",
            show_default=False,
        ),
    ],
    clean: Annotated[
        Path | None, typer.Option("--clean", help="The same images before: a folder of pictures, or a file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="The data that `holdfast attack` was given, for the images before."),
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
) -> None:
    """Name the attributes of the model that adversarial images were made on.

    The parser knows the kinds of model and attack it was trained on: it names the likeliest of those, whatever it is
    given.

    Example: `holdfast parse read runs/parser/parser.safetensors --images runs/attack --data cifar10`
    """
    from holdfast.data import load_data
    from holdfast.evasion.evidence import read_evidence
    from holdfast.evasion.parsing_network import load_parser

    run = options.make_run(seed=0, device=device, batch_size=batch_size, out=None, quiet=True)
    loaded = load_parser(parser)
    test = None if data is None else load_data(data, run=run).test
    x_adv, before = read_evidence(images, clean=clean, test=test)
    parsed = loaded.parse(x_adv, before, run=run)
    if as_json:
        print_json(parsed.to_json())
        return
    print_table(parsed.listing())
    typer.echo(parsed.sentence)
    known = ", ".join(f"{name} {value:.1%}" for name, value in loaded.accuracy.items())
    typer.echo(f"The parser was trained on {', '.join(loaded.attacks)}, and right on unseen images in: {known}.")


def _models(names: list[str], bundle: Data) -> dict[str, nn.Module]:
    from holdfast.models import load_model

    return {
        name: load_model(name, num_classes=bundle.num_classes, image_shape=bundle.shape)
        for name in dict.fromkeys(names)
    }
