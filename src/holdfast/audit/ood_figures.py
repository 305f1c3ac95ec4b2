"""The figures of detectors in the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from holdfast.audit.findings import Chart, Figure, Gallery, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import picture
from holdfast.audit.subject import SHIFTED, UNKNOWN, Subject
from holdfast.ood import Comparison

__all__ = ["auroc_chart", "gallery", "histogram", "ranking", "table"]

Floats = NDArray[np.float64]
Kinds = Mapping[str, str]  # near or far, by set

_DRAWN = 6  # detectors that a bar chart can show


def auroc_chart(comparison: Comparison, kinds: Kinds) -> Chart:
    """The AUROC of every detector on every set: bars, or a map where they are many."""
    by_detector = [(standing.name, comparison.separations[standing.name]) for standing in comparison.ranking]
    if len(by_detector) > _DRAWN:
        return Chart(
            kind="heatmap",
            title="AUROC by detector and set",
            x_label="set",
            y_label="detector, the best mean first",
            series=[
                Series(name=name, x=list(kinds), y=[by_set[s].auroc for s in kinds]) for name, by_set in by_detector
            ],
            y_range=(0.5, 1),
        )
    return Chart(
        kind="bar",
        title="AUROC by set and detector",
        y_label="AUROC",
        series=[
            Series(
                name=name,
                x=[f"{s} ({kind})" for s, kind in kinds.items()],
                y=[by_set[s].auroc for s in kinds],
                low=[by_set[s].intervals["auroc"][0] for s in kinds],
                high=[by_set[s].intervals["auroc"][1] for s in kinds],
            )
            for name, by_set in by_detector
        ],
        y_range=(0, 1),
        level=0.5,
        level_label="chance",
    )


def histogram(best: str, scores: Mapping[str, Floats], kinds: Kinds) -> Chart:
    """How the scores of known and unknown images are spread."""
    groups = {"known": scores["test"]}
    for kind in ("near", "far"):
        of_kind = [scores[f"{UNKNOWN}{s}"] for s in kinds if kinds[s] == kind]
        if of_kind:
            groups[f"unknown, {kind}"] = np.concatenate(of_kind)
    if SHIFTED in scores:
        groups["known, corrupted"] = scores[SHIFTED]
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1, 41)
    series = []
    for name, values in groups.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        series.append(Series(name=name, x=((edges[:-1] + edges[1:]) / 2).tolist(), y=(counts / len(values)).tolist()))
    return Chart(
        kind="histogram",
        title=f"Scores of {best}",
        x_label="anomaly score",
        y_label="share of images",
        series=series,
        caption="The two-thousandths of the images with extreme scores stand at the ends.",
    )


def ranking(comparison: Comparison, kinds: Kinds, best: str, spectrum: Mapping[str, float]) -> Table:
    """The detectors, the best mean first, and by how much the chosen one is ahead of each."""
    rows: list[list[str | float | int | None]] = []
    for standing in comparison.ranking:
        by_set = comparison.separations[standing.name]
        means = [_mean([by_set[s].auroc for s in kinds if kinds[s] == kind]) for kind in ("near", "far")]
        said = "chosen" if standing.name == best else f"{standing.interval[0]:+.4f} to {standing.interval[1]:+.4f}"
        tie = "" if standing.name == best else ("yes" if standing.tied else "no")
        full = [spectrum[standing.name]] if spectrum else []
        rows.append([standing.name, standing.auroc, *means, *full, said, tie])
    return Table(
        title="Ranking of detectors",
        columns=[
            "detector",
            "mean AUROC",
            "near",
            "far",
            *(["half of the known corrupted"] if spectrum else []),
            f"behind {best}, 95 % interval",
            "may be chance",
        ],
        rows=rows,
        caption="Near and far sets count alike. The differences are paired over images: all detectors saw the same. "
        f"`holdfast ood fit --detector {shlex.quote(best)}` makes a monitor of the chosen one.",
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def table(comparison: Comparison, kinds: Kinds) -> Table:
    """All figures of every detector on every set."""
    rows: list[list[str | float | int | None]] = [
        [standing.name, s, kinds[s], r.n_out, r.auroc, r.aupr_out, r.aupr_in, r.fpr95_id, r.fpr95_ood]
        for standing in comparison.ranking
        for s, r in comparison.separations[standing.name].items()
    ]
    return Table(
        title="Detectors by set",
        columns=[
            "detector",
            "set",
            "kind",
            "images",
            "AUROC",
            "AUPR, unknown",
            "AUPR, known",
            "unknown accepted at 95 % known",
            "known flagged at 95 % unknown",
        ],
        rows=rows,
        percent=["unknown accepted at 95 % known", "known flagged at 95 % unknown"],
        caption="FPR95 is given both ways round, since papers differ. AUPR depends on the sizes of the sets.",
    )


def gallery(subject: Subject, best: str, scores: Mapping[str, Floats], kinds: Kinds) -> list[Figure]:
    """The unknown images that look most normal, the sets taking turns."""
    classes, groups = subject.data.classes, []
    order = {s: np.argsort(scores[f"{UNKNOWN}{s}"], kind="stable") for s in kinds}
    for turn in range(subject.profile.gallery):
        s = list(kinds)[turn % len(kinds)]
        place = turn // len(kinds)
        if place >= len(order[s]):
            continue
        i = int(order[s][place])
        seen = subject.predictions(f"{UNKNOWN}{s}")
        known_below = float((scores["test"] <= scores[f"{UNKNOWN}{s}"][i]).mean())
        groups.append(
            [
                picture(
                    subject.images(f"{UNKNOWN}{s}").x[i],
                    f"{classes[seen.label[i]]}, {quantity(float(seen.confidence[i]), 'rate')}",
                    f"{s} ({kinds[s]}); {quantity(1 - known_below, 'rate')} of known images score as more unusual",
                )
            ]
        )
    return [Gallery(title="Unknown images scored as normal", groups=groups, caption=f"By {best}.")]
