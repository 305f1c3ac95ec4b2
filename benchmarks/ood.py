"""OOD detectors beside pytorch-ood: do their scores agree, and what do they cost together?

    python benchmarks/ood.py --n 10000

writes ``results/ood.md`` and ``results/ood.json``. Scores are compared on the same features. For time, each library
gets its fitted detectors and scores the same images: holdfast all of them in one pass, pytorch-ood one after the other,
as its detectors take images. The bare forward pass over the same images stands beside both.

pytorch-ood imports torchvision, of which its detectors use nothing; where that is missing, stand-ins take its place.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import peers
import torch
from torch import Tensor, nn

from holdfast.data import Images, load_data
from holdfast.data.images import to_float
from holdfast.models import Features, classifier_head, extract, frozen, load_model
from holdfast.models.features import tap_input
from holdfast.ood import FittedDetector, fit_detectors, fit_on_features, score_detectors
from holdfast.run import Run


@dataclass(frozen=True)
class Pair:
    """One detector in both libraries.

    Args:
        ours: the spec.
        theirs: makes pytorch-ood's from the parts of the model.
        reads: what the peer's scores are made from: ``logits``, ``features`` or ``maps``.
        fit: how the peer is fitted: not at all, on ``features``, ``logits``, ``right logits`` (those of rightly
            classified images), or ``maps``.
        change: brings our score to the peer's definition where the two differ by a known, monotone map.
        why: that map, or the difference where scores are not expected to agree, in words.
    """

    ours: str
    theirs: Callable[[Parts], Any]
    reads: str
    fit: str = ""
    change: Callable[[Tensor], Tensor] = lambda score: score
    why: str = ""


@dataclass(frozen=True)
class Parts:
    """A model taken apart as pytorch-ood wants it; features and maps are those before the head."""

    model: nn.Module
    encoder: Callable[[Tensor], Tensor]
    head: nn.Linear

    def maps(self, x: Tensor) -> Tensor:
        """The pooled features as maps of one pixel: what is edited is then the same in both libraries."""
        return self.encoder(x)[:, :, None, None]

    def after(self, maps: Tensor) -> Tensor:
        return self.head(maps.flatten(1))


def with_stand_ins() -> Any:
    """pytorch-ood, with modules in place of torchvision's where that is not installed."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # absent, or of another build
        parts = ("transforms", "transforms.functional", "models", "models.resnet", "datasets", "datasets.utils")
        for name in ("torchvision", *(f"torchvision.{part}" for part in parts)):
            sys.modules[name] = _Anything(name)
    import pytorch_ood.detector

    return pytorch_ood.detector


