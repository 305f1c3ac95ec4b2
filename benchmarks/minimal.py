"""C&W, DeepFool and HopSkipJump against torchattacks, foolbox and ART: time, success and median norm at equal budgets.

    python benchmarks/minimal.py --attack cw --model zoo:cifar10-resnet20 --n 100

writes ``results/cw.md`` and ``results/cw.json``, and likewise for ``deepfool`` and ``hopskipjump``; ``--norm linf``
adds ``-linf`` to the names. An equal budget is as many gradient steps (C&W), steps and candidates (DeepFool), or
queries (HopSkipJump). The peers' HopSkipJump takes iterations, so their queries are counted first, on a few images, and
holdfast gets as many as the most frugal of them spends on average.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import peers
import torch
from peers import Attack, Entrant
from torch import Tensor, nn

import holdfast
from holdfast.evasion import CW, DeepFool, HopSkipJump, MinimalAttack
from holdfast.evasion.balls import Norm, distance
from holdfast.run import Run


@dataclass
class Seeker(Entrant):
    """An entrant judged by how far it has to go."""

    medians: list[float] = field(default_factory=list)
    success: list[float] = field(default_factory=list)


class Single(nn.Module):
    """A model that takes float64 images for float32 ones; ART's HopSkipJump hands it some."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float())


class Counted(nn.Module):
    """Counts the images a model is shown."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x)


def ours(attack: MinimalAttack) -> Seeker:
    return Seeker(
        "holdfast", "holdfast", lambda model: lambda x, y: attack(model, x, y, run=Run(device="cpu")), peer=False
    )


def absent(name: str, package: str, why: str) -> Seeker:
    return Seeker(name, package, lambda model: lambda x, y: x, error=why)


def torchattacks_attack(name: str, options: argparse.Namespace, **more: float) -> Seeker:
    def make(model: nn.Module) -> Attack:
        import torchattacks

        attack = getattr(torchattacks, name)(model, **more)
        return peers.in_batches(lambda x, y: attack(x, y), options.batch)

    return Seeker("torchattacks", "torchattacks", make)


def foolbox_attack(build: Callable[[], object], options: argparse.Namespace) -> Seeker:
    def make(model: nn.Module) -> Attack:
        import foolbox

        wrapped, attack = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), build()

        def run(x: Tensor, y: Tensor) -> Tensor:
            # It cannot start from images that are misclassified already.
            right = (model(x).argmax(1) == y).nonzero().squeeze(1)
            x_adv = x.clone()
            if len(right):
                x_adv[right] = attack(wrapped, x[right], y[right], epsilons=None)[1]
            return x_adv

        return peers.in_batches(run, options.batch)

    return Seeker("foolbox", "foolbox", make)


def art_attack(build: Callable[[object], object], shape: tuple[int, ...], classes: int) -> Seeker:
    def make(model: nn.Module) -> Attack:
        attack = build(peers.art_classifier(Single(model).eval(), shape, classes))
        return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return Seeker("ART", "adversarial-robustness-toolbox", make)


def cw(options: argparse.Namespace, shape: tuple[int, ...], classes: int) -> list[Seeker]:
    rounds, steps, lr, c = options.binary_steps, options.steps, 0.01, 0.1
    first = ours(CW(norm=options.norm, binary_steps=rounds, steps=steps, lr=lr, c=c))

    def foolbox_cw() -> object:
        import foolbox

        return foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=rounds, steps=steps, stepsize=lr, initial_const=c
        )

    def art_l2(classifier: object) -> object:
        from art.attacks.evasion import CarliniL2Method

        return CarliniL2Method(
            classifier,
            learning_rate=lr,
            binary_search_steps=rounds,
            max_iter=steps,
            initial_const=c,
            batch_size=options.batch,
            verbose=False,
        )

    def art_linf(classifier: object) -> object:
        from art.attacks.evasion import CarliniLInfMethod

        return CarliniLInfMethod(classifier, learning_rate=lr, max_iter=steps, verbose=False)

    if options.norm == "linf":
        none = "it has no l_inf version"
        return [
            first,
            absent("torchattacks", "torchattacks", none),
            absent("foolbox", "foolbox", none),
            art_attack(art_linf, shape, classes),
        ]
    return [
        first,
        # No search for c: the value nearest to what the others end at, and all steps in one go.
        torchattacks_attack("CW", options, c=1, steps=rounds * steps, lr=lr),
        foolbox_attack(foolbox_cw, options),
        art_attack(art_l2, shape, classes),
    ]


def deepfool(options: argparse.Namespace, shape: tuple[int, ...], classes: int) -> list[Seeker]:
    steps, candidates, overshoot = 50, 10, 0.02
    first = ours(DeepFool(norm=options.norm, steps=steps, candidates=candidates, overshoot=overshoot))

    def foolbox_deepfool() -> object:
        import foolbox

        name = "LinfDeepFoolAttack" if options.norm == "linf" else "L2DeepFoolAttack"
        return getattr(foolbox.attacks, name)(steps=steps, candidates=candidates, overshoot=overshoot)

    def art_deepfool(classifier: object) -> object:
        import art.attacks.evasion

        return art.attacks.evasion.DeepFool(
            classifier,
            max_iter=steps,
            epsilon=overshoot,
            nb_grads=candidates,
            batch_size=options.batch,
            verbose=False,
        )

    second = foolbox_attack(foolbox_deepfool, options)
    if options.norm == "linf":
        none = "it has no l_inf version"
        return [
            first,
            absent("torchattacks", "torchattacks", none),
            second,
            absent("ART", "adversarial-robustness-toolbox", none),
        ]
    return [
        first,
        torchattacks_attack("DeepFool", options, steps=steps, overshoot=overshoot),
        second,
        art_attack(art_deepfool, shape, classes),
    ]


def hopskipjump(options: argparse.Namespace, shape: tuple[int, ...], classes: int) -> list[Seeker]:
    """The peers; ours joins once their queries have been counted."""

    def foolbox_jumps() -> object:
        import foolbox

        return foolbox.attacks.HopSkipJumpAttack(steps=options.iterations, constraint=options.norm)

    def art_jumps(classifier: object) -> object:
        import art.attacks.evasion

        norm = "inf" if options.norm == "linf" else 2
        return art.attacks.evasion.HopSkipJump(
            classifier, norm=norm, max_iter=options.iterations, batch_size=options.batch, verbose=False
        )

    return [
        absent("torchattacks", "torchattacks", "it has no such attack"),
        foolbox_attack(foolbox_jumps, options),
        art_attack(art_jumps, shape, classes),
    ]


def attempt(entrant: Seeker, model: nn.Module, x: Tensor, y: Tensor) -> Attack | None:
    """Make the attack and try it; None, and the reason noted, where it fails."""
    if entrant.error:
        return None
    try:
        attack = entrant.make(model)
        attack(x, y)
    except Exception as error:  # a peer that cannot be imported or fails is a line in the table, not the end
        entrant.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None
    return attack


def count_queries(entrants: list[Seeker], model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Images the model is shown per image attacked, by name."""
    spent = {}
    for entrant in entrants:
        counted = Counted(model).eval()
        if attempt(entrant, counted, x, y) is not None:
            spent[entrant.name] = counted.rows / len(x)
    return spent


