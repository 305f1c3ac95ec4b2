"""The metrics of a training on disk: one row per epoch in ``metrics.csv`` and ``metrics.jsonl``, times apart.

Both files are written anew and whole after every epoch from the history that the checkpoint holds, so they are the
same whether the training was interrupted or not. Times differ from run to run and go to ``timing.jsonl``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from holdfast import files

__all__ = ["append_timing", "write_metrics"]


def write_metrics(out: Path, history: Sequence[dict[str, float]]) -> None:
    """Write ``metrics.csv`` and ``metrics.jsonl``; values that an epoch lacks are empty, infinities are text."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files.write_text(out / "metrics.csv", table.getvalue())
    lines = [json.dumps({k: v if math.isfinite(v) else str(v) for k, v in row.items()}) for row in history]
    files.write_text(out / "metrics.jsonl", "".join(line + "\n" for line in lines))


def append_timing(out: Path, **values: float | int) -> None:
    """Add one line to ``timing.jsonl``."""
    with open(out / "timing.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
