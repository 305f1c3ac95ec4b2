"""The certificate of an unlearning as one self-contained HTML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from holdfast.audit.findings import Chart, Series
from holdfast.report.charts import draw
from holdfast.report.numbers import whole
from holdfast.report.pages import write_page
from holdfast.report.tables import TableView, table_view
from holdfast.unlearning import Certificate

__all__ = ["write_certificate"]

_MEASURES = {
    "ua": "Errors on the images to forget",
    "ra": "Right on the images to retain",
    "ta": "Right on test images",
    "mia_nonmember_rate": "Taken for unseen by a membership attack",
}


def write_certificate(certificate: Certificate, out: str | os.PathLike[str]) -> Path:
    """Write the page of a certificate.

    Args:
        certificate: its texts are treated as untrusted.
        out: a file ending in ``.html``, or a folder, in which it is named ``certificate.html``.

    Returns:
        The file written.

    Raises:
        UserError: the file cannot be written.
    """
    out = Path(out)
    path = out if out.suffix == ".html" else out / "certificate.html"
    return write_page(path, "certificate.html.j2", view=_View(certificate))


@dataclass(frozen=True)
class _View:
    """What the page shows."""

    certificate: Certificate

    @property
    def verdict(self) -> str:
        """The colour of the statement; never green, for tests that find nothing do not prove that nothing is there."""
        return "attention" if self.certificate.traces else "not assessed"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was asked and what was done."""
        c = self.certificate
        classes = ", ".join(f"{name} ({whole(count)})" for name, count in c.classes.items())
        return [
            ("Request", c.request),
            ("Images to forget", f"{whole(c.count)} of {whole(c.total)}"),
            ("Of the classes", classes),
            ("Positions, digest", c.digest),
            ("Training images", f"{c.data[0]} ({c.data[1]})"),
            ("Method", c.method),
            ("Seed", str(c.seed)),
            ("Weights before", c.original),
            ("Weights after", c.unlearned),
            ("Seconds", f"{c.seconds:.1f}{self._cost}"),
            *([("Retrained model", c.reference_from)] if c.reference is not None else []),
            ("Made", c.made or "–"),
        ]

    @property
    def _cost(self) -> str:
        """The time as a share of that of retraining."""
        c = self.certificate
        return f", {c.seconds / c.reference_seconds:.1%} of retraining" if c.reference_seconds else ""

    @property
    def measures(self) -> TableView:
        """The four measures of each model."""
        c = self.certificate
        models = {"before": c.before, "after": c.after, "retrained": c.reference}
        models = {name: known for name, known in models.items() if known is not None}
        rows = [[title, *(getattr(known, name) for known in models.values())] for name, title in _MEASURES.items()]
        return table_view("What the models know", ["measure", *models], rows, tuple(models))

    @property
    def distances(self) -> list[tuple[str, str]]:
        """How far the models are from the retrained one."""
        c = self.certificate
        if c.gap is None or c.gap_before is None or c.js is None or c.kl is None:
            return []
        return [
            ("Mean gap of the four measures", f"{c.gap:.2f} points ({c.gap_before:.2f} before)"),
            ("Jensen-Shannon divergence on the images to forget", f"{c.js:.4f} nats"),
            ("Kullback-Leibler divergence there", f"{c.kl:.4f} nats"),
        ]

    @property
    def charts(self) -> list[tuple[str, Markup]]:
        """The losses of forgotten and unseen images, before and after."""
        found = []
        for name, losses in (("before", self.certificate.losses_before), ("after", self.certificate.losses_after)):
            if losses is None:
                continue
            series = [
                Series(name="to forget", x=list(losses.at), y=list(losses.forgotten_below)),
                Series(name="unseen", x=list(losses.at), y=list(losses.unseen_below)),
            ]
            chart = Chart(
                kind="line",
                title=f"Losses {name}",
                x_label="cross-entropy",
                y_label="share of images below",
                series=series,
                log_x=True,
                y_range=(0, 1),
            )
            found.append((chart.title, draw(chart).svg))
        return found

    @property
    def tests(self) -> TableView | None:
        """The two-sample test and the membership attack, before and after."""
        c = self.certificate
        rows: list[list[str | float | int | None]] = []
        for name, losses in (("before", c.losses_before), ("after", c.losses_after)):
            if losses is not None:
                leak = losses.membership
                low, high = leak.auc_interval
                tpr = leak.tpr.get(0.01)
                rows.append([name, losses.statistic, losses.p, round(leak.auc, 4), f"{low:.3f} to {high:.3f}", tpr])
        if not rows:
            return None
        columns = [
            "model",
            "distance of the losses (KS)",
            "p",
            "AUC of membership",
            "95 % interval",
            "found at 1 % FPR",
        ]
        return table_view("Forgotten beside unseen images", columns, rows, ("found at 1 % FPR",))
