"""``holdfast transfer``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.options import BatchSize, DataSpec, Device, Json, Quiet, Seed, print_json, print_table

Names = Annotated[list[str], typer.Option("--surrogate", "-s", help="A model to attack; may be repeated.")]
Victims = Annotated[list[str], typer.Option("--victim", "-v", help="A model to fool; may be repeated.")]


def transfer_command(
    surrogate: Names,
    victim: Victims,
    data: DataSpec,
    attacks: Annotated[
        list[str] | None,
        typer.Argument(help="Attacks, e.g. `i-fgsm mi-fgsm`; the first is the baseline.", show_default=False),
    ] = None,
    eps: Annotated[str, typer.Option("--eps", help="The l_inf radius of all of them.")] = "8/255",
    n: Annotated[
        int | None,
        typer.Option("-n", help="The first N test images. A test set sorted by class is mixed first.", min=1),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try images made on surrogates on other models, at equal l_inf and at equal l_2 norm.

    Example: `holdfast transfer i-fgsm mi-fgsm -s zoo:cifar10-resnet20 -v zoo:cifar10-resnet20-at -d cifar10 -n 256`
    """
    from holdfast import catalog
    from holdfast.data import load_data
    from holdfast.data.order import first_images
    from holdfast.evasion.l2_transferability import L2Transferability
    from holdfast.models import load_model

    analysis: Any = catalog.build(f"{L2Transferability.id}(eps={eps})")
    if attacks:
        analysis = replace(analysis, attacks=tuple(attacks))
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=None, quiet=quiet or as_json)
    bundle = load_data(data, run=run)
    models = {
        name: load_model(name, num_classes=bundle.num_classes, image_shape=bundle.shape)
        for name in dict.fromkeys([*surrogate, *victim])
    }
    images = first_images(bundle.test, n, run.rng("order", "test"))
    report = analysis({s: models[s] for s in surrogate}, {v: models[v] for v in victim}, images, run=run)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report.listing())
        typer.echo(report.sentence)