class _Anything(types.ModuleType):
    """A module that has every name; each is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def pairs(theirs: Any, n: int, classes: int) -> list[Pair]:
    """The detectors of both libraries, with equal hyperparameters, for `n` training images of some classes."""

    def of_maps(name: str, **more: Any) -> Callable[[Parts], Any]:
        return lambda p: getattr(theirs, name)(backbone=p.maps, head=p.after, **more)

    def of_head(name: str, **more: Any) -> Callable[[Parts], Any]:
        return lambda p: getattr(theirs, name)(p.encoder, w=p.head.weight, b=p.head.bias, **more)

    softmax = "ours is the log odds of the same probability"
    summed = "theirs does not divide its covariance by the number of images"
    clipped = "theirs clips probabilities to 1e-7"
    return [
        Pair("msp", lambda p: theirs.MaxSoftmax(p.model), "logits", change=lambda s: -torch.sigmoid(-s), why=softmax),
        Pair("max-logit", lambda p: theirs.MaxLogit(p.model), "logits"),
        Pair("energy", lambda p: theirs.EnergyBased(p.model), "logits"),
        Pair("entropy", lambda p: theirs.Entropy(p.model), "logits", why=clipped),
        Pair(
            "gen",
            lambda p: theirs.GEN(p.model),
            "logits",
            change=lambda s: s / classes,
            why=f"theirs is the mean, not the sum; {clipped}, whose power 0.1 is large",
        ),
        Pair("klm", lambda p: theirs.KLMatching(p.model), "logits", fit="logits"),
        Pair(
            "openmax(alpha=10, tail=25)",
            lambda p: theirs.OpenMax(p.model, tailsize=25, alpha=10),
            "logits",
            fit="right logits",
            change=torch.sigmoid,
            why=f"{softmax}; theirs fits on all images of a class, and was given the rightly classified ones",
        ),
        Pair(
            "mahalanobis",
            lambda p: theirs.Mahalanobis(p.encoder),
            "features",
            fit="features",
            change=lambda s: s / (2 * n),
            why=f"{summed}, and halves the distance",
        ),
        Pair(
            "relative-mahalanobis",
            lambda p: theirs.RMD(p.encoder),
            "features",
            fit="features",
            change=lambda s: s / n,
            why=summed,
        ),
        Pair("knn", lambda p: theirs.KNN(p.encoder), "features", fit="features"),
        Pair("vim", of_head("ViM", d=32), "features", fit="features", why="theirs is float32 throughout"),
        Pair("dice", of_head("DICE", p=0.9), "features", fit="features"),
        Pair("she", lambda p: theirs.SHE(p.encoder, p.head), "features", fit="features"),
        Pair("fdbd", lambda p: theirs.fDBD(p.encoder, p.head), "features", fit="features"),
        Pair("react", of_maps("ReAct"), "maps", fit="maps"),
        Pair("ash", of_maps("ASH"), "maps"),
        Pair("scale(percentile=65)", of_maps("SCALE"), "maps"),
        Pair("vra", of_maps("VRA"), "maps", fit="maps"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:cifar10-resnet20")
    parser.add_argument("--n", type=int, default=10_000, help="known and as many unknown images")
    parser.add_argument("--train", type=int, help="training images to fit on; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--more", default="gram,rankfeat,kpca-ood,gradnorm,bats,nnguide", help="of ours, beyond those")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    peers.quiet()
    theirs = with_stand_ins()
    run = Run()
    data = load_data("cifar10", run=run)
    known = data.test.select(slice(0, options.n))
    unknown = load_data("cifar100", run=run).test.select(slice(0, options.n))
    train = data.train if options.train is None else data.train.select(slice(0, options.train))
    model = load_model(options.model).eval()
    with frozen(model):
        head = classifier_head(model)
    assert head is not None

    def encoder(x: Tensor) -> Tensor:
        with tap_input(head) as inputs:
            model(x)
        return inputs[0]

    parts = Parts(model, encoder, head)
    table = pairs(theirs, len(train), data.num_classes)
    features = {name: extract(model, images, run=run) for name, images in (("train", train), ("known", known))}
    started = time.perf_counter()
    ours = fit_on_features([p.ours for p in table], features["train"], head)
    our_fit = time.perf_counter() - started
    fitted = dict(zip((p.ours for p in table), ours.values(), strict=True))
    rows, entrants = [], {}
    for pair in table:
        started = time.perf_counter()
        peer = fitted_peer(pair, parts, features["train"])
        fit_seconds = time.perf_counter() - started
        same = agreement(pair, fitted[pair.ours], peer, features["known"])
        rows.append({"detector": pair.ours, **same, "peer fit": fit_seconds, "why": pair.why})
        entrants[pair.ours] = peer
        print(rows[-1], flush=True)
    more = [name for name in options.more.split(",") if name]
    started = time.perf_counter()
    fitted |= fit_detectors(more, model, train, run=run)
    more_fit = time.perf_counter() - started

    timed: dict[str, list[float]] = {"bare forward": [], "holdfast": [], "holdfast, shared list": [], "pytorch-ood": []}
    shared = {p.ours: fitted[p.ours] for p in table}
    for round in range(options.rounds):
        for name, work in (
            ("bare forward", lambda: bare(model, (known, unknown))),
            ("holdfast", lambda: [score_detectors(fitted, model, images, run=run) for images in (known, unknown)]),
            ("holdfast, shared list", lambda: [score_detectors(shared, model, i, run=run) for i in (known, unknown)]),
            ("pytorch-ood", lambda: one_by_one(entrants, (known, unknown))),
        ):
            if name == "pytorch-ood" and round:
                continue  # minutes, and its ratio is far from the limit
            started = time.perf_counter()
            work()
            timed[name].append(time.perf_counter() - started)
            print(f"round {round + 1}, {name}: {timed[name][-1]:.1f} s", flush=True)
    write(options, rows, timed, our_fit, more, more_fit, sum(r["peer fit"] for r in rows), len(train))


def fitted_peer(pair: Pair, parts: Parts, train: Features) -> Any:
    peer = pair.theirs(parts)
    if pair.fit == "right logits":
        train = train.select(train.predictions == train.y)
    if pair.fit.endswith("logits"):
        peer.fit_logits(train.logits, train.y)
    elif pair.fit == "features":
        peer.fit_features(train.penultimate, train.y)
    elif pair.fit == "maps":
        peer.fit_feature_maps(train.penultimate[:, :, None, None], train.y)
    return peer


@torch.no_grad()
def agreement(pair: Pair, ours: FittedDetector, peer: Any, known: Features) -> dict[str, float]:
    """The largest difference of scores relative to their spread, and whether they rank alike."""
    mine = pair.change(ours.score(known))
    if pair.reads == "logits":
        other = peer.predict_logits(known.logits)
    elif pair.reads == "features":
        other = peer.predict_features(known.penultimate)
    else:
        other = peer.predict_feature_maps(known.penultimate[:, :, None, None])
    other = torch.as_tensor(other).double()
    scale = other.abs().max().clamp_min(1e-12)
    ranks = [torch.from_numpy(np.argsort(np.argsort(s.numpy(), kind="stable"))).double() for s in (mine, other)]
    return {
        "largest relative difference": float((mine - other).abs().max() / scale),
        "rank correlation": float(torch.corrcoef(torch.stack(ranks))[0, 1]),
    }


@torch.no_grad()
def bare(model: nn.Module, sets: tuple[Images, ...]) -> None:
    """The floor: the model on all images in batches, kept nowhere."""
    for images in sets:
        for start in range(0, len(images), 128):
            model(to_float(images.x[start : start + 128]))


@torch.no_grad()
def one_by_one(entrants: dict[str, Any], sets: tuple[Images, ...]) -> None:
    for peer in entrants.values():
        for images in sets:
            torch.cat([peer.predict(to_float(images.x[start : start + 128])) for start in range(0, len(images), 128)])


def write(
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    timed: dict[str, list[float]],
    our_fit: float,
    more: list[str],
    more_fit: float,
    peer_fit: float,
    n_train: int,
) -> None:
    medians = {name: statistics.median(values) for name, values in timed.items()}
    floor = medians["bare forward"]
    version = importlib.metadata.version("pytorch-ood")
    lines = [
        "# OOD detectors: holdfast, pytorch-ood",
        "",
        f"{options.model}, {options.n} known (CIFAR-10) and as many unknown images (CIFAR-100), fitted on {n_train}.",
        f"torch {torch.__version__}, pytorch-ood {version}, {torch.get_num_threads()} threads; medians of up to "
        f"{options.rounds} rounds in one process. Time is from images to scores.",
        "",
        "| what | detectors | seconds | of the bare pass | fit, seconds |",
        "| --- | --- | --- | --- | --- |",
        f"| bare forward pass | | {floor:.1f} | 1.00x | |",
        f"| holdfast, the same list | {len(rows)} | {medians['holdfast, shared list']:.1f} | "
        f"{medians['holdfast, shared list'] / floor:.2f}x | {our_fit:.1f} (features at hand) |",
        f"| holdfast, with {', '.join(more)} | {len(rows) + len(more)} | {medians['holdfast']:.1f} | "
        f"{medians['holdfast'] / floor:.2f}x | {more_fit:.1f} more |",
        f"| pytorch-ood | {len(rows)} | {medians['pytorch-ood']:.1f} | {medians['pytorch-ood'] / floor:.2f}x | "
        f"{peer_fit:.1f} (features at hand) |",
        "",
        f"On it pytorch-ood takes {medians['pytorch-ood'] / medians['holdfast, shared list']:.1f} times as long.",
        "",
        "| detector | largest difference of scores, of the largest score | rank correlation | compared how |",
        "| --- | --- | --- | --- |",
        *(
            f"| {r['detector']} | {r['largest relative difference']:.1e} | {r['rank correlation']:.6f} | {r['why']} |"
            for r in rows
        ),
    ]
    peers.RESULTS.mkdir(exist_ok=True)
    (peers.RESULTS / "ood.md").write_text("\n".join(lines) + "\n")
    content = {"torch": torch.__version__, "pytorch-ood": version, "threads": torch.get_num_threads()}
    content |= {"options": vars(options), "agreement": rows, "seconds": timed, "fit": [our_fit, more_fit, peer_fit]}
    (peers.RESULTS / "ood.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
