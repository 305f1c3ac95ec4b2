"""Hyperparameters of all unlearners, searched with one small budget, and what they do to the gap to retraining.

    python benchmarks/unlearning.py --kind random class

tries four candidates for every method on the bench of the proofs, on a seed that no proof uses, and writes
``results/unlearning.jsonl``, a line as each ends; another run goes on after them. ``results/unlearning.md`` names the
candidate of the smallest mean gap for each method.
"""

from __future__ import annotations

import argparse
import json

import peers
import torch

from holdfast.proofs.lab import Lab
from holdfast.proofs.unlearning_bench import CANDIDATES, measure
from holdfast.run import Run

SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=("random", "class"), default=("random", "class"))
    parser.add_argument("--methods", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    lab = Lab(scale="cpu", run=Run(seed=SEED, device="cpu"))
    path = peers.RESULTS / "unlearning.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for kind in options.kind:
        for id in options.methods:
            for spec in CANDIDATES[id]:
                if any(line["kind"] == kind and line["spec"] == spec for line in done):
                    continue
                found = {"method": id, "kind": kind, "seed": SEED, **measure(lab, kind, spec).details()}
                done.append(found)
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(kind, spec, found["gap"], found["seconds"], flush=True)
    path.with_suffix(".md").write_text(_table(done))


def _table(done: list[dict]) -> str:
    lines = ["# Unlearners: the best of four candidates each", "", f"Seed {SEED}; gaps in percentage points.", ""]
    for kind in dict.fromkeys(line["kind"] for line in done):
        chosen = [line for line in done if line["kind"] == kind]
        lines += [f"## Forgetting {'a random tenth' if kind == 'random' else 'a class'}", ""]
        lines += ["| method | gap | UA | RA | TA | MIA | seconds | gaps of all four | chosen |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for id in dict.fromkeys(line["method"] for line in chosen):
            tried = [line for line in chosen if line["method"] == id]
            best = min(tried, key=lambda line: line["gap"])
            rates = " | ".join(f"{best[name]:.1%}" for name in ("ua", "ra", "ta", "mia_nonmember_rate"))
            gaps = ", ".join(f"{line['gap']:.1f}" for line in tried)
            lines += [f"| {id} | {best['gap']:.2f} | {rates} | {best['seconds']:.0f} | {gaps} | `{best['spec']}` |"]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
