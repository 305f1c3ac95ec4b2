"""Build an untrained model by name: ``resnet20``, ``wrn-28-10(dropout=0.3)``, ``mlp(hidden=[64, 64])``."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import nn

from holdfast import specs
from holdfast.errors import UserError, did_you_mean, one_of
from holdfast.models.convnet import ConvNet
from holdfast.models.mlp import MLP
from holdfast.models.mobilenet import MobileNetV2
from holdfast.models.normalize import Normalize
from holdfast.models.preact_resnet import PreActResNet
from holdfast.models.resnet import ResNet
from holdfast.models.vgg import VGG
from holdfast.models.vit import ViT
from holdfast.models.wide_resnet import WideResNet
from holdfast.run import Run

__all__ = ["architectures", "build_model", "is_architecture"]


@dataclass(frozen=True)
class _Architecture:
    """A class of models and the names it answers to; the pattern's named groups are arguments (whole numbers)."""

    pattern: str
    model: type[nn.Module]
    examples: tuple[str, ...]
    summary: str


_ARCHITECTURES = (
    _Architecture(
        r"resnet(?P<depth>20|32|44|56|110)",
        ResNet,
        ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        "residual network for small images (He et al., 2016)",
    ),
    _Architecture(
        r"preact-resnet(?P<depth>18|34)",
        PreActResNet,
        ("preact-resnet18", "preact-resnet34"),
        "pre-activation residual network, 64 to 512 channels (He et al., 2016)",
    ),
    _Architecture(
        r"wrn-(?P<depth>\d{2,3})-(?P<width>\d{1,2})",
        WideResNet,
        ("wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-40-2"),
        "wide residual network, wrn-DEPTH-WIDTH (Zagoruyko & Komodakis, 2016)",
    ),
    _Architecture(
        r"vgg(?P<depth>11|13|16|19)-bn",
        VGG,
        ("vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"),
        "VGG with batch norm and one linear layer (Simonyan & Zisserman, 2015)",
    ),
    _Architecture(
        "mobilenet-v2",
        MobileNetV2,
        ("mobilenet-v2",),
        "inverted residuals with linear bottlenecks (Sandler et al., 2018)",
    ),
    _Architecture("convnet", ConvNet, ("convnet",), "two to four convolutions for small tasks"),
    _Architecture("mlp", MLP, ("mlp",), "multilayer perceptron on the flattened image"),
    _Architecture("vit", ViT, ("vit",), "small vision transformer (Dosovitskiy et al., 2021)"),
)
_COMMON = ("num_classes", "image_shape", "normalize")


def architectures() -> dict[str, str]:
    """The names `build_model` knows (examples where a name holds numbers), with one line on each."""
    return {name: architecture.summary for architecture in _ARCHITECTURES for name in architecture.examples}


def is_architecture(text: str) -> bool:
    """Whether `text`, before any parenthesis, has the form of a name that `build_model` knows."""
    name = text.partition("(")[0].strip()
    return any(re.fullmatch(architecture.pattern, name) for architecture in _ARCHITECTURES)


def build_model(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    run: Run | None = None,
) -> nn.Module:
    """Build an untrained model whose first layer normalises images in [0, 1].

    Args:
        name: one of `architectures`, with options in parentheses, e.g. ``"wrn-16-4(dropout=0.3)"``.
        num_classes: logits per image.
        image_shape: channels, height, width of the images.
        mean, std: of the training pixels per channel, in [0, 1]; see `Normalize`.
        run: gives the stream ``init`` that the starting weights are drawn from.

    Returns:
        The model in training mode, with attributes ``architecture``, ``num_classes``, ``image_shape``.

    Raises:
        UserError: the name, an option or a size does not fit.
    """
    num_classes, image_shape = _check_sizes(num_classes, image_shape)
    spec = specs.parse(name)
    architecture, arguments = _find(spec.id)
    options = _options(spec, architecture)
    run = Run() if run is None else run
    normalize = Normalize(image_shape[0], mean, std)
    # Layers draw their first weights from the global generator when they are made: lend it our stream meanwhile.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run.rng("init", str(spec)).get_state())
        model: Any = architecture.model(
            **arguments, **options, num_classes=num_classes, image_shape=image_shape, normalize=normalize
        )
    model.architecture = str(spec)
    model.num_classes = num_classes
    model.image_shape = image_shape
    built: nn.Module = model
    return built


def _find(name: str) -> tuple[_Architecture, dict[str, int]]:
    for architecture in _ARCHITECTURES:
        match = re.fullmatch(architecture.pattern, name)
        if match:
            return architecture, {key: int(value) for key, value in match.groupdict().items()}
    raise one_of("model", name, architectures())


def _options(spec: specs.Spec, architecture: _Architecture) -> Mapping[str, Any]:
    """The options in parentheses, checked against the annotations of the model's constructor."""
    signature = inspect.signature(architecture.model)
    hints = typing.get_type_hints(architecture.model.__init__, include_extras=True)
    by_name = re.compile(architecture.pattern).groupindex
    known = [p for p in signature.parameters if p not in _COMMON and p not in by_name]
    options = {}
    for key, value in spec.fields.items():
        if key not in known:
            takes = f" It takes: {', '.join(known)}." if known else " It takes no options."
            raise UserError(f"{spec.id}: {key!r} is not an option.{did_you_mean(key, known) or takes}")
        try:
            options[key] = pydantic.TypeAdapter(hints[key]).validate_python(value)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should", "should")
            raise UserError(f"{spec.id}: {key} {problem}, got {specs.format_value(value)}.") from None
    return options


def _check_sizes(num_classes: int, image_shape: Sequence[int]) -> tuple[int, tuple[int, int, int]]:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise UserError(f"num_classes must be a whole number of at least 1, got {num_classes!r}.")
    if (
        isinstance(image_shape, str)
        or len(image_shape) != 3
        or not all(isinstance(n, int) and n >= 1 for n in image_shape)
    ):
        raise UserError(f"image_shape must be (channels, height, width), each at least 1, got {image_shape!r}.")
    channels, height, width = image_shape
    return num_classes, (channels, height, width)
