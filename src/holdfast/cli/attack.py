"""``holdfast attack``."""

from __future__ import annotations

from typing import Annotated

import typer

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
    Out,
    PrecisionName,
    Quiet,
    Seed,
    Weights,
    print_json,
)


def attack_command(
    attack: Annotated[
        str,
        typer.Argument(help="An attack, e.g. `pgd` or `'pgd(eps=4/255, restarts=5)'`.", show_default=False),
    ],
    model: Model,
    data: DataSpec,
    weights: Weights = None,
    guard: Guards = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="The attacker knows the guard, and searches on what it offers.")
    ] = False,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", help="The first N test images (default: all). A test set sorted by class is mixed first.", min=1
        ),
    ] = None,
    out: Out = None,
    max_queries: MaxQueries = None,
    max_rate: MaxRate = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a model and report its robust accuracy.

    With `--out`, writes `samples.parquet` (per image: label, prediction, success, norm, queries) and
    `adversarial.safetensors` (the images), and goes on where a stopped run left off.

    Several processes share the work: `torchrun --nproc-per-node 2 -m holdfast attack ...`, each on a GPU of its own.

    Example: `holdfast attack 'pgd(steps=50, restarts=10)' --model zoo:cifar10-resnet20 --data cifar10 -n 1000`
    """
    from holdfast import catalog
    from holdfast.data.order import first_images
    from holdfast.evasion.adaptive import informed
    from holdfast.evasion.campaign import campaign
    from holdfast.methods import Attack
    from holdfast.training.devices import first_process

    method = catalog.build(attack, kind=Attack)
    run = options.make_run(
        seed=seed, device=device, precision=precision, batch_size=batch_size, out=out, quiet=quiet or as_json
    )
    network, bundle = options.load(model, weights, data, run)
    options.limit(network, max_queries, max_rate)
    network = options.guarded(network, guard)
    network = informed(network) if adaptive else network
    images = first_images(bundle.test, n, run.rng("order", "test"))
    result = campaign(method, network, images, run=run)
    if not first_process():
        return
    if as_json:
        print_json(result.to_json())
    else:
        typer.echo(result.sentence)
        options.say_usage(network)
        if out is not None:
            typer.echo(f"Per image: {out.resolve() / 'samples.parquet'}")
