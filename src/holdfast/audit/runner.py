"""`audit`: ask every check, hold its answer against the policy, and write down what came out."""

from __future__ import annotations

import datetime
import functools
import itertools
import platform
import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import holdfast
from holdfast import catalog
from holdfast.audit.check import Answer, Check, checks_named
from holdfast.audit.findings import Action, Decision, Finding
from holdfast.audit.identity import data_fingerprint, model_fingerprint
from holdfast.audit.policy import Policy, decide, load_policy
from holdfast.audit.profiles import Profile, profile_of
from holdfast.audit.record import Audit, DataInfo, Environment, ModelInfo, SamplesInfo
from holdfast.audit.samples import sample_table
from holdfast.audit.sections import AXES, summarise, worst
from holdfast.audit.store import Store, digest
from holdfast.audit.subject import Subject
from holdfast.data import Data
from holdfast.errors import UserError
from holdfast.models import MixesSamples, NonDeterministic, QueriesSpent, Unanswered, forget, predict, queryables
from holdfast.models.weights import weights_hash
from holdfast.run import Run

__all__ = ["audit"]

Columns = dict[str, dict[str, Tensor]]


def audit(
    model: nn.Module,
    data: Data,
    *,
    profile: str | Profile = "quick",
    policy: str | Path | Mapping[str, Any] | Policy | None = None,
    only: Sequence[str] | None = None,
    name: str | None = None,
    command: str = "",
    run: Run | None = None,
) -> Audit:
    """Audit a classifier along every axis of machine-learning safety.

    With ``run.out`` set, ``audit.json`` and ``samples.parquet`` are written there, and what is worked out on the way is
    kept under ``state``: an audit that was stopped, even killed, goes on where it was when started again with the same
    folder, and ends with the same result.

    A `Queryable`, such as a deployed model, is audited by its answers: checks that need more are not assessed, nor are
    those that its budget of queries does not suffice for; with a larger budget and the same folder they are asked then.

    Args:
        model: float images in [0, 1], (N, C, H, W), to logits (N, K).
        data: with a test split; a training split lets membership and the generalisation gap be measured, a validation
            split calibration.
        profile: ``quick``, ``standard`` or ``full``, or counts of your own.
        policy: changes of the default limits, as a YAML file or a mapping, or a whole policy.
        only: ids of checks or sections; all by default.
        name: the model's, for the report.
        command: what the user typed, for the report.
        run: device, seed, batch size, output folder.

    Raises:
        UserError: the model does not fit the data or stops answering, the output folder holds the audit of something
            else, or the profile, the policy or a check's name is not known.
    """
    began = time.perf_counter()
    run = run or Run()
    profile = profile_of(profile)
    checks = checks_named(only)
    policy = load_policy(policy, {check.id: check.limits for check in checks if check.limits})
    _verify_fit(model, data, run)
    identity = {"model": model_fingerprint(model), "data": data_fingerprint(data)}
    store = Store(run.out, identity, seed=run.seed_for("audit"), between=functools.partial(forget, model))
    subject = Subject(model, data, profile=profile, policy=policy, run=run, store=store)

    if queryables(model):
        subject.features("test")  # where queries are limited, those come first that everything else builds on

    findings: list[Finding] = []
    columns: Columns = {}
    with run.track(len(checks), "audit") as ticker, warnings.catch_warnings():
        warnings.simplefilter("ignore", NonDeterministic)  # the check of determinism says it, with numbers
        warnings.simplefilter("ignore", MixesSamples)  # and this too
        for check in checks:
            ticker.advance(0, check.title)
            finding, made = _ask(check, subject, command)
            findings.append(finding)
            for split, values in made.items():
                columns.setdefault(split, {}).update(values)
            ticker.advance(1)

    sections = [summarise(axis, [f for f in findings if f.section == axis.id]) for axis in AXES]
    title = name or getattr(model, "architecture", None) or type(model).__name__
    result = Audit(
        name=f"{title} on {data.name}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began,
        command=command,
        model=ModelInfo(
            name=title,
            architecture=str(getattr(model, "architecture", None) or type(model).__name__),
            parameters=None if subject.only_answers else sum(p.numel() for p in model.parameters()),
            fingerprint=identity["model"],
            weights=weights_hash(model),
        ),
        data=_data_info(subject, identity["data"]),
        profile=profile.to_json(),
        policy=policy,
        environment=_environment(run, store.code),
        sections=sections,
        findings=findings,
        samples_info=SamplesInfo(rows=0, columns=[], sha256=""),
    ).sealed(sample_table(subject, columns))
    if run.out is not None:
        result.save(run.out)
    return result