def contest(entrants: list[Seeker], model: nn.Module, x: Tensor, y: Tensor, rounds: int, norm: Norm) -> None:
    """Let the entrants attack in turn, `rounds` times, the order reversed each time."""
    with torch.no_grad():
        right = model(x).argmax(1) == y
    attacks = {entrant.name: attempt(entrant, model, x[:2], y[:2]) for entrant in entrants}
    for round in range(rounds):
        for entrant in entrants if round % 2 == 0 else entrants[::-1]:
            attack = attacks[entrant.name]
            if attack is None or entrant.error:
                continue
            model.eval().to(memory_format=torch.contiguous_format)
            wall, cpu = time.perf_counter(), time.process_time()
            x_adv = attack(x, y).detach()
            entrant.cpu_seconds.append(time.process_time() - cpu)
            entrant.seconds.append(time.perf_counter() - wall)
            if float(x_adv.min()) < -1e-6 or float(x_adv.max()) > 1 + 1e-6:
                entrant.error = f"left the box: {float(x_adv.min()):.3g} to {float(x_adv.max()):.3g}"
            with torch.no_grad():
                fooled = torch.cat([model(part).argmax(1) for part in x_adv.split(250)]) != y
            far = distance(x_adv, x, norm).masked_fill(~fooled, float("inf"))[right]
            entrant.medians.append(float(far.median()))
            entrant.success.append(float(fooled[right].double().mean()))
            entrant.robust.append(1 - float(fooled.double().mean()))
            print(
                f"round {round + 1}, {entrant.name}: {entrant.seconds[-1]:.1f} s, {entrant.success[-1]:.1%} fooled, "
                f"median {entrant.medians[-1]:.5f}",
                flush=True,
            )


