"""Get a trained model from what a user can name: an architecture with weights, a zoo model, or code of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from holdfast.errors import UserError, did_you_mean
from holdfast.models.build import architectures, build_model, is_architecture
from holdfast.models.factory import build_from_code
from holdfast.models.served import connect, is_address
from holdfast.models.weights import WeightsFile, fit_weights, read_weights, refusal_of_programs, strip_prefixes
from holdfast.models.zoo import ZOO, zoo_card, zoo_weights

__all__ = ["load_model"]


def load_model(
    spec: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    zoo: Path = ZOO,
) -> nn.Module:
    """Load a model, on the CPU, in evaluation mode.

    Args:
        spec: one of

            * an architecture of `build_model`, such as ``resnet20``, together with `weights`;
            * ``zoo:NAME``;
            * a ``.safetensors`` file whose metadata names the architecture;
            * ``http://host:port/v2/models/NAME``, or ``https://``: a deployed model, see `holdfast.models.connect`;
            * ``package.module:factory`` or ``path/my.py:make``: the user's own code, which is imported and run. The
              factory is called with `num_classes`, `image_shape` and `classes` if it takes them by these names.
        weights: a file (see `read_weights`) or ``zoo:NAME``; with the user's own code it may be left out.
        num_classes, image_shape, classes: of the task. By default what the weights file says.
        zoo: the folder of the zoo.

    Returns:
        The model. Those of `build_model` carry ``architecture``, ``num_classes``, ``image_shape``, and ``classes`` if
        known.

    Raises:
        UserError: something does not exist, cannot be read, does not fit, or would run code without being asked to.
    """
    text = os.fspath(spec)
    if classes is not None and num_classes is None:
        num_classes = len(classes)
    if text.startswith("zoo:"):
        if weights is not None:
            raise UserError(
                f"{text} has weights of its own; leave out weights={str(weights)!r}, or name an architecture."
            )
        file = _read(text, zoo)
        architecture = zoo_card(text, zoo).architecture
    elif is_address(text):
        if weights is not None:
            raise UserError(f"{text} is a deployed model and has weights of its own; leave out {str(weights)!r}.")
        return connect(text, num_classes=num_classes, image_shape=image_shape)
    elif _is_code(text):
        offered = {"num_classes": num_classes, "image_shape": image_shape, "classes": classes}
        model = build_from_code(text, {key: value for key, value in offered.items() if value is not None})
        if weights is not None:
            fit_weights(model, _read(weights, zoo))
        return _to_eval(model)
    elif text.endswith(".safetensors"):
        if weights is not None:
            raise UserError(f"{text} holds weights, and so does weights={str(weights)!r}: give one of them.")
        file = _read(text, zoo)
        architecture = str(file.metadata.get("architecture", ""))
        if not architecture:
            raise UserError(f"{text} does not say which architecture it is for: name it, with weights={text!r}.")
    elif is_architecture(text):
        if weights is None:
            raise UserError(
                f"{text} is an architecture without weights: give a .safetensors file or zoo:NAME as weights."
            )
        file = _read(weights, zoo)
        architecture = text
    else:
        raise UserError(_unknown(text))
    return _to_eval(_assemble(architecture, file, num_classes, image_shape, classes))


def _read(weights: str | os.PathLike[str], zoo: Path) -> WeightsFile:
    text = os.fspath(weights)
    return read_weights(zoo_weights(text, zoo) if text.startswith("zoo:") else text)


def _assemble(
    architecture: str,
    file: WeightsFile,
    num_classes: int | None,
    image_shape: Sequence[int] | None,
    classes: Sequence[str] | None,
) -> nn.Module:
    says = file.metadata
    count = says.get("num_classes") or file.head_classes or num_classes
    if count is None:
        raise UserError(f"{file.path} does not say how many classes it is for: give num_classes.")
    if num_classes is not None and num_classes != count:
        raise UserError(f"{file.path} is for {count} classes, but {num_classes} are needed.")
    names = says.get("classes")
    if names is not None and classes is not None and set(names) == set(classes) and tuple(names) != tuple(classes):
        raise UserError(f"{file.path} has the same classes in another order: {', '.join(names)}.")
    # The shape the weights were made for: many architectures take other image sizes too, but not other channels.
    shape = says.get("image_shape") or image_shape or _guessed_shape(file)
    if image_shape is not None and image_shape[0] != shape[0]:
        raise UserError(f"{file.path} is for images of {shape[0]} channels, but the images have {image_shape[0]}.")
    model: Any = build_model(architecture, num_classes=count, image_shape=tuple(shape))
    fit_weights(model, file)
    known = names if names is not None else classes
    if known is not None:
        model.classes = tuple(known)
    loaded: nn.Module = model
    return loaded


def _guessed_shape(file: WeightsFile) -> tuple[int, int, int]:
    """32x32 with the channels of the normalisation, for files that say nothing."""
    mean = strip_prefixes(file.tensors).get("normalize.mean")
    return (3 if mean is None else mean.numel(), 32, 32)


def _to_eval(model: nn.Module) -> nn.Module:
    try:
        return model.eval()
    except NotImplementedError:  # programs of torch.export have one mode only
        return model


def _is_code(text: str) -> bool:
    where, colon, what = text.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    return bool(colon) and all(part.isidentifier() for part in what.split(".")) and (where.endswith(".py") or dotted)


def _unknown(text: str) -> str:
    path = Path(text)
    if path.suffix == ".pt2":
        return refusal_of_programs(path)
    if path.suffix == ".py":
        return f"{text}: say which function of the file gives the model, as in {text}:make."
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return f"{text} holds at most weights: name the architecture as the model, and give the file as weights."
    hint = did_you_mean(text, architectures())
    takes = (
        " It takes an architecture, zoo:NAME, a .safetensors file, package.module:factory, my.py:make, or an address."
    )
    return f"model {text!r} is unknown.{hint or takes}"
