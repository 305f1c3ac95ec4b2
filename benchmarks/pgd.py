"""PGD against torchattacks, foolbox and ART: time and strength at equal settings.

    python benchmarks/pgd.py --model zoo:cifar10-resnet20-at --n 1000

writes ``results/pgd.md`` and ``results/pgd.json``.
"""

from __future__ import annotations

import argparse

import peers
import torch
from peers import Entrant

from holdfast.evasion import PGD
from holdfast.run import Run


def ours(eps: float, step: float, steps: int, precision: str = "fp32") -> Entrant:
    attack = PGD(eps=eps, step=step, steps=steps)
    name = "holdfast" if precision == "fp32" else f"holdfast, {precision} gradients"
    return Entrant(
        name,
        "holdfast",
        lambda model: lambda x, y: attack(model, x, y, run=Run(device="cpu", precision=precision)),
        peer=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20-at")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128, help="of the peers; near the fastest for each on a CPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="pgd", help="of the result files")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peers.quiet()
    model, x, y, classes = peers.setting(options.model, options.weights, options.data, options.n)
    eps, step, shape = 8 / 255, 2 / 255, tuple(x.shape[1:])
    entrants = [
        ours(eps, step, options.steps),
        *(ours(eps, step, options.steps, precision) for precision in peers.roughly()),
        peers.torchattacks_pgd(eps, step, options.steps, options.batch),
        peers.torchattacks_pgd(eps, step, options.steps, options.batch, channels_last=True),
        peers.foolbox_pgd(eps, step, options.steps, options.batch),
        peers.art_pgd(eps, step, options.steps, options.batch, shape, classes),
    ]
    peers.contest(entrants, model, x, y, options.rounds, eps)
    settings = {
        "model": options.model,
        "images": len(x),
        "norm": "l_inf",
        "eps": "8/255",
        "step": "2/255",
        "steps": options.steps,
        "random start": "yes",
        "batch of the peers": options.batch,
    }
    title = "PGD: holdfast, torchattacks, foolbox, ART"
    peers.write(options.name, title, entrants, settings, peers.accuracy(model, x, y))


if __name__ == "__main__":
    main()
