"""What unlearners cost beside the passes that they need: their time over that of bare passes, and over retraining.

    python benchmarks/unlearning_cost.py --n 4000

A hook notes every batch that passes through the model, and whether its gradient is taken; a bare loop then repeats
those passes in the same precision and layout, with one optimizer step for every gradient in train mode. Both alternate.
Writes ``results/unlearning_cost.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import peers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast import catalog
from holdfast.data import Images, load_data
from holdfast.data.images import to_float
from holdfast.methods import Unlearner
from holdfast.models import load_model
from holdfast.run import Run

_METHODS = (
    "ft(epochs=1, batch_size=128)",
    "neggrad-plus(epochs=1, batch_size=128)",
    "random-label(epochs=1, batch_size=128)",
    "salun(epochs=1, batch_size=128)",
    "l1-sparse(epochs=1, batch_size=128)",
    "sfron(epochs=1, batch_size=128)",
    "scrub(epochs=1, batch_size=128)",
    "bad-teacher(epochs=1, batch_size=128)",
    "natural-mu(epochs=1, batch_size=128)",
    "unlearn-sparse(epochs=1, batch_size=128, then=ft(epochs=1, batch_size=128))",
    "gradient-ascent(epochs=2, batch_size=128)",
    "boundary-shrink(epochs=2, batch_size=128)",
    "boundary-expanding(epochs=2, batch_size=128)",
    "ssd(batch_size=128)",
)

Pass = tuple[int, bool, bool]  # images, whether a gradient is taken, train mode
_noted: list[Pass] = []


def _note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A hook that copies of the model take along."""
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    _noted.append((len(inputs[0]), trains or inputs[0].requires_grad, module.training))


def passes_of(method: Unlearner, model: nn.Module, forget: Images, retain: Images, run: Run) -> list[Pass]:
    """Which passes the method makes."""
    watched = copy.deepcopy(model)
    watched.register_forward_pre_hook(_note)
    _noted.clear()
    method(watched, forget, retain, run=run)
    return list(_noted)


def bare(model: nn.Module, passes: Sequence[Pass], x: Tensor, y: Tensor, run: Run) -> float:
    """Seconds of these passes, and of nothing else but an optimizer step for each gradient in train mode."""
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-6, momentum=0.9, fused=True)
    began = time.perf_counter()
    for count, gradient, training in passes:
        twin.train(training)
        rows = torch.arange(count) % len(x)
        batch = x[rows].contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(gradient), run.autocast():
            logits = twin(batch)
        if gradient:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), y[rows]).backward()
            if training:
                optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=4000, help="training images, of which a tenth is forgotten")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(device="cpu", precision=options.precision)
    images = load_data(options.data, run=run).train.select(slice(0, options.n))
    model = load_model(options.model, num_classes=images.num_classes, image_shape=images.shape)
    forget, retain = images.select(slice(0, options.n // 10)), images.select(slice(options.n // 10, None))
    x, y = to_float(images.x[:1024]), images.y[:1024]
    rows: list[dict[str, Any]] = []
    for spec in _METHODS:
        method = catalog.build(spec, kind=Unlearner)
        passes = passes_of(method, model, forget, retain, run)
        times: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            method(model, forget, retain, run=run)
            times.append((time.perf_counter() - began, bare(model, passes, x, y, run)))
        whole, floor = (statistics.median(values) for values in zip(*times, strict=True))
        with_gradient = sum(count for count, gradient, _ in passes if gradient)
        without = sum(count for count, gradient, _ in passes if not gradient)
        rows.append({"method": spec, "seconds": whole, "bare": floor, "gradients": with_gradient, "forwards": without})
        print(f"{spec}: {whole:.2f} s, {whole / floor:.2f}x", flush=True)
    lines = [
        "# Unlearners beside the passes they need",
        "",
        f"{options.model}, {len(retain)} images retained and {len(forget)} forgotten, {run.precision}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {options.rounds} rounds in turn.",
        "",
        "| method | seconds | of the bare passes | images with a gradient | images without |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{r['method']}` | {r['seconds']:.2f} | {r['seconds'] / r['bare']:.2f}x | {r['gradients']} | "
            f"{r['forwards']} |"
            for r in rows
        ),
        "",
    ]
    (peers.RESULTS / "unlearning_cost.md").write_text("\n".join(lines))
    (peers.RESULTS / "unlearning_cost.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
