"""The page on which all unlearners stand beside retraining, from the ledger."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.proofs.ledger import Entry, latest

from . import markdown

__all__ = ["page"]

_INTRO = """\
# Unlearners compared

Every unlearner of single images and of classes, on ResNet-20 trained on 10,000 images of CIFAR-10, beside the model
retrained without the forgotten images. The settings of each are the best of four candidates by the mean gap, on a seed
that is not among these. UA are the errors on the images to forget, RA and TA the accuracy on retained and test images,
MIA the share of the forgotten images that a membership attack takes for unseen; the gap is the mean distance of the
four to retraining, in points. What each word means: [Forget training data](../unlearning.md).

"""
_KINDS = {"of-random-images": "A random tenth of the training images", "of-a-class": "A class"}
_RATES = ("ua", "ra", "ta", "mia_nonmember_rate")


def page(entries: Sequence[Entry] | None = None) -> str:
    """The page; a table for each kind of request, from the newest entries at cpu scale."""
    entries = latest() if entries is None else entries
    parts = [_INTRO]
    for ending, title in _KINDS.items():
        found = [e for e in entries if e.scale == "cpu" and e.proof == f"{e.method}-{ending}"]
        parts.append(f"## {title}\n\n{_table(found) if found else 'Not measured yet.'}\n")
    return "\n".join(parts)


def _table(entries: Sequence[Entry]) -> str:
    first = _seeds(entries[0])
    rows = [_row("retrained", [seed["retrained"] for seed in first]), _row("original", _originals(first))]
    by_gap = sorted(entries, key=lambda e: _mean(_seeds(e), "gap"))
    rows += [_row(f"[`{e.method}`](../methods/{e.method}.md)", _seeds(e)) for e in by_gap]
    seeds = len(entries[0].seeds)
    columns = ("method", "UA", "RA", "TA", "MIA", "gap", "JS", "seconds")
    return f"Means over {seeds} seed{'s' if seeds > 1 else ''}, with standard deviations.\n\n" + markdown.table(
        columns, rows
    )


def _seeds(entry: Entry) -> list[Mapping[str, Any]]:
    return entry.details.get("per_seed", [entry.details])


def _originals(seeds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**seed["original"], "gap": seed["gap of the original"]} for seed in seeds]


def _row(name: str, seeds: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    rates = [_shown([100 * seed[rate] for seed in seeds], 1, " %") for rate in _RATES]
    rest = [_shown([seed[key] for seed in seeds if key in seed], digits) for key, digits in (("gap", 2), ("js", 4))]
    seconds = [seed["seconds"] for seed in seeds if "seconds" in seed]
    return (name, *rates, *rest, f"{statistics.mean(seconds):.0f}" if seconds else "")


def _mean(seeds: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(seed[key] for seed in seeds)


def _shown(values: Sequence[float], digits: int, unit: str = "") -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{unit}"