def write(name: str, title: str, entrants: list[Seeker], settings: dict[str, object]) -> None:
    """Write ``results/NAME.md`` and ``.json``. Times are medians over the rounds."""
    ran = [e for e in entrants if e.seconds and not e.error]
    rivals = [e for e in ran if e.peer]
    us = next(e for e in entrants if not e.peer)

    def middle(entrant: Seeker, which: str) -> float:
        return statistics.median(getattr(entrant, which))

    nearest = min((middle(e, "medians") for e in rivals), default=float("nan"))
    fastest = min((middle(e, "seconds") for e in rivals), default=float("nan"))
    # A peer that stops early is quick and weak; what counts is the time of one that is as strong.
    strong = [middle(e, "seconds") for e in rivals if middle(e, "medians") <= 1.02 * nearest]
    summary = {
        "median_norm_to_best_peer": middle(us, "medians") / nearest if us in ran else None,
        "ratio_to_fastest_peer": middle(us, "seconds") / fastest if us in ran else None,
        "ratio_to_fastest_strong_peer": middle(us, "seconds") / min(strong) if us in ran and strong else None,
    }
    lines = [
        f"# {title}",
        "",
        ", ".join(f"{key} {value}" for key, value in settings.items()) + ".",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of "
        f"{max((len(e.seconds) for e in ran), default=0)} alternating rounds in one process. Norms and success are "
        "over the images classified rightly; a failure counts as infinitely far.",
        "",
        "| attack | version | seconds | of the fastest peer | success | median norm | of the nearest peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for e in entrants:
        if e in ran:
            seconds, norm = middle(e, "seconds"), middle(e, "medians")
            lines.append(
                f"| {e.name} | {e.version} | {seconds:.2f} | {seconds / fastest:.2f}x | {middle(e, 'success'):.1%} | "
                f"{norm:.5f} | {norm / nearest:.3f}x |"
            )
        else:
            lines.append(f"| {e.name} | {e.version} | not run: {e.error} | | | | |")
    rows = [{**{k: v for k, v in asdict(e).items() if k != "make"}, "version": e.version} for e in entrants]
    peers.RESULTS.mkdir(exist_ok=True)
    (peers.RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    content = {"settings": settings, "torch": torch.__version__, "holdfast": holdfast.__version__, "summary": summary}
    content |= {"threads": torch.get_num_threads(), "entrants": rows}
    (peers.RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print("\n".join(lines))
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", choices=("cw", "deepfool", "hopskipjump"), default="cw")
    parser.add_argument("--norm", choices=("l2", "linf"), default="l2")
    parser.add_argument("--model", default="zoo:cifar10-resnet20")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--binary-steps", type=int, default=5, help="of C&W")
    parser.add_argument("--steps", type=int, default=200, help="of C&W")
    parser.add_argument("--iterations", type=int, default=10, help="of the peers' HopSkipJump")
    parser.add_argument("--without", nargs="*", default=[], help="names of peers to leave out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="of the peers; near the fastest for each on a CPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", help="of the result files; by default that of the attack")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peers.quiet()
    model, x, y, classes = peers.setting(options.model, options.weights, options.data, options.n)
    shape = tuple(x.shape[1:])
    settings: dict[str, object] = {"model": options.model, "images": len(x), "norm": options.norm}
    entrants = {"cw": cw, "deepfool": deepfool, "hopskipjump": hopskipjump}[options.attack](options, shape, classes)
    for entrant in entrants:
        entrant.error = entrant.error or ("left out" if entrant.name in options.without else "")
    if options.attack == "cw":
        settings |= {"values of c": options.binary_steps, "steps": options.steps, "first c": 0.1, "learning rate": 0.01}
    elif options.attack == "deepfool":
        settings |= {"steps": 50, "candidates": "10 (torchattacks: all)", "overshoot": 0.02}
    else:
        spent = count_queries(entrants, model, x[:4], y[:4])
        queries = int(min(spent.values(), default=1000))
        entrants.insert(0, ours(HopSkipJump(norm=options.norm, queries=queries)))
        counted = ", ".join(f"{name} {rows:.0f}" for name, rows in spent.items())
        settings |= {
            "iterations of the peers": options.iterations,
            "queries per image": f"{counted}, holdfast {queries}",
        }
    settings["batch of the peers"] = options.batch
    contest(entrants, model, x, y, options.rounds, options.norm)
    name = options.name or options.attack + ("-linf" if options.norm == "linf" else "")
    title = {"cw": "C&W", "deepfool": "DeepFool", "hopskipjump": "HopSkipJump"}[options.attack]
    write(name, f"{title}: holdfast, torchattacks, foolbox, ART", entrants, settings)


if __name__ == "__main__":
    main()
