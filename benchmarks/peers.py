"""The attacks people use today, behind one call each, and the contest they enter.

Every peer gets the user's model as it is (evaluation mode, contiguous images), equal settings, and batches of a size at
which it is fast; what it returns is judged by a plain float32 pass that is not timed. Peers and holdfast take turns in
one process. torchattacks declares torchvision and an old requests, but needs neither; where torchvision does not load,
install it with ``pip install --no-deps torchattacks``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

import holdfast
from holdfast.data import load_data
from holdfast.data.images import to_float
from holdfast.evasion.balls import SLACK, Norm, distance
from holdfast.models import load_model
from holdfast.run import Run, computes_bf16

Attack = Callable[[Tensor, Tensor], Tensor]

RESULTS = Path(__file__).parent / "results"


@dataclass
class Entrant:
    """One way to run an attack; `error` says why it cannot take part."""

    name: str
    package: str
    make: Callable[[nn.Module], Attack]
    peer: bool = True
    error: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    robust: list[float] = field(default_factory=list)

    @property
    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "absent"


def roughly() -> tuple[str, ...]:
    """The precisions beside fp32 that are worth an entry: bf16, where the processor computes in it."""
    return ("bf16",) if computes_bf16("cpu") else ()


def in_batches(attack: Attack, size: int) -> Attack:
    """Run an attack that takes all it is given at once on `size` images at a time."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([attack(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])

    return run


def torchattacks_pgd(eps: float, step: float, steps: int, batch: int, *, channels_last: bool = False) -> Entrant:
    def make(model: nn.Module) -> Attack:
        import torchattacks

        attack = torchattacks.PGD(model, eps=eps, alpha=step, steps=steps, random_start=True)

        def run(x: Tensor, y: Tensor) -> Tensor:
            if channels_last:
                model.to(memory_format=torch.channels_last)
                x = x.contiguous(memory_format=torch.channels_last)
            return attack(x, y)

        return in_batches(run, batch)

    return Entrant("torchattacks, channels-last" if channels_last else "torchattacks", "torchattacks", make)


def foolbox_pgd(eps: float, step: float, steps: int, batch: int) -> Entrant:
    def make(model: nn.Module) -> Attack:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=True)
        return in_batches(lambda x, y: attack(wrapped, x, y, epsilons=eps)[1], batch)

    return Entrant("foolbox", "foolbox", make)


def art_classifier(model: nn.Module, shape: tuple[int, ...], classes: int):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0, 1), device_type="cpu"
    )


def art_pgd(eps: float, step: float, steps: int, batch: int, shape: tuple[int, ...], classes: int) -> Entrant:
    def make(model: nn.Module) -> Attack:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        attack = ProjectedGradientDescentPyTorch(
            art_classifier(model, shape, classes),
            eps=eps,
            eps_step=step,
            max_iter=steps,
            num_random_init=1,
            batch_size=batch,
            verbose=False,
        )
        return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return Entrant("ART", "adversarial-robustness-toolbox", make)


def torchattacks_square(eps: float, queries: int, batch: int) -> Entrant:
    def make(model: nn.Module) -> Attack:
        import torchattacks

        attack = torchattacks.Square(
            model, eps=eps, n_queries=queries - 1, n_restarts=1, p_init=0.8, loss="margin", resc_schedule=False
        )
        return in_batches(lambda x, y: attack(x, y), batch)

    return Entrant("torchattacks", "torchattacks", make)


def art_square(eps: float, queries: int, batch: int, shape: tuple[int, ...], classes: int) -> Entrant:
    def make(model: nn.Module) -> Attack:
        from art.attacks.evasion import SquareAttack

        classifier = art_classifier(model, shape, classes)
        attack = SquareAttack(
            classifier, eps=eps, max_iter=queries - 1, p_init=0.8, nb_restarts=1, batch_size=batch, verbose=False
        )
        return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return Entrant("ART", "adversarial-robustness-toolbox", make)


def setting(model: str, weights: str | None, data: str, n: int) -> tuple[nn.Module, Tensor, Tensor, int]:
    """The model, the first `n` test images in [0, 1], their labels, and the number of classes."""
    images = load_data(data, run=Run()).test.select(slice(0, n))
    network = load_model(model, weights=weights, num_classes=images.num_classes, image_shape=images.shape)
    return network.eval(), to_float(images.x).contiguous(), images.y, images.num_classes


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = [(model(a).argmax(1) == b).double() for a, b in zip(x.split(250), y.split(250), strict=True)]
    return float(torch.cat(right).mean())


