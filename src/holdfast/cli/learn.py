"""``holdfast learn``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options
from holdfast.cli.options import (
    BatchSize,
    DataSpec,
    Device,
    Json,
    Model,
    PrecisionName,
    Quiet,
    Seed,
    Weights,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from torch import nn

    from holdfast.continual import Record
    from holdfast.data import Data
    from holdfast.run import Run


def learn_command(
    learner: Annotated[
        str,
        typer.Option("--learner", help="A continual learner, e.g. `ug-clu` or `'er(epochs=5)'`.", show_default=False),
    ],
    model: Model,
    data: DataSpec,
    requests: Annotated[
        Path,
        typer.Option(
            "--requests",
            help="A YAML file of requests, such as `- learn: class=0,1` and `- forget: random=0.05 of class=0`.",
            show_default=False,
        ),
    ],
    buffer: Annotated[int, typer.Option("--buffer", help="Images that the memory holds.", min=0)] = 500,
    weights: Weights = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for weights, memory and record; a stopped stream goes on in it.")
    ] = Path("holdfast-out/learn"),
    seed: Seed = 0,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve requests to learn and to forget, one after the other, with a small memory.

    An architecture without weights starts anew, with room for all classes of the data. Writes `weights.safetensors`,
    `memory.safetensors` and `record.json`, and says after each request what is known. With the same folder, a stopped
    stream goes on.

    Example: `holdfast learn --learner ug-clu --model resnet20 --data cifar10 --requests stream.yaml --buffer 500`
    """
    from holdfast import catalog, files
    from holdfast.continual import ContinualLearner, Memory, read_requests, serve_stream
    from holdfast.data import load_data
    from holdfast.errors import UserError
    from holdfast.models import save_weights

    method = catalog.build(learner, kind=ContinualLearner)
    run = options.make_run(
        seed=seed, device=device, precision=precision, batch_size=batch_size, out=out, quiet=quiet or as_json
    )
    bundle = load_data(data, run=run)
    if bundle.train is None:
        raise UserError(f"{data}: there are no training images, so there is nothing to learn.")
    asked = read_requests(requests, bundle.train, run=run)
    served = serve_stream(
        method,
        _network(model, weights, bundle, run),
        asked,
        Memory.empty(buffer, bundle.train),
        test=bundle.test,
        told=None if as_json else _say,
        run=run.child("stream"),
    )
    save_weights(served.model, out / "weights.safetensors", {"classes": list(bundle.classes)})
    served.memory.save(out / "memory.safetensors")
    record = {
        "learner": str(method),
        "model": model,
        "data": data,
        "buffer": buffer,
        "seed": seed,
        "requests": [known.to_json() for known in served.records],
    }
    files.write_json(out / "record.json", record)
    if as_json:
        print_json(record)
        return
    typer.echo(f"Weights: {(out / 'weights.safetensors').resolve()}")
    typer.echo(f"Memory: {(out / 'memory.safetensors').resolve()}, {len(served.memory)} of {buffer} images")
    typer.echo(f"Record: {(out / 'record.json').resolve()}")


def _network(model: str, weights: str | None, bundle: Data, run: Run) -> nn.Module:
    """The model to begin with: a new one where an architecture comes without weights."""
    from holdfast.models import build_model, load_model
    from holdfast.models.build import is_architecture

    if weights is None and is_architecture(model):
        return build_model(model, num_classes=bundle.num_classes, image_shape=bundle.shape, run=run)
    return load_model(model, weights=weights, num_classes=bundle.num_classes, image_shape=bundle.shape)


def _say(record: Record) -> None:
    """A request, and a table of what is known after it; single classes are in the record."""
    typer.echo(f"Request {record.number}: {record.title}")
    rows = {"average (A)": record.average, "forgetting (F)": record.forgetting, "classes that remain": record.remaining}
    rows |= {f"task {number}": value for number, value in enumerate(record.tasks, 1)}
    rows |= {"unlearned images": record.unlearned}
    print_table([{"measure": name, "value": f"{value:.2%}"} for name, value in rows.items() if value is not None])