def _ask(check: Check, subject: Subject, command: str) -> tuple[Finding, Columns]:
    """A check's finding and per-sample columns, from the store if it was asked before."""
    began = time.perf_counter()
    settings = {
        "check": check.id,
        "settings": check.settings,
        "code": digest(check.code),
        "profile": subject.profile.to_json(),
        "threat": subject.policy.threat.model_dump(),
    }

    def compute() -> tuple[dict[str, Any], dict[str, Tensor]]:
        lacking = subject.lacks(check.needs)
        if lacking:
            return {"error": lacking}, {}
        try:
            answer = check(subject)
        except Unanswered:  # of the moment, not of the model: it must not be kept
            raise
        except UserError as error:  # the question does not apply to this subject, and the report says why
            return {"error": str(error)}, {}
        return {
            "metrics": [m.model_dump() for m in answer.metrics],
            "figures": [f.model_dump() for f in answer.figures],
            "remedies": [{"when": r.when, "action": r.action.model_dump()} for r in answer.remedies],
            "settings": dict(answer.settings),
            "limitations": list(answer.limitations),
            "doubt": answer.doubt,
            "seconds": time.perf_counter() - began,
        }, _flat(check, answer, subject)

    try:
        content, tensors = subject.store.record(f"finding-{check.id}", settings, compute)
    except QueriesSpent as error:  # the others may need fewer, or none; with a larger budget it is asked again
        content, tensors = {"error": str(error)}, {}
    return _finding(check, content, sorted(tensors), subject.policy, command), _nested(tensors)


def _finding(check: Check, content: dict[str, Any], columns: Sequence[str], policy: Policy, command: str) -> Finding:
    base: dict[str, Any] = {"section": check.section, "check": check.id, "title": check.title}
    if "error" in content:
        return Finding(**base, verdict="not assessed", reason=content["error"])
    finding = Finding.model_validate(
        base
        | {k: content[k] for k in ("metrics", "figures", "settings", "limitations", "seconds")}
        | {"verdict": "not assessed", "reason": ""}
    )
    decisions = []
    for metric in finding.metrics:
        rule = policy.rule(check.id, metric.name)
        if rule is not None and rule.pass_at is not None:
            decisions.append(decide(metric, rule, adversary=policy.threat.adversary))
    verdict = worst([d.verdict for d in decisions])
    reason = " ".join(d.reason for d in decisions if d.verdict == verdict)
    reason = f"{reason[:1].upper()}{reason[1:]}" or "Measured and reported; the policy sets no limit for it."
    if content["doubt"]:
        verdict = "attention" if verdict == "pass" else verdict
        reason = f"{content['doubt']} {reason}"
    return finding.model_copy(
        update={
            "verdict": verdict,
            "reason": reason,
            "decisions": decisions,
            "actions": [
                action.model_copy(update={"command": _made_exact(action.command, command)})
                for action in _actions(content["remedies"], decisions, finding, verdict)
            ],
            "per_sample": sorted({name.partition("|")[2] for name in columns}),
        }
    )


