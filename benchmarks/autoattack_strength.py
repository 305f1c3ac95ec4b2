"""AutoAttack against the authors' implementation on many images: which of them withstand either.

    python benchmarks/autoattack_strength.py --n 1000 --chunk 100

The reference takes hours for a thousand images, so they are attacked a chunk at a time, each chunk by both in turn; a
chunk that is done is a line of ``results/autoattack_strength.jsonl``, and another run goes on after it.
``results/autoattack_strength.md`` sums up the chunks there are.
"""

from __future__ import annotations

import argparse
import json
import time
from fractions import Fraction
from typing import Any

import autoattack
import peers
import torch
from torch import Tensor, nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20-at")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--norm", choices=("linf", "l2", "l1"), default="linf")
    parser.add_argument("--eps", type=Fraction, default=Fraction(8, 255))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = argparse.Namespace(norm=options.norm, version="standard", steps=100, queries=5000, batch=250)
    peers.quiet()
    model, x, y, _ = peers.setting(options.model, None, options.data, options.n)
    eps = float(options.eps)
    attacks = {
        staged.entrant.name: staged.entrant.make(model)
        for staged in (autoattack.ours(settings, eps), autoattack.theirs(settings, eps))
    }
    path = peers.RESULTS / f"autoattack_strength{'' if options.norm == 'linf' else '_' + options.norm}.jsonl"
    key = {"model": options.model, "data": options.data, "norm": options.norm, "eps": str(options.eps)}
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = [line for line in done if all(line[name] == value for name, value in key.items())]
    for first in range(0, options.n, options.chunk):
        last = min(first + options.chunk, options.n)
        if any(line["first"] <= first and last <= line["last"] for line in done):
            continue
        line = {**key, "first": first, "last": last, "threads": torch.get_num_threads(), "torch": torch.__version__}
        line |= _compare(model, attacks, x[first:last], y[first:last])
        done.append(line)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(first, {name: line[name]["robust"] for name in attacks}, flush=True)
        path.with_suffix(".md").write_text(_summary(done, list(attacks)))


def _compare(model: nn.Module, attacks: dict[str, Any], x: Tensor, y: Tensor) -> dict[str, Any]:
    """What each attack leaves standing of these images, judged by a plain float32 pass, and its time."""
    found: dict[str, Any] = {"clean": int(_right(model, x, y).sum())}
    for name, attack in attacks.items():
        model.eval().to(memory_format=torch.contiguous_format)
        wall, cpu = time.perf_counter(), time.process_time()
        x_adv = attack(x, y)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        standing = _right(model, x_adv, y)
        found[name] = {
            "robust": int(standing.sum()),
            "standing": standing.nonzero().flatten().tolist(),
            "seconds": round(wall, 1),
            "cpu_seconds": round(cpu, 1),
        }
    return found


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def _summary(done: list[dict[str, Any]], names: list[str]) -> str:
    done = sorted(done, key=lambda line: line["first"])
    count = sum(line["last"] - line["first"] for line in done)
    cpu = {name: sum(line[name]["cpu_seconds"] for line in done) for name in names}
    ours, theirs = ({(line["first"], i) for line in done for i in line[name]["standing"]} for name in names)
    first = done[0]
    chunks = ", ".join(f"{line['first']}-{line['last'] - 1}" for line in done)
    return "\n".join(
        [
            "# AutoAttack: which images withstand holdfast's, and which the authors'",
            "",
            f"model {first['model']}, norm {first['norm']}, eps {first['eps']}, {count} test images ({chunks}), "
            f"standard version; clean accuracy {sum(line['clean'] for line in done) / count:.2%}.",
            f"torch {first['torch']}, {first['threads']} threads; chunk by chunk, both in turn in one process.",
            "",
            "| attack | robust accuracy | CPU seconds | of the authors' |",
            "| --- | --- | --- | --- |",
            *(
                f"| {name} | {len(standing) / count:.2%} | {cpu[name]:.0f} | {cpu[name] / cpu[names[1]]:.2f}x |"
                for name, standing in zip(names, (ours, theirs), strict=True)
            ),
            "",
            f"Broken by holdfast alone: {len(theirs - ours)}; by the authors' alone: {len(ours - theirs)}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
