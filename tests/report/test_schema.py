import json

import pytest
from sample_audit import make_audit

from holdfast.audit.findings import SCHEMA_VERSION
from holdfast.report import audit_schema, write_schema


def problems(value, schema, root, at="audit"):
    """What a value has against a schema: references, types, unions, closed objects, required keys, enumerations."""
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            tried = [problems(value, option, root, at) for option in schema[union]]
            return [] if any(not t for t in tried) else [f"{at}: none of {len(tried)} options"]
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    kind = schema.get("type")
    right = isinstance(value, int | float) if kind == "number" else kind is None or isinstance(value, types[kind])
    if not right or value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return [f"{at}: {value!r}"]
    found = []
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{at}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            if key in known:
                found += problems(inner, known[key], root, f"{at}.{key}")
            elif rest is False:
                found.append(f"{at}: knows no {key}")
            elif isinstance(rest, dict):
                found += problems(inner, rest, root, f"{at}.{key}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, inner in enumerate(value):
            found += problems(inner, schema["items"], root, f"{at}[{i}]")
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return json.loads(write_schema(tmp_path_factory.mktemp("schema") / "audit.schema.json").read_text())


def test_a_written_audit_follows_the_written_schema(written, tmp_path):
    content = json.loads(make_audit().save(tmp_path).read_text())
    assert problems(content, written, written) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a.pop("findings"),
        lambda a: a["findings"][0].update(verdict="fine"),
        lambda a: a["findings"][0]["metrics"][0].update(value="high"),
        lambda a: a["sections"][0].update(colour="green"),
        lambda a: a.update(seconds=None),
    ],
)
def test_a_damaged_audit_does_not(written, sample, damage):
    content = sample.to_json()
    damage(content)
    assert problems(content, written, written)


def test_the_schema_names_its_version_and_dialect(written):
    assert SCHEMA_VERSION in written["$comment"]
    assert written["$schema"].startswith("https://json-schema.org/")
    assert written == audit_schema()
