"""What the proofs of unlearning in diffusion models share: a small model told texts, and a judge of what it draws.

The pictures are those of `shapes32` at 16x16, in plain colours, with captions such as "red disc on striped". The model
and the judge are trained once per scale and seed and kept in the cache. At smoke scale the model has hardly begun to
learn: it draws some of the colours that it is asked for and no shapes, and its judge sees hardly more. There,
experiments with colours show something, and those with shapes only that they run.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import holdfast
from holdfast.data import Images
from holdfast.data.drawing import PATTERNS, SHAPES
from holdfast.data.resize import resized
from holdfast.data.shapes32 import COLOURS, TEXTURES, Shapes32
from holdfast.files import cache_dir
from holdfast.generative import DDPMDDIMCFG, Diffusion, Judge, load_diffusion, sample, save_diffusion, train_judge
from holdfast.models import load_weights, save_weights
from holdfast.proofs.lab import Lab
from holdfast.run import Run

__all__ = ["DiffusionBench", "Drawn", "Kept", "captioned_shapes", "diffusion_bench", "kept", "place_for", "prompts"]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {"shape": tuple(SHAPES), "colour": tuple(COLOURS)}
_SIDE = 16


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures drawn for prompts, and what the judge sees in them.

    Args:
        prompts: N texts.
        x: pictures in [0, 1], (N, 3, H, W).
        asked, seen: places of the values asked for and seen, by attribute, int64 (N,).
    """

    prompts: list[str]
    x: Tensor
    asked: Mapping[str, Tensor]
    seen: Mapping[str, Tensor]

    def right(self, attribute: str) -> Tensor:
        """Where the judge sees what was asked for, bool (N,)."""
        return self.asked[attribute] == self.seen[attribute]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a model draws after one concept was to be erased.

    Args:
        ua: share of the pictures of the erased concept in which the judge does not see it (unlearning accuracy).
        ira: share of the other pictures in which it sees the other concept of the same attribute that was asked for.
        cra: share of the other pictures in which it sees what was asked for of the other attribute.
        n: pictures of the erased concept, and others.
    """

    ua: float
    ira: float
    cra: float
    n: tuple[int, int]


@dataclass(frozen=True, eq=False)
class DiffusionBench:
    """A model, its judge, and the pictures they learnt from.

    Args:
        lab: of the experiment.
        model: told texts; never changed, as `original` gives copies.
        judge: of shape and colour.
        train: captioned pictures that both learnt from.
        test: others.
    """

    lab: Lab
    model: Diffusion
    judge: Judge
    train: Images
    test: Images

    def original(self) -> Diffusion:
        """A copy of the model, to be changed."""
        return copy.deepcopy(self.model)

    def images_of(self, concept: str) -> Images:
        """The training pictures whose caption names a concept."""
        names = [concept in str(caption).split() for caption in self.train.columns["caption"]]
        return self.train.select(torch.tensor(names), name=f"pictures of {concept}")

    def draw(self, model: Diffusion, asked: Sequence[str], *, guidance: float = 2.0, name: str = "draw") -> Drawn:
        """Draw a picture for each prompt, by DDIM with 50 steps, and show it to the judge.

        Args:
            model: told texts.
            asked: prompts that each name a shape and a colour.
            guidance: see `sample`.
            name: of the random stream; the same name and prompts begin with the same noise for any model.
        """
        run = self.lab.run.child(name)
        x = sample(
            model, of=list(asked), sampler=f"ddim(steps={self.lab.pick(smoke=10, cpu=50)})", guidance=guidance, run=run
        )
        places = {
            attribute: torch.tensor([next(i for i, v in enumerate(values) if v in text.split()) for text in asked])
            for attribute, values in ATTRIBUTES.items()
        }
        return Drawn(list(asked), x, places, self.judge.says(x, run=run))

    def unlearnt(self, model: Diffusion, concept: str, *, each: int = 1, guidance: float = 2.0) -> Kept:
        """How well a concept was erased and the others were kept.

        Args:
            model: told texts.
            concept: a shape or a colour.
            each: pictures for every pair of shape and colour, each on another background.
            guidance: see `sample`.
        """
        attribute = next(name for name, values in ATTRIBUTES.items() if concept in values)
        other = next(name for name in ATTRIBUTES if name != attribute)
        # Of the erased concept there are few pairs: as many pictures again as make its share comparable.
        erased = self.draw(model, prompts(**{attribute: [concept]}, each=6 * each), guidance=guidance, name="erased")
        kept = [value for value in ATTRIBUTES[attribute] if value != concept]
        others = self.draw(model, prompts(**{attribute: kept}, each=each), guidance=guidance, name="others")
        return Kept(
            ua=1 - float(erased.right(attribute).double().mean()),
            ira=float(others.right(attribute).double().mean()),
            cra=float(others.right(other).double().mean()),
            n=(len(erased.prompts), len(others.prompts)),
        )


@functools.lru_cache(maxsize=1)
def diffusion_bench(lab: Lab) -> DiffusionBench:
    """The bench of a scale and seed."""
    count = lab.pick(smoke=5000, cpu=50_000)
    train, test = captioned_shapes(count, "train"), captioned_shapes(count // 10, "test")
    run = Run(seed=lab.run.seed, device=lab.run.device, progress=lab.run.progress)
    judge = Judge(ATTRIBUTES, train.shape, run=run)
    epochs = lab.pick(smoke=8, cpu=12)
    path = place_for("judge", lab, train, {"epochs": epochs}).with_suffix(".safetensors")
    if path.is_file():
        load_weights(judge, path)
    else:
        judge = train_judge(train, {"colour": ATTRIBUTES["colour"]}, attribute="shape", epochs=epochs, run=run)
        save_weights(judge, path)
    return DiffusionBench(lab, _model(lab, train, run), judge.eval(), train, test)


def captioned_shapes(count: int, split: str) -> Images:
    """Those of `count` pictures of shapes that are of plain colour, at 16x16, with captions like "red disc on dotted".

    Args:
        count: pictures drawn; a fifth are plain.
        split: ``train`` or ``test``.
    """
    drawn = Shapes32(minority=0.0).draw(split, count)
    images = drawn.select(torch.as_tensor(drawn.columns["texture"]) == TEXTURES.index("plain"))
    colours, grounds = (torch.as_tensor(images.columns[name]).tolist() for name in ("colour", "background"))
    names = (tuple(COLOURS), tuple(PATTERNS))
    captions = [
        f"{names[0][c]} {images.classes[y]} on {names[1][g]}"
        for y, c, g in zip(images.y.tolist(), colours, grounds, strict=True)
    ]
    columns = {"colour": images.columns["colour"], "caption": np.asarray(captions)}
    return images.but(x=resized(images.x, (_SIDE, _SIDE)), columns=columns, name=f"captioned shapes {split}")


def prompts(
    *, shape: Sequence[str] = tuple(SHAPES), colour: Sequence[str] = tuple(COLOURS), each: int = 1
) -> list[str]:
    """Prompts for every pair of shape and colour, `each` of them, with backgrounds in turn."""
    pairs = [(s, c) for s in shape for c in colour]
    grounds = tuple(PATTERNS)
    return [
        f"{c} {s} on {grounds[(place + 3 * turn) % len(grounds)]}"
        for turn in range(each)
        for place, (s, c) in enumerate(pairs)
    ]


def _model(lab: Lab, train: Images, run: Run) -> Diffusion:
    method = DDPMDDIMCFG(
        updates=lab.pick(smoke=500, cpu=6000),
        batch_size=lab.pick(smoke=32, cpu=64),
        lr=lab.pick(smoke=2e-3, cpu=1e-3),
        ema=lab.pick(smoke=0.99, cpu=0.999),
        width=lab.pick(smoke=12, cpu=24),
        multipliers=(1, 2, 2),
        cross_attention=(1, 2),
        tokens=10,  # room for five more in a prompt
    )
    place = place_for("diffusion", lab, train, {"method": repr(method)})
    return kept(lambda where: method(train, run=where), place, run=run)


def kept(make: Callable[[Run], Diffusion], folder: Path, *, run: Run) -> Diffusion:
    """The model in a folder; where there is none, it is made and put there.

    Args:
        make: trains it, given a run with a folder in which a training that was stopped goes on.
        folder: of the model; that of the training stands beside it until the model is there.
        run: of the training.
    """
    if not (folder / "model.json").is_file():
        training = folder.with_name(f"{folder.name}-training")
        save_diffusion(make(run.but(out=training)), folder)
        shutil.rmtree(training, ignore_errors=True)
    return load_diffusion(folder)


def place_for(what: str, lab: Lab, train: Images, more: Mapping[str, object]) -> Path:
    """Where in the cache something trained belongs, by all that decides it."""
    identity = {
        **more,
        "data": train.fingerprint(),
        "seed": lab.run.seed,
        "device": lab.run.torch_device.type,
        "versions": [holdfast.__version__, torch.__version__],
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    return cache_dir("lab") / f"{what}-{key}"
