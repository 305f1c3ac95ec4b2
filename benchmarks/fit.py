"""`fit` beside plain PyTorch loops: one process, the same batches, short rounds in turn so that all share the weather.

    python benchmarks/fit.py --rounds 12 --steps 20

Contenders, all training ResNet-20 on CIFAR-10 images with crop and flip, batch 128, SGD with Nesterov momentum:

- naive: what tutorials show, float32 in PyTorch's default memory format;
- bare: the least code that is fast, channels-last, and bf16 autocast where the processor computes in bf16;
- fit: holdfast's loop with everything it does besides (metrics, checks, schedule, interrupts).

Writes ``results/fit.md``, or ``results/fit-fp32.md`` where bare and fit compute in fp32. Needs CIFAR-10
(see `holdfast data`), or `--random` for random images, which take the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import Images, load_data, to_float
from holdfast.methods import Callback
from holdfast.models import build_model
from holdfast.run import Run
from holdfast.stats import bootstrap
from holdfast.training import SGD, Constant, Crop, Flip, fit
from holdfast.training.batches import prepare

RESULTS = Path(__file__).parent / "results"
TRANSFORMS = (Crop(), Flip())
OPTIMIZER = SGD(lr=0.05)
BATCH = 128


@dataclass(frozen=True)
class Clock(Callback):
    """Notes the moment of every step."""

    ticks: list[float] = field(default_factory=list)

    def on_step(self, state: object) -> None:
        self.ticks.append(time.perf_counter())


def batches(images: Images, steps: int, rng: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Bytes of augmented batches, as any loop that keeps its images in memory may make them."""
    for indices in torch.randperm(len(images), generator=rng)[: steps * BATCH].split(BATCH):
        x, y = images.x[indices], images.y[indices]
        for transform in TRANSFORMS:
            x, y = transform(x, y, rng=rng)
        yield x, y


def loop(
    model: nn.Module, images: Images, steps: int, seed: int, *, fast: bool, precision: str = "fp32"
) -> tuple[list[float], float]:
    """A plain training loop; returns the moments of its steps, and the last loss."""
    layout = torch.channels_last if fast else torch.contiguous_format
    model.train().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=OPTIMIZER.lr, momentum=0.9, nesterov=True, weight_decay=OPTIMIZER.weight_decay
    )
    ticks = []
    for x, y in batches(images, steps, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(to_float(x.contiguous(memory_format=layout))), y)
        loss.backward()
        optimizer.step()
        ticks.append(time.perf_counter())
    return ticks, loss.item()


def holdfast_fit(model: nn.Module, images: Images, steps: int, seed: int, precision: str) -> tuple[list[float], float]:
    """The same through `fit`."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: steps * BATCH]
    clock = Clock()
    result = fit(
        model,
        images.select(chosen),
        epochs=1,
        batch_size=BATCH,
        optimizer=OPTIMIZER,
        schedule=Constant(),
        transforms=TRANSFORMS,
        callbacks=[clock],
        run=Run(seed=seed, device="cpu", precision=precision),
    )
    return clock.ticks, result.history[-1]["train_loss"]


def measure(images: Images, rounds: int, steps: int, precision: str) -> dict[str, list[float]]:
    """Milliseconds of every step of every contender; the first step of a round warms caches and is not counted."""
    contenders: dict[str, Callable[[nn.Module, int], tuple[list[float], float]]] = {
        "naive": lambda model, seed: loop(model, images, steps, seed, fast=False),
        "bare": lambda model, seed: loop(model, images, steps, seed, fast=True, precision=precision),
        "fit": lambda model, seed: holdfast_fit(model, images, steps, seed, precision),
    }
    models = {name: build_model("resnet20", num_classes=10, run=Run()) for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(rounds + 1):
        order = list(contenders)[seed % 3 :] + list(contenders)[: seed % 3]
        for name in order:
            ticks, loss = contenders[name](models[name], seed)
            if seed:  # the first round warms up
                times[name] += [1000 * (b - a) for a, b in itertools.pairwise(ticks)]
                print(f"round {seed:2d}  {name:5s}  {statistics.median(times[name]):7.1f} ms/step  loss {loss:.3f}")
    return times


def augmentation_ms(images: Images) -> float:
    """What augmentation adds to a batch at best: the least of many tries, as the rest is other programs' doing."""
    rng, indices, cpu = torch.Generator(), torch.arange(BATCH), torch.device("cpu")
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(200):
        for augmented in spent:
            begin = time.perf_counter()
            prepare(images, indices, TRANSFORMS if augmented else (), rng, cpu)
            spent[augmented].append(1000 * (time.perf_counter() - begin))
    return min(spent[True]) - min(spent[False])


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """How many times as fast the second is, by medians, with a 95 % interval."""
    import numpy as np

    def of(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.median(a) / np.median(b))

    a, b = np.array(slower), np.array(faster)
    low, high = bootstrap(of, a, b, rng=np.random.default_rng(0))
    return {"value": of(a, b), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="per round and contender")
    parser.add_argument("--random", action="store_true", help="random images instead of CIFAR-10")
    parser.add_argument("--precision", default="auto", help="of bare and fit")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    precision = Run(device="cpu", precision=arguments.precision).precision
    if arguments.random:
        rng = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (8192, 3, 32, 32), dtype=torch.uint8, generator=rng)
        images = Images(x=x, y=torch.arange(8192) % 10, classes=tuple(map(str, range(10))), name="random")
    else:
        train = load_data("cifar10").train
        assert train is not None
        images = train
    times = measure(images, arguments.rounds, arguments.steps, precision)
    aside = augmentation_ms(images)
    medians = {name: statistics.median(values) for name, values in times.items()}
    report = {
        "model": "resnet20",
        "batch_size": BATCH,
        "steps": {name: len(values) for name, values in times.items()},
        "median_ms_per_step": medians,
        "images_per_second": {name: 1000 * BATCH / value for name, value in medians.items()},
        "fit_vs_bare": ratio(times["bare"], times["fit"]),
        "fit_vs_naive": ratio(times["naive"], times["fit"]),
        "augmentation_ms": aside,
        "augmentation_share": aside / medians["fit"],
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    rows = [
        "| loop | ms per step | images/s | `fit` is |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {medians[name]:.1f} | {1000 * BATCH / medians[name]:.0f} | {compared} |"
            for name, compared in (
                ("naive", "{value:.2f}x [{low:.2f}, {high:.2f}]".format(**report["fit_vs_naive"])),
                ("bare", "{value:.2f}x [{low:.2f}, {high:.2f}]".format(**report["fit_vs_bare"])),
                ("fit", ""),
            )
        ),
        "",
        f"ResNet-20, batch {BATCH}, {len(times['fit'])} steps each, medians with 95 % intervals; naive: float32, "
        f"contiguous; bare and fit: {precision}, channels-last. "
        f"Crop and flip: {aside:.2f} ms, {100 * aside / medians['fit']:.1f} % of a step. {report['machine']}, "
        f"torch {torch.__version__}.",
    ]
    RESULTS.mkdir(exist_ok=True)
    name = "fit" if precision == "bf16" else f"fit-{precision}"
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(f"# Speed of `fit` in {precision}\n\n" + "\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
