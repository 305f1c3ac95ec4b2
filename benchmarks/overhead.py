"""What the engine costs beside the passes that an attack needs: time outside of the model, as a share of that inside.

    python benchmarks/overhead.py --n 256

writes ``results/overhead.md`` and ``results/overhead.json``. A pass is the model's forward, or forward and backward,
with the loss; clean predictions and final verdicts count as passes too.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import peers
import torch

from holdfast.evasion import APGD, CW, FAB, PGD, Square
from holdfast.evasion.oracle import Oracle
from holdfast.run import Run

_PASSES = ("verdict", "logits", "screen", "gradient", "class_gradients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20-at")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, x, y, _ = peers.setting(options.model, None, options.data, options.n)
    attacks = [
        PGD(steps=20),
        PGD(steps=10, restarts=5),
        APGD(steps=50),
        APGD(steps=25, targets=9),
        FAB(steps=20, targets=3),
        Square(queries=500),
        CW(binary_steps=2, steps=50),
    ]
    rows = []
    for attack in attacks:
        run = functools.partial(attack, model, x, y, run=Run(device="cpu"))
        measured = [_measure(run) for _ in range(options.rounds)]
        whole, inside = (statistics.median(values) for values in zip(*measured, strict=True))
        rows.append({"attack": str(attack), "seconds": whole, "in passes": inside, "overhead": whole / inside - 1})
        print(f"{attack}: {whole:.2f} s, overhead {rows[-1]['overhead']:.1%}", flush=True)
    lines = ["# Overhead of the engine over the model's passes", ""]
    lines += [
        f"{options.model}, {len(x)} images, medians of {options.rounds} rounds, {torch.get_num_threads()} threads."
    ]
    lines += ["", "| attack | seconds | in passes | overhead |", "| --- | --- | --- | --- |"]
    lines += [f"| `{r['attack']}` | {r['seconds']:.2f} | {r['in passes']:.2f} | {r['overhead']:.1%} |" for r in rows]
    peers.RESULTS.mkdir(exist_ok=True)
    (peers.RESULTS / "overhead.md").write_text("\n".join(lines) + "\n")
    (peers.RESULTS / "overhead.json").write_text(
        json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n"
    )


def _measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds in all, and in passes of the model."""
    inside, depth = 0.0, 0
    plain = {name: getattr(Oracle, name) for name in _PASSES}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal inside, depth
            depth += 1
            started = time.perf_counter()
            try:
                return plain[name](*args, **named)
            finally:
                depth -= 1
                if not depth:
                    inside += time.perf_counter() - started

        return call

    try:
        for name in _PASSES:
            setattr(Oracle, name, timed(name))
        started = time.perf_counter()
        work()
        return time.perf_counter() - started, inside
    finally:
        for name, method in plain.items():
            setattr(Oracle, name, method)


if __name__ == "__main__":
    main()