def contest(
    entrants: list[Entrant], model: nn.Module, x: Tensor, y: Tensor, rounds: int, eps: float, norm: Norm = "linf"
) -> None:
    """Let the entrants attack in turn, `rounds` times; a small attack first, so that nobody pays for warming up."""
    attacks: dict[str, Attack] = {}
    for entrant in entrants:
        try:
            attacks[entrant.name] = entrant.make(model)
            attacks[entrant.name](x[:8], y[:8])
        except Exception as error:  # a peer that cannot be imported or fails is a line in the table, not the end
            entrant.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    for round in range(rounds):
        for entrant in entrants if round % 2 == 0 else entrants[::-1]:
            if entrant.error:
                continue
            model.eval().to(memory_format=torch.contiguous_format)
            wall, cpu = time.perf_counter(), time.process_time()
            x_adv = attacks[entrant.name](x, y)
            entrant.cpu_seconds.append(time.process_time() - cpu)
            entrant.seconds.append(time.perf_counter() - wall)
            excess = float(distance(x_adv, x, norm).max()) - eps
            if excess > SLACK[norm] or float(x_adv.min()) < 0 or float(x_adv.max()) > 1:
                entrant.error = f"left the ball by {excess:.2g}"
            entrant.robust.append(accuracy(model, x_adv, y))
            print(
                f"round {round + 1}, {entrant.name}: {entrant.seconds[-1]:.1f} s, {entrant.robust[-1]:.2%}", flush=True
            )


def write(
    name: str,
    title: str,
    entrants: list[Entrant],
    settings: dict[str, object],
    clean: float,
    *,
    more_lines: Sequence[str] = (),
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write ``results/NAME.md`` and ``.json``. Ratios are of medians, to the fastest peer."""
    ran = [e for e in entrants if e.seconds and not e.error]
    fastest = min((e for e in ran if e.peer), key=lambda e: statistics.median(e.seconds), default=None)
    strongest = min((statistics.median(e.robust) for e in ran if e.peer), default=float("nan"))

    def ratio(entrant: Entrant, which: str) -> float | None:
        if fastest is None or entrant not in ran:
            return None
        return statistics.median(getattr(entrant, which)) / statistics.median(getattr(fastest, which))

    lines = [
        f"# {title}",
        "",
        ", ".join(f"{key} {value}" for key, value in settings.items()) + f", clean accuracy {clean:.2%}.",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; medians of "
        f"{max((len(e.seconds) for e in ran), default=0)} alternating rounds in one process. Time includes everything "
        "from the call to the adversarial images.",
        "",
        "| attack | version | seconds | of the fastest peer | CPU time, likewise | robust accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = []
    for entrant in entrants:
        row = {
            **{k: v for k, v in asdict(entrant).items() if k not in ("make",)},
            "version": entrant.version,
            "ratio": ratio(entrant, "seconds"),
            "cpu_ratio": ratio(entrant, "cpu_seconds"),
        }
        rows.append(row)
        if entrant in ran:
            lines.append(
                f"| {entrant.name} | {entrant.version} | {statistics.median(entrant.seconds):.2f} | "
                f"{row['ratio']:.2f}x | {row['cpu_ratio']:.2f}x | {statistics.median(entrant.robust):.2%} |"
            )
        else:
            lines.append(f"| {entrant.name} | {entrant.version} | not run: {entrant.error} | | | |")
    lines += more_lines
    ours = next(e for e in entrants if not e.peer)
    summary = {
        "ratio_to_fastest_peer": ratio(ours, "seconds"),
        "cpu_ratio_to_fastest_peer": ratio(ours, "cpu_seconds"),
        "points_above_strongest_peer": 100 * (statistics.median(ours.robust) - strongest) if ours in ran else None,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    content = {"settings": settings, "clean_accuracy": clean, "torch": torch.__version__, "summary": summary}
    content |= {"holdfast": holdfast.__version__, "threads": torch.get_num_threads(), "entrants": rows, **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print("\n".join(lines))
    print(json.dumps(summary))


def quiet() -> None:
    """Keep the peers' warnings out of the tables."""
    warnings.filterwarnings("ignore")
