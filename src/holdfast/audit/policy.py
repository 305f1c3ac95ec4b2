"""The policy: the limits that metrics are held against, and the verdict that follows.

The default stands in ``policy.yaml`` beside this file, each limit with its source; a user's file overrides what it
names. A verdict goes by the unfavourable end of the metric's interval: what passes does so with 95 % confidence, what
fails does so wholly, and what straddles a limit is for attention.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from holdfast.audit.findings import Decision, Metric
from holdfast.audit.numbers import bound, interval, quantity
from holdfast.errors import UserError, did_you_mean
from holdfast.specs import parse_value

__all__ = ["Policy", "Rule", "Threat", "decide", "load_policy"]

_SLACK = 1e-12  # rounding must not decide
DEFAULT = Path(__file__).with_name("policy.yaml")


def _fraction(value: Any) -> Any:
    return parse_value(value) if isinstance(value, str) else value


Number = Annotated[float, pydantic.BeforeValidator(_fraction)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Rule(_Strict):
    """The limits of one metric.

    With neither limit, the metric is reported and not judged.
    """

    better: Literal["higher", "lower"]
    pass_at: Number | None = Field(
        default=None, validation_alias=AliasChoices("pass", "pass_at"), description="this or better passes"
    )
    fail_beyond: Number | None = Field(
        default=None,
        validation_alias=AliasChoices("fail", "fail_beyond"),
        description="worse than this fails; the same as `pass_at` when absent",
    )
    severity: Literal["major", "minor"] = Field(default="major", description="minor: never worse than attention")
    source: str = Field(default="", description="where the limits come from")
    adversary: bool = Field(default=False, description="judged only when an adversary is expected")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Rule:
        if self.fail_beyond is not None and self.pass_at is None:
            raise ValueError("'fail' needs 'pass' beside it")
        if self.fail_beyond is not None and self.pass_at is not None:
            sign = 1 if self.better == "lower" else -1
            if sign * self.fail_beyond < sign * self.pass_at:
                side = "below" if self.better == "lower" else "above"
                raise ValueError(
                    f"'fail' ({self.fail_beyond:g}) must not be {side} 'pass' ({self.pass_at:g}), "
                    f"since {self.better} is better"
                )
        return self


class Threat(_Strict):
    """Whom the system must withstand."""

    adversary: bool = True
    eps: Annotated[Number, Field(gt=0, le=1)] = 8 / 255
    eps_l2: Annotated[Number, Field(gt=0)] = 0.5


class Policy(_Strict):
    """Limits by check and metric."""

    version: str
    dated: str
    name: str
    reason: str = Field(default="", description="why limits differ from the default")
    threat: Threat = Threat()
    rules: dict[str, dict[str, Rule]] = {}

    def rule(self, check: str, metric: str) -> Rule | None:
        """The rule of a metric, or ``None`` when the policy does not know it."""
        return self.rules.get(check, {}).get(metric)


def load_policy(
    policy: str | os.PathLike[str] | Mapping[str, Any] | Policy | None = None,
    extra: Mapping[str, Mapping[str, Rule]] | None = None,
) -> Policy:
    """The default policy with the given one's changes.

    Args:
        policy: a YAML file, its content as a mapping, a whole policy (taken as it is), or ``None`` for the default.
        extra: rules that checks bring along, by check and metric; the policy's own take precedence.

    Raises:
        UserError: the file cannot be read, or a key or value is not accepted; the message names its place.
    """
    if isinstance(policy, Policy):
        return policy
    base = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    for check, rules in (extra or {}).items():
        for metric, rule in rules.items():
            base["rules"].setdefault(check, {}).setdefault(metric, rule.model_dump())
    if policy is None:
        return _validated("the default policy", base)
    label, changes = (str(policy), _read(Path(policy))) if isinstance(policy, str | os.PathLike) else ("policy", policy)
    if not isinstance(changes, Mapping):
        raise UserError(f"{label}: a policy is a mapping with keys such as 'rules', got {type(changes).__name__}.")
    return _validated(label, _merged(label, base, changes))


def decide(metric: Metric, rule: Rule, *, adversary: bool = True) -> Decision:
    """Hold a metric against its rule.

    Args:
        metric: its `low` and `high` are used where it has them, else its value.
        rule: the limits.
        adversary: whether one is expected; without, rules about adversaries do not judge.
    """

    def decision(verdict: Literal["pass", "attention", "fail", "not assessed"], reason: str) -> Decision:
        return Decision(
            metric=metric.name,
            verdict=verdict,
            reason=reason,
            better=rule.better,
            pass_at=rule.pass_at,
            fail_beyond=rule.fail_beyond,
            source=rule.source,
        )

    name = metric.title or metric.name.replace("-", " ")
    if metric.value is None:
        return decision("not assessed", f"{name}: it could not be computed.")
    bounds = interval(metric)
    measured = f"{name}: {quantity(metric.value, metric.unit)}{f' ({bounds})' if bounds else ''}"
    if rule.pass_at is None:
        return decision("not assessed", f"{measured}; the policy sets no limit.")
    if rule.adversary and not adversary:
        return decision("not assessed", f"{measured}; reported only, since the policy expects no adversary.")

    # From here on, lower is better.
    sign = 1 if rule.better == "lower" else -1
    ends = [sign * e for e in (metric.low, metric.high) if e is not None] or [sign * metric.value]
    good, value, bad = min(ends), sign * metric.value, max(ends)
    to_pass = sign * rule.pass_at + _SLACK
    to_fail = to_pass if rule.fail_beyond is None else sign * rule.fail_beyond + _SLACK
    limit = bound(rule.pass_at, metric.unit)
    last = limit if rule.fail_beyond is None else bound(rule.fail_beyond, metric.unit)
    beyond = "above" if rule.better == "lower" else "below"
    if bad <= to_pass:
        return decision("pass", f"{measured}, within the limit of {limit}.")
    if good > to_fail:
        if rule.severity == "minor":
            return decision("attention", f"{measured}, {beyond} {last}, which the policy counts as minor.")
        return decision("fail", f"{measured}, {beyond} {last}.")
    if value <= to_pass:
        return decision("attention", f"{measured}, within the limit of {limit}, but the interval is not.")
    if value > to_fail:
        return decision("attention", f"{measured}, {beyond} {last}, but not the whole interval.")
    if bad > to_fail:
        return decision(
            "attention", f"{measured}, {beyond} the limit of {limit}, and the interval reaches {beyond} {last}."
        )
    return decision("attention", f"{measured}, {beyond} the limit of {limit}, though not {beyond} {last}.")


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such policy file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML: {problem}.") from None


def _merged(label: str, base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes laid over the base; a key the base does not have is a misspelling, not a new limit."""
    _known(label, "", changes, Policy.model_fields)
    merged = {**base, **{k: v for k, v in changes.items() if k not in ("rules", "threat")}}
    threat = _mapping(label, "threat", changes.get("threat"))
    _known(label, "threat.", threat, Threat.model_fields)
    merged["threat"] = {**base["threat"], **threat}
    merged["rules"] = {check: dict(rules) for check, rules in base["rules"].items()}
    rules = _mapping(label, "rules", changes.get("rules"))
    _known(label, "rules.", rules, base["rules"])
    fields = [_key(name) for name in Rule.model_fields]
    for check, metrics in rules.items():
        metrics = _mapping(label, f"rules.{check}", metrics)
        _known(label, f"rules.{check}.", metrics, base["rules"][check])
        for metric, rule in metrics.items():
            rule = _mapping(label, f"rules.{check}.{metric}", rule)
            _known(label, f"rules.{check}.{metric}.", rule, fields)
            before = {_key(k): v for k, v in base["rules"][check][metric].items()}
            merged["rules"][check][metric] = {**before, **rule}
    return merged


def _key(field: str) -> str:
    """A rule's field as it is written in a file."""
    return {"pass_at": "pass", "fail_beyond": "fail"}.get(field, field)


def _mapping(label: str, place: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{label}: {place} must be a mapping, got {value!r}.")
    return value


def _known(label: str, prefix: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            takes = did_you_mean(str(key), known) or f" It takes: {', '.join(known)}."
            raise UserError(f"{label}: {prefix}{key} is unknown.{takes}")


def _validated(label: str, content: dict[str, Any]) -> Policy:
    try:
        return Policy.model_validate(content)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(_key(str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
        raise UserError(f"{label}: {place}: {message[:1].lower()}{message[1:]}{got}.") from None
