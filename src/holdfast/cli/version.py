"""``holdfast version``."""

from __future__ import annotations

import platform

import typer

from holdfast.cli.options import Json, print_json


def version_command(as_json: Json = False) -> None:
    """Print the versions of holdfast and of what its numbers depend on."""
    import numpy
    import torch

    import holdfast

    versions = {
        "holdfast": holdfast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if as_json:
        print_json(versions)
    else:
        typer.echo("  ".join(f"{name} {value}" for name, value in versions.items()))
