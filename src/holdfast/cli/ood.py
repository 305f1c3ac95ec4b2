"""``holdfast ood fit`` and ``holdfast ood score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options
from holdfast.cli.options import (
    BatchSize,
    DataSpec,
    Device,
    Guards,
    Json,
    Model,
    Quiet,
    Seed,
    Weights,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from holdfast.data import Images
    from holdfast.ood import Reading

_SHOWN = 5


def fit_monitor_command(
    model: Model,
    data: DataSpec,
    weights: Weights = None,
    guard: Guards = None,
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", help="E.g. `knn`, the default, or `'knn(k=10)'`; see `holdfast list`."),
    ] = None,
    alarm_rate: Annotated[
        float, typer.Option("--alarm-rate", help="The promised rate of false alarms, in (0, 1).")
    ] = 0.05,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            help="Keep the rate for all but this share of calibration sets; without it, it holds on average over them.",
        ),
    ] = None,
    calibrate_on: Annotated[
        str | None,
        typer.Option(
            "--calibrate-on",
            help="The split that sets the alarm: `val`, by default where there is one; `train`, a fifth of it; `test`.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the monitor.")] = Path("holdfast-out/monitor"),
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a monitor: a detector of unknown inputs with an alarm of a promised false-alarm rate.

    The detector learns from the training split, and the alarm is set on images that neither it nor the model has seen.
    Writes `monitor.safetensors`, which `holdfast ood score` and `holdfast.ood.OODMonitor.load` read, and
    `monitor.json`, which says what is in it. To choose a detector, compare them: `holdfast audit --only ood`.

    Examples:

    `holdfast ood fit --model zoo:digits-convnet --data digits --detector 'knn(k=10)' --out monitor/`

    `holdfast ood fit --model resnet20 --weights my.safetensors --data photos/ --detector energy --alarm-rate 0.01`
    """
    from holdfast import files
    from holdfast.errors import UserError
    from holdfast.ood import fit_monitor

    specs = detector or ["knn"]
    if len(specs) > 1:
        raise UserError(f"a monitor holds one detector, got {len(specs)}; `holdfast audit --only ood` compares them.")
    run = options.make_run(seed=seed, device=device, batch_size=batch_size, out=out, quiet=quiet or as_json)
    network, bundle = options.load(model, weights, data, run)
    network = options.guarded(network, guard)
    chosen: Any = calibrate_on  # `fit_monitor` says what it takes
    monitor = fit_monitor(specs[0], network, bundle, alpha=alarm_rate, delta=delta, calibrate_on=chosen, run=run)
    path = monitor.save(out)
    said = monitor.settings.model_dump(mode="json")
    said["false_alarms"] = None if calibrate_on == "test" else _alarms(monitor(bundle.test))
    files.write_json(out / "monitor.json", said)
    if as_json:
        print_json(said | {"monitor": str(path)})
        return
    typer.echo(f"{monitor.settings.detector}: {monitor.calibrated_on}.")
    typer.echo(monitor.alarm.promise)
    if said["false_alarms"]:
        typer.echo(f"Of the test images, {_sentence(said['false_alarms'])}.")
    typer.echo(f"Monitor: {path.resolve()}")


def score_command(
    monitor: Annotated[
        Path,
        typer.Option("--monitor", help="What `holdfast ood fit` wrote: the folder or the file.", show_default=False),
    ],
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="A folder, of which all pictures are scored; one picture; a `.npy` or `.npz` array of images; or a "
            "data set as `holdfast audit` takes it.",
            show_default=False,
        ),
    ],
    weights: Weights = None,
    guard: Guards = None,
    split: Annotated[str, typer.Option("--split", help="Of a data set: `test`, `val`, `train`.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A `.parquet` file for score, p-value and alarm of each image.")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a monitor which images are unlike what the model knows.

    Pictures are cropped and resized to the size the monitor was calibrated on. The model must be the one it was fitted
    to. The p-value of an image is the share of known images that score at least as high.

    Examples:

    `holdfast ood score --monitor monitor/ --model zoo:digits-convnet --data incoming/ --out scores.parquet`

    `holdfast ood score --monitor monitor/ --model zoo:digits-convnet --data digits --json`
    """
    import pyarrow.parquet as pq

    from holdfast.data.unlabelled import read_unlabelled
    from holdfast.errors import UserError
    from holdfast.files import atomic_path
    from holdfast.models import load_model
    from holdfast.ood import OODMonitor, monitor_settings

    if out is not None and out.suffix != ".parquet":
        raise UserError(f"--out {out}: scores are written to a .parquet file.")
    run = options.make_run(seed=0, device=device, batch_size=batch_size, out=None, quiet=quiet or as_json)
    settings = monitor_settings(monitor)
    network = load_model(model, weights=weights, num_classes=settings.num_classes, image_shape=settings.image_shape)
    loaded = OODMonitor.load(monitor, options.guarded(network, guard), run=run)
    images = read_unlabelled(data, shape=settings.image_shape, split=split, run=run)
    reading = loaded(images)
    table = reading.table(images)
    if out is not None:
        with atomic_path(out) as temporary:
            pq.write_table(table, temporary)
    if as_json:
        print_json({"detector": settings.detector, **_alarms(reading), "images": table.to_pylist()})
        return
    promised = f"of known images at most {100 * settings.alarm_rate:.4g} % would"
    typer.echo(f"{settings.detector}: {_sentence(_alarms(reading))}; {promised}.")
    print_table(_strangest(reading, images))
    if out is not None:
        typer.echo(f"Per image: {out.resolve()}")


def _alarms(reading: Reading) -> dict[str, Any]:
    from holdfast import stats

    k, n = int(reading.alarm.sum()), len(reading.alarm)
    low, high = stats.wilson(k, n)
    return {"n": n, "alarms": k, "rate": k / n, "low": low, "high": high}


def _sentence(found: dict[str, Any]) -> str:
    return (
        f"{found['alarms']} of {found['n']} raise an alarm, {found['rate']:.2%} (95 % interval {found['low']:.2%} to "
        f"{found['high']:.2%})"
    )


def _strangest(reading: Reading, images: Images) -> list[dict[str, str]]:
    """The images with the highest scores, the strangest first."""
    names = images.columns.get("path", range(len(images)))
    return [
        {
            "strangest": str(names[i]),
            "score": f"{float(reading.score[i]):.4g}",
            "p-value": f"{float(reading.p_value[i]):.3g}",
            "alarm": "yes" if reading.alarm[i] else "no",
        }
        for i in reading.score.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    ]
