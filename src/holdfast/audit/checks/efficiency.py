"""What the model costs to run: parameters, operations, bytes, time."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.models.inspection import layers, measure
from holdfast.models.timing import latency

__all__ = ["Efficiency"]


@dataclass(frozen=True, kw_only=True)
class Efficiency(Check):
    """Size and operations by counting, latency and throughput by the clock.

    Args:
        batch: images per pass when throughput is measured.
    """

    id = "efficiency"
    section = "efficiency"
    title = "Cost"
    question = "What does it cost to run?"
    needs = ("weights",)

    batch: int = 128

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        cost = measure(subject.model, subject.data.shape, subject.run)
        times = latency(
            subject.model, subject.data.shape, subject.run, repeats=subject.profile.latency_repeats, batch=self.batch
        )
        largest = sorted((layer for layer in layers(subject.model) if layer.parameters), key=lambda x: -x.parameters)
        return Answer(
            metrics=[
                Metric(name="parameters", value=cost.parameters, unit="count", better="lower", title="Parameters"),
                Metric(
                    name="zero-parameters",
                    value=1 - cost.nonzero / max(cost.parameters, 1),
                    unit="rate",
                    title="Parameters that are zero",
                ),
                Metric(name="size", value=cost.size_bytes, unit="bytes", better="lower", title="Size in memory"),
                Metric(
                    name="flops",
                    value=cost.flops,
                    unit="flops",
                    better="lower",
                    title="Operations for one image",
                ),
                Metric(
                    name="latency-p50",
                    value=times.median_ms,
                    n=len(times.samples_ms),
                    unit="ms",
                    better="lower",
                    title="Time for one image, median",
                    volatile=True,
                ),
                Metric(
                    name="latency-p95",
                    value=times.p95_ms,
                    n=len(times.samples_ms),
                    unit="ms",
                    better="lower",
                    title="Time for one image, 95th percentile",
                    volatile=True,
                ),
                Metric(
                    name="throughput",
                    value=times.throughput,
                    n=len(times.bulk_ms),
                    unit="images/s",
                    better="higher",
                    title=f"Images per second in batches of {self.batch}",
                    volatile=True,
                ),
            ],
            figures=[
                Table(
                    title="Largest layers",
                    columns=["layer", "kind", "parameters", "share"],
                    rows=[
                        [layer.name, layer.kind, layer.parameters, layer.parameters / max(cost.parameters, 1)]
                        for layer in largest[:10]
                    ],
                    percent=["share"],
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Prune the smallest weights over all layers and fine-tune; audit the pruned model again, "
                        "since compression hurts rare classes first.",
                        method="global-magnitude",
                        command="holdfast show global-magnitude",
                    )
                )
            ],
            settings={"device": times.device, "threads": times.threads, "shape": list(subject.data.shape)},
            limitations=[
                "Times are of this machine, while it did this audit.",
                *(["PyTorch's counter sees no operations in this model."] if cost.flops is None else []),
            ],
        )
