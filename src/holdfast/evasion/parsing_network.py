"""The parser: a small network that reads a perturbation, or an attacked image, and names the attributes of a model.

    parser = load_parser("parser.safetensors")
    parser.parse(x_adv, clean).sentence

Yao et al., "Can Adversarial Examples Be Parsed to Reveal Victim Model Information?", arXiv:2303.07474, 2023.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.transfer import to_bytes
from holdfast.models import Normalize, predict, read_weights, save_tensors
from holdfast.models.initialise import he_normal
from holdfast.run import Run

__all__ = ["Parsed", "Parser", "ParsingNet", "Reads", "Rounding", "Scale", "encoded", "load_parser", "new_net"]

Reads = Literal["delta", "image"]
Rounding = Literal["8-bit", "none"]
Scale = Literal["none", "max"]

ZERO = 128 / 255  # what no perturbation is encoded as: perturbations of 8-bit images fit into bytes again
_BLOCKS, _HIDDEN = 4, 128


class ParsingNet(nn.Module):
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling, a linear layer, and one for all heads.

    As in the authors' code, nothing stands between the two linear layers.

    Args:
        image_shape: channels, height, width.
        heads: number of values of each attribute.
        width: channels of the convolutions.
        normalize: first layer.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], heads: Sequence[int], width: int, normalize: nn.Module):
        super().__init__()
        self.normalize = normalize
        blocks: list[nn.Module] = []
        channels, height, side = image_shape
        for _ in range(_BLOCKS):
            # Rounding up, so that images of fewer than 16 pixels are not pooled away.
            blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            blocks += [nn.MaxPool2d(2, ceil_mode=True)]
            channels, height, side = width, (height + 1) // 2, (side + 1) // 2
        self.features = nn.Sequential(*blocks)
        self.hidden = nn.Linear(width * height * side, _HIDDEN)
        self.heads = nn.Linear(_HIDDEN, sum(heads))
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The logits of all heads, side by side, of inputs from `encoded`."""
        return self.heads(self.hidden(self.features(self.normalize(x)).flatten(1)))


class LargestIsOne(nn.Module):
    """Perturbations from `encoded`, each divided by its largest absolute value; where there is none, zeros."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Values in [-1, 1]."""
        delta = x - ZERO
        return delta / delta.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6)


