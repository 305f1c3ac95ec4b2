"""``holdfast data``: look at data before trusting a number made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from holdfast.cli.options import Json, print_json

Spec = Annotated[str, typer.Argument(help="As for `--data`, e.g. `digits` or `photos/`.", show_default=False)]


def show_data(spec: Spec, as_json: Json = False) -> None:
    """Show splits, sizes, classes and image shape.

    Example: `holdfast data show 'shapes32(n=1000)'`
    """
    from holdfast.data import load_data

    data = load_data(spec)
    splits = {"train": data.train, "val": data.val, "test": data.test} | dict(data.ood)
    described: dict[str, dict[str, Any]] = {
        name: {
            "images": len(images),
            "shape": list(images.shape),
            "classes": dict(zip(images.classes, images.y.bincount(minlength=images.num_classes).tolist(), strict=True)),
            "columns": sorted(images.columns),
            "fingerprint": images.fingerprint(),
        }
        for name, images in splits.items()
        if images is not None
    }
    if as_json:
        print_json({"name": data.name, "splits": described})
        return
    table = Table("split", "images", "shape", "classes", "columns", box=None, header_style="bold", pad_edge=False)
    for name, split in described.items():
        counts = sorted(set(split["classes"].values()))
        spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        table.add_row(
            name,
            str(split["images"]),
            " x ".join(map(str, split["shape"])),
            f"{len(split['classes'])} with {spread} each",
            ", ".join(split["columns"]),
        )
    Console().print(table)


def sheet(
    spec: Spec,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("sheet.png"),
    per_class: Annotated[int, typer.Option(help="Pictures per class.", min=1, max=100)] = 10,
) -> None:
    """Write a contact sheet: one row of test pictures per class.

    Example: `holdfast data sheet cifar10 --out cifar.png`
    """
    from holdfast.data import contact_sheet, load_data
    from holdfast.files import write_bytes

    write_bytes(out, contact_sheet(load_data(spec).test, per_class))
    typer.echo(str(out.resolve()))
