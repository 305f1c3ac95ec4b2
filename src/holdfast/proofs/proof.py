"""A proof: a method's claim as an experiment, with its threshold fixed beforehand.

    @proof(
        method="energy",
        claim="The energy score separates near OOD images at least as well as the softmax score.",
        source="Liu et al. 2020, Table 1",
        metric="auroc",
        better="higher",
        threshold={"smoke": 0.7, "cpu": 0.85},
    )
    def energy_separates(lab: Lab) -> Measured:
        ...
        return Measured(value=auroc, low=low, high=high, baseline=msp, baseline_name="msp")

The experiment runs once per seed; the verdict is on the mean over seeds.
"""

from __future__ import annotations

import datetime
import importlib
import os
import pkgutil
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import holdfast
from holdfast import stats
from holdfast.errors import UserError, one_of
from holdfast.proofs.lab import Lab, Scale
from holdfast.proofs.ledger import Entry
from holdfast.run import Run

__all__ = ["Measured", "Proof", "proof", "proofs", "prove"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run of an experiment gave: the metric, its 95 % interval, and the baseline's value of it."""

    value: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    baseline_name: str = ""
    n: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def share(cls, hits: Tensor, **named: Any) -> Measured:
        """The share of true outcomes (N,), with Wilson's interval; `named` are further fields."""
        low, high = stats.wilson(int(hits.sum()), len(hits))
        return cls(value=float(hits.double().mean()), low=low, high=high, n=len(hits), **named)

    @classmethod
    def difference(
        cls, first: Tensor, second: Tensor, name: str, *, baseline: Literal["first", "second"] = "second", **named: Any
    ) -> Measured:
        """The share of true outcomes in `first` less that in `second`, on the same samples, with Newcombe's interval.

        Args:
            first, second: bool (N,).
            name: of the baseline.
            baseline: which of the two it is.
            named: further fields.
        """
        low, high = stats.newcombe_paired(first.numpy(), second.numpy())
        a, b = (float(hits.double().mean()) for hits in (first, second))
        named = {"baseline": a if baseline == "first" else b, "baseline_name": name, "n": len(first), **named}
        return cls(value=a - b, low=low, high=high, **named)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A claim with its experiment."""

    method: str
    id: str
    claim: str
    source: str
    metric: str
    better: Literal["higher", "lower"]
    threshold: Mapping[Scale, float]
    experiment: Callable[[Lab], Measured]
    note: str = ""


_PROOFS: dict[str, Proof] = {}


def proof(
    *,
    method: str,
    claim: str,
    source: str,
    metric: str,
    better: Literal["higher", "lower"],
    threshold: Mapping[Scale, float],
    note: str = "",
) -> Callable[[Callable[[Lab], Measured]], Callable[[Lab], Measured]]:
    """Register an experiment; its id is the function's name in kebab-case."""

    def register(experiment: Callable[[Lab], Measured]) -> Callable[[Lab], Measured]:
        id = experiment.__name__.replace("_", "-")
        _PROOFS[id] = Proof(
            method=method,
            id=id,
            claim=claim,
            source=source,
            metric=metric,
            better=better,
            threshold=threshold,
            experiment=experiment,
            note=note,
        )
        return experiment

    return register


def proofs(method: str | None = None) -> list[Proof]:
    """All proofs, or those of one method, ordered by method and id."""
    package = importlib.import_module("holdfast.proofs")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"holdfast.proofs.{module.name}")
    return sorted((p for p in _PROOFS.values() if method in (None, p.method)), key=lambda p: (p.method, p.id))


def prove(id: str, *, scale: Scale = "smoke", seeds: int = 1, run: Run | None = None) -> list[Entry]:
    """Run the proofs of a method, or one proof by its own id.

    Args:
        id: of a method (all its proofs run) or of a proof.
        scale: ``smoke`` takes seconds on small data, ``cpu`` minutes on real data, ``gpu`` is for a GPU.
        seeds: the experiment runs with seeds 0..seeds-1 added to the run's.
        run: device, first seed, progress.

    Returns:
        One entry for the ledger per proof.

    Raises:
        UserError: there is no such proof, or none at this scale.
    """
    known = proofs()
    chosen = [p for p in known if id in (p.method, p.id)]
    if not chosen:
        raise one_of("proof", id, {p.method for p in known} | {p.id for p in known})
    at_scale = [p for p in chosen if scale in p.threshold]
    if not at_scale:
        raise UserError(f"{id} has no proof at scale {scale}; it has: {', '.join(sorted(chosen[0].threshold))}.")
    return [_run_one(p, scale, seeds, run or Run()) for p in at_scale]


def _run_one(p: Proof, scale: Scale, seeds: int, run: Run) -> Entry:
    started = time.perf_counter()
    all_seeds = [run.seed + k for k in range(seeds)]
    measured = [p.experiment(Lab(scale=scale, run=run.but(seed=seed))) for seed in all_seeds]
    values = [m.value for m in measured]
    value = float(np.mean(values))
    baselines = [m.baseline for m in measured if m.baseline is not None]
    baseline = float(np.mean(baselines)) if baselines else None
    low, high = _interval(measured)
    threshold = p.threshold[scale]
    return Entry(
        method=p.method,
        proof=p.id,
        claim=p.claim,
        source=p.source,
        scale=scale,
        metric=p.metric,
        value=value,
        low=low,
        high=high,
        baseline=baseline,
        baseline_name=measured[0].baseline_name,
        effect=None if baseline is None else value - baseline,
        threshold=threshold,
        better=p.better,
        passed=value >= threshold if p.better == "higher" else value <= threshold,
        n=measured[0].n,
        seeds=all_seeds,
        values=values,
        details=measured[0].details if len(measured) == 1 else {"per_seed": [m.details for m in measured]},
        note=p.note,
        commit=_commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.perf_counter() - started, 1),
        machine=_machine(run),
        versions={"holdfast": holdfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _interval(measured: list[Measured]) -> tuple[float | None, float | None]:
    """One seed: the experiment's own interval. Several: Student's t over the seeds."""
    if len(measured) == 1:
        return measured[0].low, measured[0].high
    return stats.student_interval([m.value for m in measured])


def _commit() -> str:
    """The commit of this source tree, marked when files differ from it; ``unknown`` outside a repository."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src"], cwd=root, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed else "")


def _machine(run: Run) -> str:
    if run.torch_device.type == "cuda":
        return torch.cuda.get_device_name(run.torch_device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
