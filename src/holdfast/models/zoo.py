"""The zoo: small trained models that ship with holdfast, each with a card that says how good it truly is.

An entry is two files in ``zoo_files``: ``NAME.safetensors`` and ``NAME.json``, the card, which holds the hash of the
former.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

import holdfast
from holdfast.errors import UserError, one_of
from holdfast.files import make_dir, read_json, sha256_of, write_json
from holdfast.models.weights import save_weights

__all__ = ["ZOO", "Measured", "ZooCard", "publish", "zoo_card", "zoo_names", "zoo_weights"]

ZOO = Path(__file__).parent / "zoo_files"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measured(_Record):
    """A rate measured on real data; `attack` is the spec of the attack when it is a robust accuracy."""

    value: Annotated[float, Field(ge=0, le=1)]
    n: Annotated[int, Field(ge=1, description="images it was measured on")]
    data: str = Field(description="what on, e.g. 'cifar10 test'")
    attack: str | None = None


class ZooCard(_Record):
    """What is known of a zoo model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    summary: str = ""
    architecture: str
    num_classes: Annotated[int, Field(ge=1)]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    data: str = Field(description="the spec of the data it was trained on")
    recipe: str = Field(description="path in the repository of the recipe it was trained by")
    accuracy: Measured = Field(description="of the stored weights, on images it was not trained on")
    robust_accuracy: tuple[Measured, ...] = ()
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of the weights file")]
    license: str = "Apache-2.0"
    trained_with: Mapping[str, str] = Field(description="versions by package")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(default="float16", description="of the stored weights")


def zoo_names(folder: Path = ZOO) -> list[str]:
    """The names of all zoo models, sorted."""
    return sorted(path.stem for path in folder.glob("*.json"))


def zoo_card(name: str, folder: Path = ZOO) -> ZooCard:
    """The card of one zoo model; ``zoo:NAME`` is accepted too.

    Raises:
        UserError: there is no such model, or its card is damaged.
    """
    name = name.removeprefix("zoo:")
    if name not in zoo_names(folder):
        raise one_of("zoo model", name, zoo_names(folder))
    path = folder / f"{name}.json"
    try:
        card = ZooCard.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a zoo card: {where}: {first['msg']}.") from None
    if card.name != name:
        raise UserError(f"{path} is the card of {card.name!r}, not of {name!r}.")
    return card


def zoo_weights(name: str, folder: Path = ZOO) -> Path:
    """The weights file of a zoo model, its hash verified.

    Raises:
        UserError: there is no such model, or the file is missing or differs from what the card says.
    """
    card = zoo_card(name, folder)
    path = folder / f"{card.name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: the weights of zoo:{card.name} are missing; install holdfast again.")
    if sha256_of(path) != card.sha256:
        raise UserError(f"{path}: the weights of zoo:{card.name} are damaged (their SHA-256 differs from the card's).")
    return path


def publish(
    model: nn.Module,
    name: str,
    *,
    classes: Sequence[str],
    data: str,
    recipe: str,
    accuracy: Measured,
    robust_accuracy: Sequence[Measured] = (),
    summary: str = "",
    dtype: torch.dtype = torch.float16,
    folder: Path = ZOO,
) -> ZooCard:
    """Write a model of `build_model` to the zoo: its weights, then its card.

    The accuracies must be those of the weights as stored: round first, by loading what `save_weights` wrote.

    Raises:
        UserError: the model is not from `build_model`, or a value does not fit the card.
    """
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, str):
        raise UserError(f"{name}: only models of build_model can be published in the zoo.")
    path = make_dir(folder) / f"{name}.safetensors"
    save_weights(model, path, {"classes": list(classes)}, dtype)
    fields: dict[str, Any] = {
        "name": name,
        "summary": summary,
        "architecture": architecture,
        "num_classes": model.num_classes,
        "classes": tuple(classes),
        "image_shape": model.image_shape,
        "data": data,
        "recipe": recipe,
        "accuracy": accuracy,
        "robust_accuracy": tuple(robust_accuracy),
        "sha256": sha256_of(path),
        "trained_with": {
            "holdfast": holdfast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "dtype": str(dtype).removeprefix("torch."),
    }
    try:
        card = ZooCard.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"zoo card of {name!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    write_json(folder / f"{name}.json", card.model_dump(mode="json", exclude_none=True))
    return card
