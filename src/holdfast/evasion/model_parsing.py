"""Model parsing: adversarial examples tell what kind of model they were made on.

A perturbation follows the gradient of one model, and kernels and activations leave their marks in it. A small network
learns to read them from attacks on victims whose making is known, and names the attributes of the model behind attacks
on images it has not seen.

Yao et al., "Can Adversarial Examples Be Parsed to Reveal Victim Model Information?", arXiv:2303.07474, 2023. The
authors keep the weights that do best on the test images; here those of the last epoch count. Their variant that learns
a denoiser for when the clean images are missing is not included: give `Parser.parse` any estimate of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog, stats
from holdfast.data.images import Images
from holdfast.data.order import first_images
from holdfast.errors import UserError
from holdfast.evasion.parsing_network import Parser, Reads, Rounding, Scale, new_net
from holdfast.evasion.victims import Examples, Victim, attack_victims, attributes_of, weights_from
from holdfast.methods import Analysis, Attack, Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, Cosine, Step, fit
from holdfast.training.train import pixel_statistics

__all__ = ["Judgement", "ModelParsing", "ParsingReport", "judge"]


@dataclass(frozen=True, kw_only=True)
class ModelParsing(
    Analysis,
    id="model-parsing",
    title="Model parsing of adversarial attacks",
    paper=Paper(
        title="Can Adversarial Examples Be Parsed to Reveal Victim Model Information?", arxiv="2303.07474", year=2023
    ),
):
    """Tell from adversarial examples what the model they were made on is like.

    For whoever finds adversarial images and asks what the attacker had. The answer is as good as the victims: the
    parser knows their attributes and their attacks only, and attacks of another kind or strength it reads badly. Costs
    the attacks on every victim, and the training of a small network.

    Args:
        attacks: their specs; each is run on every victim.
        reads: the perturbation, ``"delta"``, for which one needs the clean images; or the attacked ``"image"`` alone,
            which is harder.
        scale: ``"max"`` divides each perturbation by its largest absolute value, so that it can be read at another
            strength; ``"none"`` leaves it as it is.
        rounding: ``"8-bit"`` rounds clean and attacked images to bytes, as they travel; ``"none"`` takes the attack's
            own floats, as the paper does.
        width: channels of the network.
        epochs, lr, batch_size: of its training, by SGD without momentum, the rate falling along a cosine.
        share: of the images, the first ones, from whose attacked versions it learns; it is judged on the others.
    """

    attacks: tuple[str, ...] = ("fgsm", "pgd(steps=10)")
    reads: Reads = "delta"
    scale: Scale = "none"
    rounding: Rounding = "8-bit"
    width: Annotated[int, Field(ge=1)] = 64
    epochs: Annotated[int, Field(ge=1)] = 100
    lr: Annotated[float, Field(gt=0)] = 0.1
    batch_size: Annotated[int, Field(ge=2)] = 512
    share: Annotated[float, Field(gt=0, lt=1)] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attacks)) != len(self.attacks) or not self.attacks:
            raise UserError(f"{self.id}: attacks must be different attacks, at least one, got {list(self.attacks)}.")
        for spec in self.attacks:
            catalog.build(spec, kind=Attack)
        if self.scale == "max" and self.reads == "image":
            raise UserError(f"{self.id}: scale must be 'none' where the image is read, got 'max'.")

    def __call__(self, victims: Sequence[Victim], images: Images, *, run: Run) -> ParsingReport:
        """Attack the victims, learn to parse the attacks, and see how well that goes.

        Args:
            victims: with the same attributes each; those attributes are learnt that differ between them.
            images: with their true labels; of a set that is sorted by class, the order is mixed first.
            run: device, seed, batch size. With ``run.out``, a training of the network that was stopped goes on.

        Raises:
            UserError: as the attacks do, victims do not differ, or nothing fools one of them.
        """
        attributes_of([victim.attributes for victim in victims])  # before any work is done
        images = first_images(images, None, run.rng("order"))
        examples = attack_victims(victims, self.attacks, images, rounding=self.rounding, run=run)
        return self.study(examples, images.name, run=run)

    def of_models(self, models: Mapping[str, nn.Module], images: Images, *, run: Run) -> ParsingReport:
        """Tell the models themselves apart: the one attribute is which of them it was."""
        victims = [Victim(model=model, attributes={"model": name}) for name, model in models.items()]
        return self(victims, images, run=run)

    def study(self, examples: Examples, images: str = "images", *, run: Run) -> ParsingReport:
        """As a call, from examples that there are already; `images` is the name of what they were made of."""
        seen, unseen = examples.halves(self.share)
        for part, which in ((seen, "first"), (unseen, "other")):
            counts = torch.bincount(part.victim, minlength=len(part.victims))
            if not counts.all():
                victim = "-".join(part.victims[int(counts.argmin())].values())
                raise UserError(
                    f"{self.id}: no attack fools the victim {victim} on the {which} images: "
                    "take more images, or stronger attacks."
                )
        parser = dataclasses.replace(self.learn(seen, run=run), images=images)
        judged = judge(parser, unseen, run=run)
        parser = dataclasses.replace(parser, accuracy={name: row[0] for name, row in judged.accuracy.items()})
        return ParsingReport(
            images=images,
            method=str(self),
            kept={attack: _per_victim(examples.of(attack)) for attack in examples.attacks},
            judged=judged,
            by_attack={
                attack: judge(parser, part, run=run) for attack in examples.attacks if len(part := unseen.of(attack))
            },
            parser=parser,
        )

    def learn(self, examples: Examples, *, run: Run) -> Parser:
        """Train a parser on all of some examples; every victim weighs the same, however many there are of it."""
        attributes = attributes_of(examples.victims)
        labels = examples.labels(attributes)
        counts = torch.bincount(examples.victim, minlength=len(examples.victims))
        weight = (len(examples) / (len(counts) * counts.clamp_min(1)))[examples.victim]
        first = next(iter(attributes))
        inputs = Images(
            x=examples.inputs(self.reads, self.rounding),
            y=labels[:, 0],
            classes=attributes[first],
            columns={"attributes": labels, "weight": weight},
            name="attacked images",
        )
        mean, std = pixel_statistics(inputs)
        with weights_from(run.rng("parser")):
            net = new_net(attributes, inputs.shape, self.width, self.scale, mean, std)
        fit(
            net,
            inputs,
            epochs=self.epochs,
            batch_size=self.batch_size,
            objective=_Heads(sizes=tuple(map(len, attributes.values()))),
            optimizer=SGD(lr=self.lr, momentum=0.0, nesterov=False, weight_decay=0.0),
            schedule=Cosine(),
            run=run.child("parser"),
        )
        return Parser(
            net=net,
            attributes=attributes,
            image_shape=inputs.shape,
            width=self.width,
            reads=self.reads,
            scale=self.scale,
            rounding=self.rounding,
            attacks=tuple(attack for attack in examples.attacks if len(examples.of(attack))),
        )


@dataclass(frozen=True, kw_only=True)
class _Heads(Objective):
    """The mean cross-entropy of all heads, whose logits stand side by side."""

    sizes: tuple[int, ...]

    columns: ClassVar[tuple[str, ...]] = ("attributes", "weight")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        heads = model(x).float().split(self.sizes, dim=1)
        step.seen(heads[0])
        labels, weight = step.columns["attributes"], step.columns["weight"]
        losses = [F.cross_entropy(head, labels[:, i], reduction="none") for i, head in enumerate(heads)]
        return (torch.stack(losses).mean(0) * weight).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """How a parser did on some examples. Every victim counts the same, however many examples there are of it.

    Args:
        n: examples.
        accuracy: by attribute, the share named rightly, with its 95 % interval from resampling the images.
        constant: by attribute, the share that is right if one always gives the same, best answer.
        confusion: by attribute, how many examples of each value (rows) were named which value (columns).
    """

    n: int
    accuracy: Mapping[str, tuple[float, float, float]]
    constant: Mapping[str, float]
    confusion: Mapping[str, Int64[Tensor, "k k"]]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "n": self.n,
            "accuracy": {k: {"value": v, "low": low, "high": high} for k, (v, low, high) in self.accuracy.items()},
            "constant": dict(self.constant),
            "confusion": {name: counts.tolist() for name, counts in self.confusion.items()},
        }


def judge(parser: Parser, examples: Examples, *, run: Run) -> Judgement:
    """Parse examples whose victims are known: also other victims, and other attacks, than the parser was trained on.

    Raises:
        UserError: there are none, or a victim has an attribute of a value that the parser does not know.
    """
    if not len(examples):
        raise UserError("model-parsing: there are no examples to judge a parser by.")
    labels = examples.labels(parser.attributes)
    parsed = parser.read(examples.inputs(parser.reads, parser.rounding), run=run)
    _, victim = examples.victim.unique(return_inverse=True)
    _, image = examples.image.unique(return_inverse=True)
    size = (int(image.max()) + 1, int(victim.max()) + 1)
    accuracy, constant, confusion = {}, {}, {}
    for place, (name, values) in enumerate(parser.attributes.items()):
        truth, answer = labels[:, place], parsed.probabilities[name].argmax(1)
        counts = torch.zeros(*size, 2, dtype=torch.float64)  # by image and victim: right ones, and all
        one = torch.stack([(truth == answer).double(), torch.ones(len(truth), dtype=torch.float64)], dim=1)
        counts.index_put_((image, victim), one, accumulate=True)
        rng = run.numpy_rng("judge", name)
        accuracy[name] = (_mean_of_victims(counts.numpy()), *stats.bootstrap(_mean_of_victims, counts.numpy(), rng=rng))
        of_victim = torch.zeros(size[1], dtype=torch.int64).index_put_((victim,), truth)
        constant[name] = float(torch.bincount(of_victim).max()) / size[1]
        confusion[name] = torch.bincount(truth * len(values) + answer, minlength=len(values) ** 2).view(len(values), -1)
    return Judgement(n=len(examples), accuracy=accuracy, constant=constant, confusion=confusion)


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsingReport:
    """What came out.

    Args:
        images: name of the split.
        method: its spec.
        kept: examples of each victim, by attack; those that fool.
        judged: the parser on unseen images, all attacks together.
        by_attack: the same for each attack.
        parser: the parser.
    """

    images: str
    method: str
    kept: Mapping[str, Mapping[str, int]]
    judged: Judgement
    by_attack: Mapping[str, Judgement]
    parser: Parser

    @property
    def sentence(self) -> str:
        """The finding in words."""
        said = [
            f"{name} rightly in {value:.1%} (95 % interval {low:.1%} to {high:.1%}; one constant answer "
            f"{self.judged.constant[name]:.1%})"
            for name, (value, low, high) in self.judged.accuracy.items()
        ]
        what = "perturbations" if self.parser.reads == "delta" else "attacked images"
        return f"From {self.judged.n} {what} of unseen images of {self.images}, the parser names {', '.join(said)}."

    def listing(self) -> list[dict[str, str]]:
        """A row per attribute and attack, in words."""
        return [
            {
                "attribute": name,
                "attack": attack,
                "right": f"{value:.1%}",
                "constant answer": f"{judged.constant[name]:.1%}",
                "of": str(judged.n),
            }
            for attack, judged in self.by_attack.items()
            for name, (value, _, _) in judged.accuracy.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "images": self.images,
            "method": self.method,
            "attributes": {name: list(values) for name, values in self.parser.attributes.items()},
            "kept": {attack: dict(counts) for attack, counts in self.kept.items()},
            "unseen_images": self.judged.to_json(),
            "by_attack": {attack: judged.to_json() for attack, judged in self.by_attack.items()},
        }


def _per_victim(examples: Examples) -> dict[str, int]:
    counts = torch.bincount(examples.victim, minlength=len(examples.victims)).tolist()
    kept: Counter[str] = Counter()  # several victims may be alike
    for victim, count in zip(examples.victims, counts, strict=True):
        kept["-".join(victim.values())] += count
    return dict(kept)


def _mean_of_victims(counts: np.ndarray[Any, Any]) -> float:
    """From counts by image and victim; a resampling may leave a victim out."""
    right, all_ = counts.sum(0).T
    return float((right[all_ > 0] / all_[all_ > 0]).mean())
