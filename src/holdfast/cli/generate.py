"""``holdfast generate train`` and ``holdfast generate sample``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, DataSpec, Device, Json, Quiet, Seed, print_json

_MODEL = "model"  # the folder below --out in which the finished model lies, apart from its training


def train_generator(
    data: DataSpec,
    method: Annotated[
        str, typer.Option("--method", help="Settings, e.g. `'ddpm-ddim-cfg(updates=20000, width=64)'`.")
    ] = "ddpm-ddim-cfg",
    size: Annotated[int | None, typer.Option("--size", help="Bring the images to this side first.", min=4)] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", help="The first N training images (default: all). A set sorted by class is mixed first.", min=2
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the model; a stopped training goes on in it.")
    ] = Path("holdfast-out/generate"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model that makes images like those of a data set.

    It is told captions where the data have them, as `shapes32` has; else classes, where there are two or more.

    Example: `holdfast generate train --data shapes32 --size 16 --out runs/shapes`
    """
    from holdfast import catalog
    from holdfast.data import load_data
    from holdfast.data.order import first_images
    from holdfast.data.resize import resized
    from holdfast.errors import UserError
    from holdfast.generative import save_diffusion
    from holdfast.methods import Generator

    generator = catalog.build(method, kind=Generator)
    run = options.make_run(seed=seed, device=device, out=out / "training", quiet=quiet or as_json)
    images = load_data(data, run=run).train
    if images is None:
        raise UserError(f"{data}: there are no training images to learn from.")
    images = first_images(images, n, run.rng("order", "train"))
    if size is not None:
        images = images.but(x=resized(images.x, (size, size)))
    model: Any = generator(images, run=run)
    save_diffusion(model, out / _MODEL)
    if as_json:
        print_json({"model": str(out), "method": str(generator), "images": len(images), "told": model.conditioning})
        return
    told = {"text": "captions", "class": "classes", "none": "nothing of them"}[model.conditioning]
    typer.echo(f"Trained on {len(images)} images of {'x'.join(map(str, images.shape))}, and told {told}.")
    example = str(images.columns["caption"][0]) if model.text is not None else next(iter(model.classes), "")
    prompt = f" --prompt {shlex.quote(example)}" if example else ""
    typer.echo(f"Use it: holdfast generate sample {shlex.quote(str(out))}{prompt} -n 16 --out grid.png")


def sample_generator(
    folder: Annotated[Path, typer.Argument(help="The folder of `holdfast generate train`.", show_default=False)],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to show, a caption or a class; may be repeated."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Images for each prompt.", min=1, max=10_000)] = 16,
    sampler: Annotated[str, typer.Option("--sampler", help="`ddim(steps=20)`, `ddpm`, ...")] = "ddim",
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="How much to insist on the prompt; 1 not at all (default: 2 with a prompt)."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("grid.png"),
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make images with a trained model, and show them in a grid: a row or more for each prompt.

    Example: `holdfast generate sample runs/shapes --prompt "red star on a dotted background" -n 16 --out grid.png`
    """
    from holdfast.files import write_bytes
    from holdfast.generative import load_diffusion, picture_grid, sample

    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=None, quiet=quiet or as_json)
    model = load_diffusion(folder / _MODEL if (folder / _MODEL).is_dir() else folder)
    wanted = [text for text in prompt or () for _ in range(n)]
    scale = guidance if guidance is not None else 2.0 if wanted else 1.0
    x = sample(model, len(wanted) or n, of=wanted or None, sampler=sampler, guidance=scale, run=run)
    write_bytes(out, picture_grid(x, columns=min(n, 16)))
    if as_json:
        print_json({"images": len(x), "prompts": prompt or [], "guidance": scale, "sampler": sampler, "out": str(out)})
    else:
        typer.echo(str(out.resolve()))
