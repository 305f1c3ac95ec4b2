"""Square (l_inf) against torchattacks and ART: time and strength at equal settings. foolbox has no Square.

    python benchmarks/square.py --model zoo:cifar10-resnet20-at --n 200 --queries 1000

writes ``results/square.md`` and ``results/square.json``.
"""

from __future__ import annotations

import argparse

import peers
import torch
from peers import Entrant

from holdfast.evasion import Square
from holdfast.run import Run


def ours(eps: float, queries: int, precision: str = "fp32") -> Entrant:
    attack = Square(eps=eps, queries=queries)
    name = "holdfast" if precision == "fp32" else f"holdfast, {precision} screening"
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
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="of the peers; near the fastest for each on a CPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="square", help="of the result files")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peers.quiet()
    model, x, y, classes = peers.setting(options.model, options.weights, options.data, options.n)
    eps = 8 / 255
    entrants = [
        ours(eps, options.queries),
        *(ours(eps, options.queries, precision) for precision in peers.roughly()),
        peers.torchattacks_square(eps, options.queries, options.batch),
        peers.art_square(eps, options.queries, options.batch, tuple(x.shape[1:]), classes),
    ]
    peers.contest(entrants, model, x, y, options.rounds, eps)
    entrants.append(Entrant("foolbox", "foolbox", lambda model: None, error="it has no Square attack"))
    settings = {
        "model": options.model,
        "images": len(x),
        "norm": "l_inf",
        "eps": "8/255",
        "queries": options.queries,
        "p_init": 0.8,
        "schedule": "not rescaled (ART always rescales)",
        "batch of the peers": options.batch,
    }
    title = "Square: holdfast, torchattacks, ART"
    peers.write(options.name, title, entrants, settings, peers.accuracy(model, x, y))


if __name__ == "__main__":
    main()
