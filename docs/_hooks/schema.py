"""The schema of ``audit.json``: as a file to validate against, and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.audit.findings import SCHEMA_VERSION
from holdfast.report import audit_schema

from . import markdown

__all__ = ["pages"]

_FILE = "audit.schema.json"
_INTRO = f"""\
# audit.json

Every audit writes its findings to `audit.json`. This is schema version {SCHEMA_VERSION}; the file states the version
it was written in. [The JSON Schema]({_FILE}) is the contract, this page the same in tables.

"""


def pages() -> dict[str, str]:
    """The page and the schema itself, by path."""
    schema = audit_schema()
    objects = {"Audit": schema} | schema.get("$defs", {})
    parts = [_INTRO, *(_object(name, content) for name, content in objects.items())]
    return {
        "reference/audit-json.md": "\n".join(parts),
        f"reference/{_FILE}": json.dumps(schema, indent=2) + "\n",
    }


def _object(name: str, content: Mapping[str, Any]) -> str:
    rows = [
        (f"`{key}`", _type(value), "yes" if key in content.get("required", ()) else "", value.get("description", ""))
        for key, value in content.get("properties", {}).items()
    ]
    listed = markdown.table(("key", "type", "required", "meaning"), rows)
    doc = markdown.prose(content.get("description", ""))
    return f"## {name}\n\n{doc}\n{listed or _type(content)}\n"


def _type(value: Mapping[str, Any]) -> str:
    """A property's type in words, with links to the objects it refers to."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(_type(each) for each in value[several])
    if "enum" in value:
        return "one of " + ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"[{', '.join(_type(each) for each in value['prefixItems'])}]"
        return f"list of {_type(value['items'])}" if value.get("items") else "list"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), Mapping):
        return f"object of {_type(value['additionalProperties'])}"
    return str(value.get("type", "any value"))