def encoded(x_adv: Tensor, clean: Tensor | None, reads: Reads, rounding: Rounding) -> Tensor:
    """What the network reads, as images in [0, 1] or bytes.

    A perturbation is shifted so that zero is grey. Half the range of pixels is kept of it in either direction, more
    than any attack that is meant to be overlooked uses.

    Args:
        x_adv: attacked images (N, C, H, W), bytes or floats in [0, 1].
        clean: the images before; for ``"image"`` they are not looked at.
        reads: the perturbation or the attacked image.
        rounding: ``"8-bit"`` rounds both first.
    """
    form = to_bytes if rounding == "8-bit" else to_float
    if reads == "image":
        return form(x_adv)
    assert clean is not None
    if rounding == "8-bit":
        return (form(x_adv).to(torch.int16) - form(clean).to(torch.int16) + 128).clamp_(0, 255).to(torch.uint8)
    return (form(x_adv) - form(clean) + ZERO).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """What the parser reads out of N examples.

    Args:
        probabilities: by attribute, (N, values), each row summing to 1.
        values: by attribute, in the order of the columns.
    """

    probabilities: Mapping[str, Float[Tensor, "n k"]]
    values: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.probabilities.values())))

    @property
    def pooled(self) -> dict[str, dict[str, float]]:
        """By attribute, the mean probability of each value over all examples.

        A mean, not a product: examples of one model err together, and a product would be sure of itself regardless.
        """
        means = {name: p.double().mean(0).tolist() for name, p in self.probabilities.items()}
        return {name: dict(zip(self.values[name], means[name], strict=True)) for name in means}

    @property
    def votes(self) -> dict[str, dict[str, float]]:
        """By attribute, the share of the examples of which each value is the likeliest."""
        counts = {
            name: torch.bincount(p.argmax(1), minlength=p.shape[1]).double() / len(p)
            for name, p in self.probabilities.items()
        }
        return {name: dict(zip(self.values[name], counts[name].tolist(), strict=True)) for name in counts}

    @property
    def verdict(self) -> dict[str, str]:
        """By attribute, the value of the largest pooled probability."""
        return {name: max(pooled, key=pooled.__getitem__) for name, pooled in self.pooled.items()}

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        said = [f"{name} {value} (likeliest for {self.votes[name][value]:.0%})" for name, value in self.verdict.items()]
        return f"{len(self)} examples look most like those of a model with {', '.join(said)}."

    def listing(self) -> list[dict[str, str]]:
        """A row per attribute and value, in words."""
        return [
            {
                "attribute": name,
                "value": value,
                "mean probability": f"{p:.1%}",
                "likeliest for": f"{self.votes[name][value]:.1%}",
            }
            for name, pooled in self.pooled.items()
            for value, p in pooled.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "n": len(self),
            "verdict": self.verdict,
            "pooled": self.pooled,
            "votes": self.votes,
            "values": {name: list(values) for name, values in self.values.items()},
            "probabilities": {name: p.tolist() for name, p in self.probabilities.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Parser:
    """A trained network, with what its outputs mean.

    It knows the values it was trained to tell apart and no others: of a model unlike all its victims it will name
    some of them, as surely as of any other.

    Args:
        net: the network.
        attributes: values by attribute, in the order of the network's outputs.
        image_shape, width: of the network.
        reads, scale, rounding: what it is given; see `ModelParsing`.
        images: the name of the images it learnt from.
        attacks: the specs of the attacks it knows.
        accuracy: by attribute, how often it was right on images it had not seen.
    """

    net: nn.Module
    attributes: Mapping[str, tuple[str, ...]]
    image_shape: tuple[int, int, int]
    width: int
    reads: Reads
    scale: Scale
    rounding: Rounding
    images: str = ""
    attacks: tuple[str, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)

    def parse(self, x_adv: Tensor, clean: Tensor | None = None, *, run: Run) -> Parsed:
        """Name the attributes of the model that images were attacked on.

        Args:
            x_adv: (N, C, H, W), bytes or floats in [0, 1]; images that fool somebody, since others hold no trace.
            clean: the images before, or an estimate of them such as a denoiser's; needed where the parser reads
                perturbations.
            run: device, batch size.

        Raises:
            UserError: shapes do not fit, clean images are needed, there are no images, or they are not in [0, 1].
        """
        if self.reads == "delta" and clean is None:
            raise UserError("this parser reads perturbations: it needs the clean images too, or an estimate of them.")
        for name, x in (("attacked", x_adv), ("clean", clean)):
            if x is not None and tuple(x.shape[1:]) != self.image_shape:
                raise UserError(
                    f"the parser takes images of shape {self.image_shape}, got {name} images of {tuple(x.shape[1:])}."
                )
        if clean is not None and len(clean) != len(x_adv):
            raise UserError(f"there must be a clean image for each attacked one, got {len(clean)} for {len(x_adv)}.")
        for name, x in (("attacked", x_adv), ("clean", clean)):
            if x is not None:
                _images(x, f"{name} images")  # says what is wrong with them
        return self.read(encoded(x_adv, clean, self.reads, self.rounding), run=run)

    def read(self, inputs: Tensor, *, run: Run) -> Parsed:
        """As `parse`, from what `encoded` gives."""
        heads = [len(values) for values in self.attributes.values()]
        parts = predict(self.net, _images(inputs, "attacked images"), run=run).split(heads, dim=1)
        found = {name: part.softmax(1) for name, part in zip(self.attributes, parts, strict=True)}
        return Parsed(probabilities=found, values=self.attributes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        told = _Told(
            attributes={name: list(values) for name, values in self.attributes.items()},
            accuracy=dict(self.accuracy),
            attacks=list(self.attacks),
            image_shape=list(self.image_shape),
            **{name: getattr(self, name) for name in ("images", "width", "reads", "scale", "rounding")},
        )
        save_tensors(self.net.state_dict(), path, {"parser": told.model_dump_json()})


_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_Values = Annotated[list[_Name], Field(min_length=1, max_length=1000)]


class _Told(pydantic.BaseModel):
    """What a parser's file must say of it."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    attributes: Annotated[dict[_Name, _Values], Field(min_length=1, max_length=100)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=3, max_length=3)]
    width: Annotated[int, Field(ge=1, le=2**16)]
    reads: Reads
    scale: Scale
    rounding: Rounding
    images: str
    attacks: list[_Name]
    accuracy: dict[_Name, Annotated[float, Field(ge=0, le=1)]]

    @property
    def words(self) -> Iterator[str]:
        """Everything in it that may be shown."""
        yield from (self.images, *self.attacks, *self.attributes, *self.accuracy)
        for values in self.attributes.values():
            yield from values


def load_parser(path: str | os.PathLike[str]) -> Parser:
    """Read what `Parser.save` wrote; nothing the file may contain is run.

    Raises:
        UserError: there is no such file, or it does not hold a parser.
    """
    file = read_weights(path)
    try:
        told = _Told.model_validate_json(str(file.metadata["parser"]))
    except KeyError:
        raise UserError(f"{path} is not a parser: it does not say what its outputs mean.") from None
    except pydantic.ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "metadata"
        raise UserError(f"{path} is not a parser: what it says of its {where!r} cannot be.") from None
    if not all(word.isprintable() for word in told.words):
        raise UserError(f"{path} is not a parser: it says things that cannot be printed.")
    channels, height, side = told.image_shape
    attributes = {name: tuple(values) for name, values in told.attributes.items()}
    shape = (channels, height, side)
    with torch.device("meta"):  # a file may ask for a network larger than any memory
        net = new_net(attributes, shape, told.width, told.scale)
    wanted, found = (
        {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        for tensors in (net.state_dict(), file.tensors)
    )
    if wanted != found or not all(bool(torch.isfinite(tensor).all()) for tensor in file.tensors.values()):
        raise UserError(f"{path} is not a parser: its weights do not fit what it says of them.")
    net.load_state_dict(dict(file.tensors), assign=True)
    return Parser(
        net=net.eval(),
        attributes=attributes,
        image_shape=shape,
        accuracy=told.accuracy,
        attacks=tuple(told.attacks),
        **{name: getattr(told, name) for name in ("images", "width", "reads", "scale", "rounding")},
    )


def new_net(
    attributes: Mapping[str, Sequence[str]],
    image_shape: tuple[int, int, int],
    width: int,
    scale: Scale,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ParsingNet:
    """An untrained network; `mean` and `std` are those of its inputs."""
    first = Normalize(image_shape[0], mean, std) if scale == "none" else LargestIsOne()
    heads = [len(values) for values in attributes.values()]
    return ParsingNet(image_shape=image_shape, heads=heads, width=width, normalize=first)


def _images(x: Tensor, name: str) -> Images:
    return Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("image",), name=name)
