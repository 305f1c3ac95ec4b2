"""What an audit says: metrics with intervals, figures, verdicts. The schema of ``audit.json``, versioned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "SCHEMA_VERSION",
    "VERDICTS",
    "Action",
    "Chart",
    "Decision",
    "Figure",
    "Finding",
    "Gallery",
    "Metric",
    "Picture",
    "Section",
    "Series",
    "Table",
    "Verdict",
]

SCHEMA_VERSION = "1.0"

Verdict = Literal["pass", "attention", "fail", "not assessed"]
VERDICTS: tuple[Verdict, ...] = ("pass", "attention", "fail", "not assessed")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(_Record):
    """A measured number. `low` and `high` bound it with 95 % confidence where that has a meaning."""

    name: str = Field(description="kebab-case, unique within its finding, e.g. 'accuracy' or 'auroc/knn/cifar100'")
    value: float | None = Field(description="None where it could not be computed (the finding says why)")
    low: float | None = None
    high: float | None = None
    n: int | None = Field(default=None, description="samples it rests on")
    unit: Literal["rate", "points", "nats", "images/s", "ms", "count", "bytes", "flops", "radius", "value"] = Field(
        default="value", description="rates and points (differences of rates) are fractions: 0.05 is 5 % or 5 points"
    )
    better: Literal["higher", "lower", "neither"] = "neither"
    title: str = Field(default="", description="for people; the name when empty")
    volatile: bool = Field(default=False, description="wall-clock measurements, which differ from run to run")


class Series(_Record):
    """One line, or one set of bars."""

    name: str
    x: list[float] | list[str]
    y: list[float | None]
    low: list[float] | None = None
    high: list[float] | None = None


class Chart(_Record):
    """A drawing made of series; `diagonal` draws y = x, `level` a horizontal reference line."""

    type: Literal["chart"] = "chart"
    kind: Literal["line", "bar", "histogram", "scatter", "heatmap"]
    title: str
    x_label: str = ""
    y_label: str = ""
    series: list[Series]
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    diagonal: bool = False
    level: float | None = None
    level_label: str = ""
    caption: str = ""


class Table(_Record):
    """Rows of cells, sortable in the report. `percent` names the columns whose numbers are rates in [0, 1]."""

    type: Literal["table"] = "table"
    title: str
    columns: list[str]
    rows: list[list[str | float | int | None]]
    percent: list[str] = []
    caption: str = ""


class Picture(_Record):
    """One image of a gallery, as base64 PNG."""

    png: str
    label: str = ""
    note: str = ""


class Gallery(_Record):
    """Pictures in groups: each inner list is shown together, e.g. clean, adversarial, difference."""

    type: Literal["gallery"] = "gallery"
    title: str
    groups: list[list[Picture]]
    caption: str = ""


Figure = Annotated[Chart | Table | Gallery, Field(discriminator="type")]


class Action(_Record):
    """What to do about a finding; `method` is the id of a holdfast method that exists, `command` runs it."""

    text: str
    method: str | None = None
    command: str | None = None


class Decision(_Record):
    """One metric held against its limits in the policy; a finding's verdict is the worst of its decisions."""

    metric: str
    verdict: Verdict
    reason: str
    better: Literal["higher", "lower"]
    pass_at: float | None = Field(default=None, description="this or better passes; None where nothing is judged")
    fail_beyond: float | None = Field(default=None, description="worse than this fails; `pass_at` where None")
    source: str = Field(default="", description="where the limits come from")


class Finding(_Record):
    """A check's answer."""

    section: str
    check: str
    title: str
    verdict: Verdict
    reason: str = Field(description="one or two sentences: which number against which limit")
    metrics: list[Metric] = []
    decisions: list[Decision] = Field(default=[], description="metric by metric, what led to the verdict")
    figures: list[Figure] = []
    actions: list[Action] = []
    settings: dict[str, Any] = Field(default={}, description="all that the numbers depend on")
    limitations: list[str] = []
    per_sample: list[str] = Field(default=[], description="columns of samples.parquet that this finding made")
    seconds: float = Field(default=0.0, description="wall time; volatile")


class Section(_Record):
    """One axis of safety; its verdict is the worst of its findings' (not assessed when there is none)."""

    id: str
    title: str
    question: str
    verdict: Verdict
    reason: str = ""
