"""The JSON Schema of ``audit.json``, for readers that are not written in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from holdfast.audit.findings import SCHEMA_VERSION
from holdfast.audit.record import json_schema
from holdfast.files import write_json

__all__ = ["audit_schema", "write_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def audit_schema() -> dict[str, Any]:
    """The schema, naming its dialect and the version of ``audit.json`` that it describes."""
    return {"$schema": _DIALECT, "$comment": f"audit.json of holdfast, version {SCHEMA_VERSION}", **json_schema()}


def write_schema(out: str | os.PathLike[str]) -> Path:
    """Write the schema to the file `out` and return it.

    Raises:
        UserError: the file cannot be written.
    """
    out = Path(out)
    write_json(out, audit_schema())
    return out
