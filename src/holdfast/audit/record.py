"""`Audit`: everything an audit found, as it is written to ``audit.json``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from holdfast.audit.findings import SCHEMA_VERSION, Finding, Section, Verdict
from holdfast.audit.policy import Policy
from holdfast.audit.store import digest
from holdfast.errors import UserError, one_of
from holdfast.files import atomic_path, make_dir, read_json, write_json

__all__ = ["Audit", "DataInfo", "Environment", "ModelInfo", "SamplesInfo", "json_schema"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelInfo(_Record):
    """The model that was audited."""

    name: str
    architecture: str = Field(description="the class, or the name of the reference architecture")
    parameters: int | None = Field(description="None of a model that only answers queries")
    fingerprint: str = Field(description="hash of weights, structure and the user's own code")
    weights: str = Field(description="hash of the weights alone; of a deployed model, of its address and metadata")


class DataInfo(_Record):
    """The data it was audited on."""

    name: str
    sizes: dict[str, int] = Field(description="images by split, as given")
    used: dict[str, int] = Field(description="images by split, as used")
    classes: list[str]
    shape: list[int] = Field(description="channels, height, width")
    fingerprint: str


class Environment(_Record):
    """What it was audited with."""

    holdfast: str
    code: str = Field(description="hash of holdfast's source")
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    threads: int
    seed: int


class SamplesInfo(_Record):
    """The table of ``samples.parquet``."""

    rows: int
    columns: list[str]
    sha256: str = Field(description="of its content")


class Audit(_Record):
    """Everything an audit found.

    `created`, `seconds` and `command`, the findings' `seconds`, and metrics marked `volatile` differ from run to run;
    all else is determined by model, data, policy, profile, environment and seed, and `fingerprint` is its hash.
    """

    schema_version: str = SCHEMA_VERSION
    name: str
    created: str = Field(description="UTC, ISO 8601; volatile")
    seconds: float = Field(description="wall time of this process; volatile")
    command: str = Field(default="", description="what reproduces it; volatile")
    model: ModelInfo
    data: DataInfo
    profile: dict[str, Any]
    policy: Policy
    environment: Environment
    sections: list[Section]
    findings: list[Finding]
    samples_info: SamplesInfo
    fingerprint: str = ""

    _samples: pa.Table | None = PrivateAttr(default=None)

    @property
    def samples(self) -> pa.Table:
        """One row per image: split, index, label, prediction, confidence, and what the checks say of it."""
        if self._samples is None:
            raise UserError("this audit was read without its samples.parquet.")
        return self._samples

    @property
    def failed(self) -> list[Finding]:
        """The findings that fail."""
        return [finding for finding in self.findings if finding.verdict == "fail"]

    def section(self, id: str) -> Section:
        """A section by id."""
        for section in self.sections:
            if section.id == id:
                return section
        raise one_of("section", id, (s.id for s in self.sections))

    def verdict(self, section: str) -> Verdict:
        """The verdict of a section."""
        return self.section(section).verdict

    def finding(self, check: str) -> Finding:
        """The finding of a check."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise one_of("check", check, (f.check for f in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")

    def sealed(self, samples: pa.Table) -> Audit:
        """This audit with its table of samples, and the fingerprint of both."""
        info = SamplesInfo(rows=samples.num_rows, columns=samples.column_names, sha256=_table_hash(samples))
        audit = self.model_copy(update={"samples_info": info})
        audit = audit.model_copy(update={"fingerprint": digest(_lasting(audit.to_json()))})
        audit._samples = samples
        return audit

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Write ``audit.json`` and ``samples.parquet`` into the folder `out`, each whole or not at all."""
        out = make_dir(out)
        if self._samples is not None:
            with atomic_path(out / "samples.parquet") as path:
                pq.write_table(self._samples, path)
        write_json(out / "audit.json", self.to_json())
        return out / "audit.json"

    @classmethod
    def load(cls, out: str | os.PathLike[str]) -> Audit:
        """Read an audit from its folder, or from its ``audit.json``.

        Raises:
            UserError: there is none, or it is of another version or damaged.
        """
        path = Path(out)
        path = path / "audit.json" if path.is_dir() or path.suffix != ".json" else path
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if not isinstance(version, str) or version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise UserError(f"{path} is not an audit of schema {SCHEMA_VERSION}, got {version!r}.")
        try:
            audit = cls.model_validate(content)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise UserError(f"{path} is not a whole audit: {place}: {problem['msg']}.") from None
        table = path.with_name("samples.parquet")
        if table.is_file():
            try:
                audit._samples = pq.read_table(table)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{table} cannot be read: {error}.") from None
        return audit


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``audit.json``."""
    return Audit.model_json_schema(mode="serialization")


def _lasting(content: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from run to run."""
    kept = {k: v for k, v in content.items() if k not in ("created", "seconds", "command", "fingerprint")}
    kept["findings"], fickle = [], set()
    for finding in content["findings"]:
        volatile = {m["name"] for m in finding["metrics"] if m["volatile"]}
        judged = {d["metric"] for d in finding["decisions"] if d["verdict"] != "not assessed"}
        finding = {k: v for k, v in finding.items() if k != "seconds"}
        finding["metrics"] = [
            # a time limit cuts the number of measurements on a busy machine
            {k: v for k, v in m.items() if not m["volatile"] or k not in ("value", "low", "high", "n")}
            for m in finding["metrics"]
        ]
        finding["decisions"] = [d for d in finding["decisions"] if d["metric"] not in volatile]
        if volatile & judged:  # a limit on wall time makes the verdict as volatile as the time
            fickle.add(finding["section"])
            finding = {k: v for k, v in finding.items() if k not in ("verdict", "reason", "actions")}
        kept["findings"].append(finding)
    kept["sections"] = [
        {k: v for k, v in section.items() if section["id"] not in fickle or k not in ("verdict", "reason")}
        for section in content["sections"]
    ]
    return kept


def _table_hash(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
