"""The ledger: one line of JSON per proof that was run, held or not; nothing is ever taken out.

The repository's own ledger is ``proofs/ledger.jsonl``; it travels inside the installed package.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast.errors import UserError
from holdfast.files import write_text

__all__ = ["Entry", "append", "evidence_page", "latest", "ledger_path", "read"]


class Entry(BaseModel):
    """The evidence of one proof."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str
    proof: str
    claim: str
    source: str
    scale: Literal["smoke", "cpu", "gpu"]
    metric: str
    value: float
    low: float | None
    high: float | None
    baseline: float | None
    baseline_name: str = ""
    effect: float | None
    threshold: float
    better: Literal["higher", "lower"]
    passed: bool
    n: int | None = None
    seeds: list[int]
    values: list[float]
    details: dict[str, Any] = {}
    note: str = ""
    commit: str
    date: str
    seconds: float
    machine: str
    versions: dict[str, str]

    @property
    def sentence(self) -> str:
        """The evidence in one line."""
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        baseline = "" if self.baseline is None else f"; {self.baseline_name or 'baseline'} {self.baseline:.4g}"
        sign = "at least" if self.better == "higher" else "at most"
        return (
            f"{self.metric} {self.value:.4g}{interval}, needed {sign} {self.threshold:.4g}{baseline} "
            f"({self.scale}, seeds {', '.join(map(str, self.seeds))}, {self.seconds:.0f} s)"
        )


def ledger_path() -> Path:
    """The ledger of this source tree, or the one inside the installed package."""
    here = Path(__file__).resolve()
    tree = here.parents[3] / "proofs" / "ledger.jsonl"
    return tree if (here.parents[3] / "pyproject.toml").is_file() else here.with_name("ledger.jsonl")


def read(path: Path | None = None) -> list[Entry]:
    """All entries, oldest first; an absent ledger is empty.

    Raises:
        UserError: a line is not an entry.
    """
    path = path or ledger_path()
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise UserError(f"{path}, line {number}: {where} is not as it should be ({problem['msg']}).") from None
    return entries


def latest(path: Path | None = None) -> list[Entry]:
    """The newest entry of each proof and scale, ordered by method, proof and scale."""
    newest = {(e.method, e.proof, e.scale): e for e in read(path)}
    return [newest[key] for key in sorted(newest)]


def append(entries: Sequence[Entry], path: Path | None = None) -> None:
    """Add entries at the end; the file is replaced whole, so a kill never leaves half a line."""
    path = path or ledger_path()
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) for entry in entries]
    write_text(path, before + "".join(f"{line}\n" for line in lines))


def evidence_page(entries: Sequence[Entry]) -> str:
    """The ledger as a page of Markdown: what held, what did not, and by how much."""
    held = sum(e.passed for e in entries)
    page = [
        "# Evidence",
        "",
        "Claims of papers as experiments that anyone can rerun: `holdfast prove ID`. "
        "Methods not named here have none on record. "
        "This page is generated from `proofs/ledger.jsonl`; thresholds stand in the source of each proof; "
        "where an experiment was changed after a run, its note says so. "
        f"The newest run of each proof at each scale: {held} of {len(entries)} held.",
        "",
        "| method | claim | scale | metric | value | baseline | needed | held | seeds | seconds | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for e in entries:
        interval = "" if e.low is None else f" ({e.low:.4g} to {e.high:.4g})"
        baseline = "" if e.baseline is None else f"{e.baseline:.4g} {e.baseline_name}".strip()
        sign = "≥" if e.better == "higher" else "≤"
        row = (
            f"[{e.method}](methods/{e.method}.md)", e.claim, e.scale, e.metric, f"{e.value:.4g}{interval}", baseline,
            f"{sign} {e.threshold:.4g}", "yes" if e.passed else "**no**", len(e.seeds), f"{e.seconds:.0f}",
            e.commit[:9],
        )  # fmt: skip
        page.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    notes = [e for e in entries if e.note]
    if notes:
        page += ["", "## Notes", ""]
        page += [f"- **{e.method}**, {e.proof} ({e.scale}): {e.note}" for e in notes]
    return "\n".join(page) + "\n"
