"""AutoAttack against the authors' implementation (pyautoattack): time and robust accuracy, stage by stage.

    python benchmarks/autoattack.py --model zoo:cifar10-resnet20-at --n 1000
    python benchmarks/autoattack.py --norm l2 --eps 0.5 --n 200

writes ``results/autoattack.md`` and ``results/autoattack.json`` (for norms other than l_inf with the norm in the name).
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import time
from dataclasses import dataclass, field
from fractions import Fraction

import peers
import torch
from peers import Entrant
from torch import Tensor, nn

from holdfast.evasion import AutoAttack
from holdfast.run import Run

Stages = dict[str, tuple[float, float]]  # name -> seconds, robust accuracy after it


class Contiguous(nn.Module):
    """The model with contiguous input gradients: the authors' code calls ``.view`` on them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_Contiguous.apply(x))


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


@dataclass
class Staged:
    """An AutoAttack behind one call that remembers its stages, round by round."""

    entrant: Entrant
    rounds: list[Stages] = field(default_factory=list)


def ours(options: argparse.Namespace, eps: float, precision: str = "fp32") -> Staged:
    """Holdfast's; FAB computes in float32 either way."""
    attack = AutoAttack(
        eps=eps, norm=options.norm, version=options.version, steps=options.steps, queries=options.queries
    )

    def make(model: nn.Module) -> peers.Attack:
        def run(x: Tensor, y: Tensor) -> Tensor:
            outcome = attack.run(model, x, y, run=Run(device="cpu", precision=precision))
            staged.rounds.append({s.name: (s.seconds, s.robust_accuracy) for s in outcome.stages})
            return outcome.x_adv

        return run

    name = "holdfast" if precision == "fp32" else f"holdfast, {precision} gradients and screening"
    staged = Staged(Entrant(name, "holdfast", make, peer=False))
    return staged


def theirs(options: argparse.Namespace, eps: float) -> Staged:
    """The authors' suite, run as its users run it; its stages are read off its log."""
    log = StageLog()

    def make(model: nn.Module) -> peers.Attack:
        import pyautoattack

        suite = pyautoattack.AutoAttack(
            Contiguous(model),
            norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[options.norm],
            eps=eps,
            version=options.version,
            seed=0,
        )
        for part in (suite.apgd, suite.apgd_targeted, suite.fab):
            part.n_iter = options.steps
        suite.square.n_queries = options.queries - 1  # its start is a query more
        suite.logger.addHandler(log)
        suite.logger.setLevel(logging.DEBUG)
        suite.logger.propagate = False

        def run(x: Tensor, y: Tensor) -> Tensor:
            log.begin()
            x_adv, _ = suite.run_standard_evaluation(x, y, batch_size=options.batch)
            staged.rounds.append(log.stages)
            return x_adv

        return run

    staged = Staged(Entrant("pyautoattack", "pyautoattack", make))
    return staged


class StageLog(logging.Handler):
    """Takes the time at each line that ends a stage."""

    def begin(self) -> None:
        self.stages: Stages = {}
        self.last = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"robust accuracy after (\S+): ([\d.]+)%", record.getMessage())
        if found:
            now = time.perf_counter()
            self.stages[found[1].lower()] = (now - self.last, float(found[2]) / 100)
            self.last = now


def table(staged: list[Staged]) -> list[str]:
    """The medians over the rounds, stage by stage; the first call, which warms up, is left out."""
    lines = ["", "| stage | attack | seconds | robust accuracy after it |", "| --- | --- | --- | --- |"]
    ran = [s for s in staged if s.entrant.seconds]
    for stage in dict.fromkeys(name for s in ran for name in s.rounds[-1]):
        for s in ran:
            rounds = [r[stage] for r in s.rounds[1:] if stage in r]
            if not rounds:  # nobody was left to attack
                continue
            seconds, robust = (statistics.median(values) for values in zip(*rounds, strict=True))
            lines.append(f"| {stage} | {s.entrant.name} | {seconds:.1f} | {robust:.2%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20-at")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf")
    parser.add_argument("--eps", type=Fraction, default=Fraction(8, 255), help="e.g. 8/255 or 0.5")
    parser.add_argument("--version", choices=("standard", "plus"), default="standard")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=250, help="of the peer; its own default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", help="of the result files")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peers.quiet()
    model, x, y, _ = peers.setting(options.model, options.weights, options.data, options.n)
    eps = float(options.eps)
    staged = [ours(options, eps), *(ours(options, eps, p) for p in peers.roughly()), theirs(options, eps)]
    entrants = [s.entrant for s in staged]

    peers.contest(entrants, model, x, y, options.rounds, eps, options.norm)
    settings = {
        "model": options.model,
        "images": len(x),
        "norm": options.norm,
        "eps": str(options.eps),
        "version": options.version,
        "steps": options.steps,
        "queries of Square": options.queries,
        "batch of the peer": options.batch,
    }
    name = options.name or ("autoattack" if options.norm == "linf" else f"autoattack_{options.norm}")
    stages = {s.entrant.name: s.rounds[1:] for s in staged}
    peers.write(
        name,
        "AutoAttack: holdfast, pyautoattack",
        entrants,
        settings,
        peers.accuracy(model, x, y),
        more_lines=table(staged),
        more={"stages": stages},
    )


if __name__ == "__main__":
    main()