def _actions(remedies: list[dict[str, Any]], decisions: list[Decision], finding: Finding, verdict: str) -> list[Action]:
    """The advice for what did not pass, each once; a method that is not in the catalogue is not recommended.

    Where the value itself is within the limit and only its interval is not, more images are needed and no remedy.
    """
    amiss = [d for d in decisions if d.verdict in ("attention", "fail")]
    values = {m.name: m for m in finding.metrics}
    unsure = [d.metric for d in amiss if _meets(values[d.metric].value, d)]
    known = {d.metric for d in amiss} - set(unsure)
    actions: list[Action] = []
    for remedy in remedies:
        action = Action.model_validate(remedy["action"])
        judged_bad = verdict in ("attention", "fail")
        wanted = remedy["when"] in known or (not remedy["when"] and judged_bad and (known or not amiss))
        if wanted and action not in actions and (action.method is None or _exists(action.method)):
            actions.append(action)
    for name in unsure:
        title = values[name].title or name
        actions.append(Action(text=f"{title}: too uncertain to decide; measure on more data, or by a larger profile."))
    return actions


def _made_exact(advised: str | None, audit_command: str) -> str | None:
    """A command about ``--model MODEL --data DATA`` with the words by which this audit was asked for them."""
    placeholder = "--model MODEL --data DATA"
    if not advised or placeholder not in advised or not audit_command:
        return advised
    given: dict[str, list[str]] = {}
    words = shlex.split(audit_command)
    for option, value in itertools.pairwise(words):
        given.setdefault(option, []).append(value)
    if not {"--model", "--data"} <= set(given):
        return advised
    named = ("--model", "--weights", "--guard", "--data")
    own = [word for option in named for value in given.get(option, []) for word in (option, value)]
    return advised.replace(placeholder, shlex.join(own))


def _meets(value: float | None, decision: Decision) -> bool:
    if value is None or decision.pass_at is None:
        return False
    return value <= decision.pass_at if decision.better == "lower" else value >= decision.pass_at


def _exists(method: str) -> bool:
    try:
        catalog.find(method)
    except UserError:
        return False
    return True


def _flat(check: Check, answer: Answer, subject: Subject) -> dict[str, Tensor]:
    tensors = {}
    for split, columns in answer.samples.items():
        for name, values in columns.items():
            values = torch.as_tensor(np.asarray(values))
            if values.ndim != 1 or len(values) > len(subject.images(split)):
                raise ValueError(f"{check.id}: column {name!r} of {split} has shape {tuple(values.shape)}")
            tensors[f"{split}|{check.id}.{name}"] = values
    return tensors


def _nested(tensors: Mapping[str, Tensor]) -> Columns:
    columns: Columns = {}
    for key in sorted(tensors):
        split, _, name = key.partition("|")
        columns.setdefault(split, {})[name] = tensors[key]
    return columns


def _verify_fit(model: nn.Module, data: Data, run: Run) -> None:
    """Refuse at the door what no check could make sense of."""
    try:
        with torch.random.fork_rng():  # a model may draw random numbers, and the caller's are not for it
            logits = predict(model, data.test.select(slice(0, 2)), run=run.but(progress=False))
    except UserError:
        raise
    except Exception as error:  # a stranger's code: whatever it raises, the user must learn on which input
        shape = "x".join(map(str, data.shape))
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the model fails on images of shape {shape} from {data.name}: {type(error).__name__}: {first}"
        ) from error
    if logits.shape[1] != data.num_classes:
        raise UserError(
            f"the model gives {logits.shape[1]} logits, but {data.name} has {data.num_classes} classes; "
            "they must be the same classes in the same order."
        )


def _data_info(subject: Subject, fingerprint: str) -> DataInfo:
    data = subject.data
    splits = [split for split in ("test", "train", "val") if subject.has(split)]
    return DataInfo(
        name=data.name,
        sizes={split: len(getattr(data, split)) for split in splits}
        | {f"ood/{k}": len(v) for k, v in data.ood.items()},
        used={split: len(subject.images(split)) for split in splits},
        classes=list(data.classes),
        shape=list(data.shape),
        fingerprint=fingerprint,
    )


def _environment(run: Run, code: str) -> Environment:
    device = str(run.torch_device)
    if run.torch_device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(run.torch_device)})"
    return Environment(
        holdfast=holdfast.__version__,
        code=code,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=f"{platform.system()} {platform.machine()}",
        device=device,
        threads=torch.get_num_threads(),
        seed=run.seed,
    )
