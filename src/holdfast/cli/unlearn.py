"""``holdfast unlearn``."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
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
    PrecisionName,
    Quiet,
    Seed,
    Weights,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.data import Data, Images
    from holdfast.methods import Unlearner
    from holdfast.run import Run
    from holdfast.unlearning import Certificate


def unlearn_command(
    method: Annotated[
        str, typer.Option("--method", help="An unlearner, e.g. `salun` or `'ft(epochs=5)'`.", show_default=False)
    ],
    model: Model,
    data: DataSpec,
    forget: Annotated[
        str,
        typer.Option(
            "--forget",
            "-f",
            help="What to forget of the training images: a `.csv` file of their positions, `class=NAME`, "
            "`COLUMN=VALUE`, `random=0.1`, or `worst-case-forget`.",
            show_default=False,
        ),
    ],
    weights: Weights = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new weights and the certificate.")] = Path(
        "holdfast-out/unlearn"
    ),
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Weights of a model that was retrained without the images, to compare with."),
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option("--retrain", help="Retrain one here, e.g. `'retrain(epochs=30)'`; takes a whole training."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove the influence of some training images from a model, and certify what can be said of it.

    Writes `weights.safetensors`, `forget.csv` (the positions), `certificate.json` and `certificate.html`. With the same
    folder, a stopped run goes on.

    Example: `holdfast unlearn --method salun --model zoo:cifar10-resnet20 --data cifar10 --forget class=cat`
    """
    from holdfast import catalog, files
    from holdfast.errors import UserError
    from holdfast.methods import Unlearner
    from holdfast.report import write_certificate
    from holdfast.unlearning import certify_unlearning, forget_mask

    unlearner = catalog.build(method, kind=Unlearner)
    retrainer = None if retrain is None else catalog.build(retrain, kind=Unlearner)
    if reference is not None and retrainer is not None:
        raise UserError("--reference and --retrain are two ways to the same model; give one of them.")
    run = options.make_run(
        seed=seed, device=device, precision=precision, batch_size=batch_size, out=out, quiet=quiet or as_json
    )
    network, bundle = options.load(model, weights, data, run)
    train = _training_images(bundle, data)
    mask = forget_mask(forget, train, model=network, run=run.child("request"))
    files.make_dir(out)
    files.write_text(out / "forget.csv", "index\n" + "".join(f"{i}\n" for i in mask.nonzero().flatten().tolist()))
    unlearned, seconds = _timed(unlearner, network, train, mask, run.child("unlearn"))
    compared: dict[str, Any] = {}
    if retrainer is not None:
        again, took = _timed(retrainer, network, train, mask, run.child("reference"))
        compared = {"reference": again, "reference_from": f"{retrainer}, done for this", "reference_seconds": took}
    elif reference is not None:
        compared = {"reference": _given(model, reference, bundle), "reference_from": reference}
    certificate = certify_unlearning(
        network,
        unlearned,
        train,
        mask,
        bundle.test,
        request=forget,
        method=str(unlearner),
        seconds=seconds,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        run=run,
        **compared,
    )
    _save(unlearned, bundle, certificate, out)
    page = write_certificate(certificate, out)
    if as_json:
        print_json(certificate.to_json())
        return
    print_table(_rows(certificate))
    for text in (certificate.sentence, *certificate.traces):
        typer.echo(text)
    typer.echo(f"Weights: {(out / 'weights.safetensors').resolve()}")
    typer.echo(f"Certificate: {page.resolve()}")


def _training_images(bundle: Data, name: str) -> Images:
    from holdfast.errors import UserError

    if bundle.train is None:
        raise UserError(f"{name}: there are no training images, so there is nothing to forget.")
    return bundle.train


def _timed(method: Unlearner, network: nn.Module, train: Images, mask: Tensor, run: Run) -> tuple[nn.Module, float]:
    """The unlearned model and the seconds it took, over all sessions of this work that ended in good order."""
    from holdfast import files
    from holdfast.models import weights_hash

    assert run.out is not None
    positions = hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16]
    work = f"{method} of {positions} from {weights_hash(network)}, {train.fingerprint()}, seed {run.seed}"
    note = run.out / "seconds.json"
    before = json.loads(note.read_text()) if note.is_file() else {}
    if before.get("work") != work:  # the folder served another request
        before = {"work": work, "seconds": 0.0, "done": False}
    began = time.perf_counter()
    done = False
    try:
        unlearned = method(network, train.select(mask), train.select(~mask), run=run)
        done = True
    finally:
        taken = before["seconds"] + (0.0 if before["done"] else time.perf_counter() - began)
        files.make_dir(run.out)
        files.write_json(note, {**before, "seconds": taken, "done": done or before["done"]})
    return unlearned, taken


def _given(model: str, weights: str, bundle: Data) -> nn.Module:
    """The retrained model that the user has."""
    from holdfast.models import load_model

    return load_model(model, weights=weights, num_classes=bundle.num_classes, image_shape=bundle.shape)


def _save(unlearned: nn.Module, bundle: Data, certificate: Certificate, out: Path) -> None:
    from holdfast import files
    from holdfast.models import save_weights

    save_weights(unlearned, out / "weights.safetensors", {"classes": list(bundle.classes)})
    files.write_json(out / "certificate.json", certificate.to_json())


def _rows(certificate: Certificate) -> list[dict[str, str]]:
    models = {"before": certificate.before, "after": certificate.after, "retrained": certificate.reference}
    titles = {
        "errors on forgotten (UA)": "ua",
        "retained (RA)": "ra",
        "test (TA)": "ta",
        "taken for unseen (MIA)": "mia_nonmember_rate",
    }
    return [
        {"model": name, **{title: f"{getattr(known, field):.2%}" for title, field in titles.items()}}
        for name, known in models.items()
        if known is not None
    ]
