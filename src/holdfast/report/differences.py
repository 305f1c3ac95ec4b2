"""Whether two audits differ in a metric by more than chance, by the sharpest test that their records allow.

- Rates over the same images, found again in both tables of samples: McNemar's exact test, and Newcombe's interval of
  paired differences (1998b).
- Rates otherwise: Newcombe's interval of the difference of two independent rates (1998a), which must exclude zero.
- Other numbers with intervals: the intervals must be disjoint, which is stricter than a test at 5 %.
- Counts of the model itself (parameters, bytes), which rest on no sample, are exact: any difference is real.
- Wall-clock measurements and numbers without interval are not tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from holdfast import stats
from holdfast.audit.findings import Metric
from holdfast.audit.record import Audit
from holdfast.errors import UserError

__all__ = ["LEVEL", "Difference", "Measured", "Outcome", "Outcomes", "difference", "outcomes_of"]

LEVEL = 0.05

Test = Literal["McNemar, paired", "two rates", "intervals", "exact", "none"]
Outcome = Literal["better", "worse", "changed", "no clear difference", "equal", "not tested"]

# Image by image, by split and column: the rows' indices, and whether the column's statement holds of them.
Outcomes = Mapping[tuple[str, str], tuple[NDArray[np.int64], NDArray[np.bool_]]]

_EXACT = ("count", "bytes", "flops", "radius")
_RIGHT = "prediction is right"
_CLOSE = 1e-9


class Difference(BaseModel):
    """An audit's value less the first audit's, and what the test says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(description="the audit that is held against the first")
    value: float | None
    low: float | None = Field(default=None, description="of the 95 % interval of the difference")
    high: float | None = None
    p: float | None = Field(default=None, description="two-sided")
    test: Test
    outcome: Outcome


@dataclass(frozen=True)
class Measured:
    """A metric with the check it is from and the outcomes of its audit's samples."""

    metric: Metric
    check: str
    outcomes: Outcomes
    data: str


def difference(name: str, first: Measured, second: Measured) -> Difference:
    """Hold the metric of audit `name` against the first audit's."""
    a, b = first.metric, second.metric
    if a.value is None or b.value is None:
        return Difference(name=name, value=None, test="none", outcome="not tested")
    delta = b.value - a.value
    if a.volatile or b.volatile:
        return Difference(name=name, value=delta, test="none", outcome="not tested")
    pair = _paired(first, second)
    if pair is not None:
        p = stats.mcnemar(*pair)
        low, high = stats.newcombe_paired(*pair)
        outcome = _outcome(delta, b, real=p < LEVEL)
        return Difference(name=name, value=delta, low=low, high=high, p=p, test="McNemar, paired", outcome=outcome)
    counts = _counts(a), _counts(b)
    if counts[0] is not None and counts[1] is not None:
        low, high = stats.newcombe(*counts[1], *counts[0])
        outcome = _outcome(delta, b, real=low > 0 or high < 0)
        return Difference(name=name, value=delta, low=low, high=high, test="two rates", outcome=outcome)
    if a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        outcome = _outcome(delta, b, real=a.high < b.low or b.high < a.low)
        return Difference(name=name, value=delta, test="intervals", outcome=outcome)
    if a.unit in _EXACT and a.n is None and b.n is None:
        return Difference(name=name, value=delta, test="exact", outcome=_outcome(delta, b, real=delta != 0))
    return Difference(name=name, value=delta, test="none", outcome="not tested" if delta else "equal")


def outcomes_of(audit: Audit) -> Outcomes:
    """What an audit's table of samples says that is true or false; empty when it was read without the table."""
    try:
        samples = audit.samples
    except UserError:
        return {}
    if not {"split", "index", "label", "prediction"} <= set(samples.column_names):
        return {}
    index = samples["index"].to_numpy()
    split = np.asarray(samples["split"].to_pylist())
    statements = {_RIGHT: samples["label"].to_numpy() == samples["prediction"].to_numpy()}
    given = {_RIGHT: np.ones(len(index), dtype=bool)}
    for name in samples.column_names:
        if pa.types.is_boolean(samples.schema.field(name).type):
            statements[name] = samples[name].fill_null(False).to_numpy()
            given[name] = samples[name].is_valid().to_numpy()
    return {
        (part, name): (index[which], holds[which])
        for name, holds in statements.items()
        for part in np.unique(split).tolist()
        if (which := given[name] & (split == part)).any()
    }


def _paired(first: Measured, second: Measured) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Per image, whether the event that the rate counts happened in the second and in the first audit.

    A column belongs to a rate when its mean is the rate, over as many images, in both audits: the correspondence is
    checked by arithmetic, not by name. The check's own columns go first.
    """
    if first.data != second.data or first.metric.unit != "rate" or first.metric.n != second.metric.n:
        return None
    for key in sorted(first.outcomes, key=lambda key: not key[1].startswith(f"{first.check}.")):
        if key not in second.outcomes or not (key[1].startswith(f"{first.check}.") or key[1] == _RIGHT):
            continue
        (index_a, a), (index_b, b) = first.outcomes[key], second.outcomes[key]
        if not np.array_equal(index_a, index_b):
            continue
        for event_a, event_b in ((a, b), (~a, ~b)):
            if _is_rate(first.metric, event_a) and _is_rate(second.metric, event_b):
                return event_b, event_a
    return None


def _is_rate(metric: Metric, event: NDArray[Any]) -> bool:
    return metric.value is not None and metric.n == len(event) and abs(float(event.mean()) - metric.value) < _CLOSE


def _counts(metric: Metric) -> tuple[int, int] | None:
    """Successes and trials behind a rate; None for what is no share of counted cases."""
    if metric.unit != "rate" or metric.value is None or not metric.n or not 0 <= metric.value <= 1:
        return None
    k = round(metric.value * metric.n)
    low, high = stats.wilson(k, metric.n)
    if metric.low is None or metric.high is None or abs(k / metric.n - metric.value) > _CLOSE:
        return None
    return (k, metric.n) if abs(low - metric.low) < 1e-6 and abs(high - metric.high) < 1e-6 else None


def _outcome(delta: float, metric: Metric, *, real: bool) -> Outcome:
    if delta == 0:
        return "equal"
    if not real:
        return "no clear difference"
    if metric.better == "neither":
        return "changed"
    return "better" if (delta > 0) == (metric.better == "higher") else "worse"
