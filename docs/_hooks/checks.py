"""A page per check of the audit: what it asks, how it measures, and the limits that decide; and the index of all."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.audit.check import Check, all_checks
from holdfast.audit.policy import Rule, load_policy
from holdfast.audit.profiles import PROFILES
from holdfast.audit.sections import AXES, Axis
from holdfast.cards import argument_docs  # one reader of `Args:` for methods and checks alike

from . import markdown

__all__ = ["nav", "pages"]

_INDEX = """\
# Checks

An audit is a list of questions in sections. Each check measures; the [policy](../policy.md) decides.
Run some of them alone with `--only`, which takes the ids of checks and of sections:

```bash
holdfast audit --model zoo:digits-convnet --data digits \\
    --only sanity --only accuracy
```
"""
_PROFILES = """\
## Profiles

A profile sets how much is measured: sample counts and budgets, for all checks in one place.
More images give narrower intervals; more steps, restarts and queries give stronger attacks.

"""
_LIMITS = """\
The verdict goes by the unfavourable end of the 95 % interval, where the metric has one.
A metric without limits is reported and not judged. Set your own in a [policy](../policy.md).

"""


def pages() -> dict[str, str]:
    """The index and the check pages, by path."""
    checks = all_checks()
    rules = load_policy(extra={check.id: check.limits for check in checks}).rules
    made = {f"checks/{check.id}.md": _page(check, rules.get(check.id, {})) for check in checks}
    return {"checks/index.md": _index(checks)} | made


def nav() -> list[Any]:
    """The navigation below `Checks`: the index, then sections with their checks."""
    below = [
        {axis.title: [{c.title: f"checks/{c.id}.md"} for c in members]}
        for axis in AXES
        if (members := _of(axis, all_checks()))
    ]
    return ["checks/index.md", *below]


def _of(axis: Axis, checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.section == axis.id]


def _index(checks: Sequence[Check]) -> str:
    page = [_INDEX]
    for axis in AXES:
        rows = [(f"[`{c.id}`]({c.id}.md)", c.question) for c in _of(axis, checks)]
        listed = markdown.table(("check", "question"), rows)
        page += [
            f"## {axis.title}",
            f"{axis.question} Section `{axis.id}`.\n",
            listed or f"Not assessed. {axis.missing}\n",
        ]
    names = [field.name for field in dataclasses.fields(next(iter(PROFILES.values()))) if field.name != "name"]
    counts = [(name.replace("_", " "), *(_count(getattr(p, name)) for p in PROFILES.values())) for name in names]
    return "\n".join([*page, _PROFILES, markdown.table(("", *PROFILES), counts)])


def _count(value: Any) -> str:
    match value:
        case None:
            return "all"
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _page(check: Check, rules: Mapping[str, Rule]) -> str:
    axis = next(axis for axis in AXES if axis.id == check.section)
    module = inspect.getdoc(sys.modules[type(check).__module__]) or ""
    doc = inspect.cleandoc(type(check).__doc__ or "")
    limits = markdown.table(
        ("metric", "passes", "fails", "where the limits come from"),
        ((f"`{name}`", _passes(rule), _fails(rule), _source(rule)) for name, rule in rules.items()),
    )
    described = argument_docs(doc)
    settings = markdown.table(
        ("setting", "value", "meaning"),
        ((f"`{k}`", f"`{markdown.literal(v)}`", described.get(k, "")) for k, v in check.settings.items()),
    )
    parts = [
        f"# {check.title}",
        f"`{check.id}`, in the section {axis.title} (`{axis.id}`).",
        f"**{check.question}**",
        "## What it measures",
        markdown.prose(module),
        *([markdown.prose(doc)] if doc and doc not in module else []),
        "## Limits",
        _LIMITS + limits if limits else "The default policy sets no limits: the numbers are reported and not judged.\n",
        *(["## Settings", settings] if settings else []),
        "## Run it",
        *(["Its section has the same name, so all checks of the section run:"] if check.id == check.section else []),
        markdown.fence("bash", f"holdfast audit --model zoo:digits-convnet --data digits --only {check.id}"),
    ]
    return "\n\n".join(parts)


def _passes(rule: Rule) -> str:
    if rule.pass_at is None:
        return "no limit"
    return f"{'at most' if rule.better == 'lower' else 'at least'} {rule.pass_at:g}"


def _fails(rule: Rule) -> str:
    if rule.pass_at is None:
        return "never"
    if rule.severity == "minor":
        return "never: a minor metric is for attention at worst"
    last = rule.pass_at if rule.fail_beyond is None else rule.fail_beyond
    return f"{'above' if rule.better == 'lower' else 'below'} {last:g}"


def _source(rule: Rule) -> str:
    return rule.source + (" Judged only when the policy expects an adversary." if rule.adversary else "")
