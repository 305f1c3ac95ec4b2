"""``holdfast generate unlearn`` and ``holdfast generate attack``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, Device, Json, Quiet, Seed, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.generative import Diffusion
    from holdfast.run import Run

_MODEL = "model"  # where a folder of `holdfast generate` keeps the finished model

Folder = Annotated[
    Path, typer.Argument(help="The folder of `holdfast generate train` or `unlearn`.", show_default=False)
]


def unlearn_concept(
    folder: Folder,
    concept: Annotated[
        str, typer.Option("--concept", "-c", help="What to forget: a word or two, or a class.", show_default=False)
    ],
    method: Annotated[
        str, typer.Option("--method", help="`esd`, `'mim-mu(steps=300)'`, `salun-diffusion`, ...")
    ] = "esd",
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A text that asks for it (default: its name); may be repeated."),
    ] = None,
    instead: Annotated[
        str, typer.Option("--instead", help="What to draw in its place, for methods that put something there.")
    ] = "",
    other: Annotated[
        list[str] | None,
        typer.Option("--other", help="A text that asks for what is to be kept; may be repeated."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Pictures with captions or classes, as for training: those that name the concept are forgotten, the "
            "others kept. Without them a method that needs pictures has the model draw them.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Bring those pictures to this side first.", min=4)] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the new model; a stopped unlearning goes on in it.")
    ] = Path("holdfast-out/generate-unlearn"),
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model that makes images forget a concept.

    Learning rates are those of the papers, for large models; a small one needs ten to a hundred times as much.

    Example: `holdfast generate unlearn runs/shapes --method esd --concept disc --out runs/no-disc`
    """
    from holdfast import catalog, files
    from holdfast.data import load_data
    from holdfast.data.resize import resized
    from holdfast.errors import UserError
    from holdfast.generative import save_diffusion
    from holdfast.models import weights_hash
    from holdfast.unlearning import Concept, ConceptUnlearner

    unlearner = catalog.build(method, kind=ConceptUnlearner)
    run = options.make_run(
        seed=seed, device=device, batch_size=batch_size, out=out / "unlearning", quiet=quiet or as_json
    )
    model = _load(folder)
    texts, others = tuple(prompt or ()), tuple(other or ())
    what = Concept(name=concept, prompts=texts, instead=instead, others=others)
    if data is not None:
        images = load_data(data, run=run).train
        if images is None:
            raise UserError(f"{data}: there are no training images among which to look for {concept!r}.")
        side = images.but(x=resized(images.x, (size, size))) if size is not None else images
        what = Concept.among(side, concept, instead=instead, prompts=texts, others=others)
    began = time.perf_counter()
    unlearned = unlearner(model, what, run=run)
    save_diffusion(unlearned.cpu(), out / _MODEL)
    record = {
        "concept": concept,
        "method": str(unlearner),
        "seconds": round(time.perf_counter() - began, 3),
        "original": weights_hash(model),
        "unlearned": weights_hash(unlearned),
        "model": str(out),
    }
    files.write_json(out / "unlearning.json", record)
    if as_json:
        print_json(record)
        return
    typer.echo(f"{unlearner} made the model forget {concept!r}.")
    typer.echo(f"Look: holdfast generate sample {shlex.quote(str(out))} --prompt {shlex.quote((*texts, concept)[0])}")
    typer.echo(f"Whether it is gone: holdfast generate attack {shlex.quote(str(out))} --original {folder} ...")


def attack_concept(
    folder: Folder,
    original: Annotated[
        Path,
        typer.Option(
            "--original", help="The folder of the model before it forgot; draws what to aim at.", show_default=False
        ),
    ],
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="A text that asks for the concept; may be repeated.", show_default=False),
    ],
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            help="A classifier that tells whether a picture shows the concept, as `--model` elsewhere: `my.py:make`, a "
            "`.safetensors` file that names its architecture, ...",
            show_default=False,
        ),
    ],
    shows: Annotated[
        str, typer.Option("--shows", help="The judge's class of the concept, by name or number.", show_default=False)
    ],
    method: Annotated[
        str, typer.Option("--method", help="`unlearndiffatk`, `'p4d(tokens=3)'`, ...")
    ] = "unlearndiffatk",
    weights: Annotated[
        str | None, typer.Option("--judge-weights", help="The judge's weights, where they are apart.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `attack.json` and `attack.png`.")] = Path(
        "holdfast-out/generate-attack"
    ),
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for words that make a model draw again what it was made to forget.

    A judge says whether a picture shows the concept; it must be another model than the one under attack.

    Example: `holdfast generate attack runs/no-disc --original runs/shapes -p "red disc" --judge my.py:make --shows 0`
    """
    from holdfast import catalog, files
    from holdfast.generative import picture_grid
    from holdfast.unlearning import PromptAttack

    attack = catalog.build(method, kind=PromptAttack)
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    victim, before = _load(folder), _load(original)
    found = attack(victim, prompt, shows=_judged(judge, weights, shows, victim, run), original=before, run=run)
    files.make_dir(out)
    files.write_json(out / "attack.json", found.to_json())
    files.write_bytes(out / "attack.png", picture_grid(found.x, columns=min(len(found.x), 16)))
    if as_json:
        print_json(found.to_json())
        return
    states = {(True, True): "without attack", (False, True): "found", (False, False): "resists"}
    print_table(
        [
            {"prompt": row["prompt"], "with words": row["found"], "shows it": states[row["before"], row["after"]]}
            for row in found.to_json()["prompts"]
        ]
    )
    typer.echo(found.sentence)
    typer.echo(f"Pictures: {(out / 'attack.png').resolve()}")


def _load(folder: Path) -> Diffusion:
    from holdfast.generative import load_diffusion

    return load_diffusion(folder / _MODEL if (folder / _MODEL).is_dir() else folder)


def _judged(judge: str, weights: str | None, shows: str, victim: Diffusion, run: Run) -> Callable[[Tensor], Tensor]:
    """Says of pictures which are of the judge's class `shows`."""
    from holdfast.errors import UserError, one_of
    from holdfast.generative.judge import as_images
    from holdfast.models import load_model, predict

    network: Any = load_model(judge, weights=weights, image_shape=victim.image_shape)
    names = tuple(map(str, getattr(network, "classes", ())))
    if not shows.isdecimal() and shows not in names:
        if names:
            raise one_of("class", shows, names)
        raise UserError(f"{judge} does not say what its classes are called; give --shows as a number, not {shows!r}.")
    label = names.index(shows) if shows in names else int(shows)

    def judged(x: Tensor) -> Tensor:
        logits = predict(network, as_images(x), run=run)
        if label >= logits.shape[1]:
            raise UserError(f"{judge} has {logits.shape[1]} classes, counted from 0; there is no class {label}.")
        return logits.argmax(1) == label

    return judged
