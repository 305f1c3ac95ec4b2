"""Recipes: a training written down in YAML, every word of it checked before the first step.

model: resnet20
data: cifar10
objective: cross-entropy
optimizer: sgd(lr=0.2)
schedule: one-cycle
epochs: 60
transforms: [crop, flip]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field
from yaml.nodes import MappingNode

from holdfast import catalog, specs
from holdfast.errors import UserError, did_you_mean
from holdfast.methods import BatchTransform, Callback, Method, Objective, OptimizerWrapper, Transform
from holdfast.training.optimizers import Optimizer
from holdfast.training.schedules import Schedule

__all__ = ["Recipe"]

_MOST_BYTES = 1 << 20


class Recipe(BaseModel):
    """What to train on what, and how. Methods are named by specs, e.g. ``sgd(lr=0.1)``; see `fit` for what they do."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(description="an architecture of `build_model`, or code such as `my.py:make`")]
    data: Annotated[str, Field(description="what `load_data` takes")]
    epochs: Annotated[int, Field(strict=True, ge=1, description="passes over the training set")]
    weights: Annotated[str | None, Field(description="a weights file, or `zoo:NAME`, to start from")] = None
    objective: Annotated[str, Field(description="the loss")] = "cross-entropy"
    optimizer: Annotated[str, Field(description="how gradients move the weights")] = "sgd"
    schedule: Annotated[str, Field(description="the course of the learning rate")] = "one-cycle"
    wrapper: Annotated[str | None, Field(description="changes how the optimizer steps, e.g. `sam`")] = None
    callbacks: Annotated[tuple[str, ...], Field(description="hooks of the loop")] = ()
    transforms: Annotated[
        tuple[str, ...], Field(description="of the training set, such as `long-tail`, and of batches, such as `crop`")
    ] = ()
    batch_size: Annotated[int, Field(strict=True, ge=1, description="images per forward pass, in each process")] = 128
    accumulate: Annotated[int, Field(strict=True, ge=1, description="forward passes per optimizer step")] = 1
    ema: Annotated[float | None, Field(ge=0, lt=1, description="decay of a running average of the weights")] = None
    companions: Annotated[
        dict[str, str],
        Field(
            description="further sets of images that the objective needs, by name: what `load_data` takes, or a "
            "transform that makes them of the training set, such as `synthetic-outliers`"
        ),
    ] = {}
    val: Annotated[
        float | None,
        Field(gt=0, lt=1, description="share of the training set held out for validation; without it, the data's own"),
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(
            description="of forward and backward passes; `auto` is bf16 where the hardware computes in it, else fp32"
        ),
    ] = "auto"
    compile: Annotated[bool, Field(description="compile the model first")] = False
    save_minutes: Annotated[float, Field(ge=0, description="between checkpoints within an epoch")] = 5.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63, description="of all randomness, if the run has none")] = 0

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            UserError: the file cannot be read, or a field is unknown, missing, or not accepted; with file and line.
        """
        path = Path(path)
        content, lines = _read_yaml(path)
        known = list(cls.model_fields)
        for name in content:
            if name not in known:
                hint = did_you_mean(str(name), known) or f" It takes: {', '.join(known)}."
                raise UserError(f"{path}:{lines[name]}: {name!r} is not a field of a recipe.{hint}")
        try:
            recipe = cls.model_validate(content)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            if problem["type"] == "missing":
                about = cls.model_fields[name].description
                raise UserError(f"{path}: {name!r} is missing; it says {about}.") from None
            message = problem["msg"].replace("Input should be", "must be").replace("Input should", "must")
            got = specs.format_value(problem["input"])
            raise UserError(f"{path}:{lines[name]}: {name}: {message}, got {got}.") from None
        for name in recipe.companions:
            try:
                recipe.companion_transform(name)
            except UserError as error:
                raise UserError(f"{path}:{lines['companions']}: companions: {name}: {error}") from None
        for name, values in recipe._specs().items():
            for value, kinds in values:
                try:
                    _build(value, kinds)
                except UserError as error:
                    raise UserError(f"{path}:{lines[name]}: {name}: {error}") from None
        return recipe

    def companion_transform(self, name: str) -> Transform | None:
        """The transform that makes a companion of the training set, if it is not a data set of its own."""
        return _transform(self.companions[name])

    def batch_transforms(self) -> list[BatchTransform]:
        """The transforms that work on batches, in order."""
        return [t for t in self._built_transforms() if isinstance(t, BatchTransform)]

    def data_transforms(self) -> list[Transform]:
        """The transforms that work on the training set, in order."""
        return [t for t in self._built_transforms() if isinstance(t, Transform)]

    def _built_transforms(self) -> list[Method]:
        return [_build(text, (Transform, BatchTransform)) for text in self.transforms]

    def _specs(self) -> dict[str, list[tuple[str, tuple[type[Method], ...]]]]:
        """The specs of the fields that were given, with the kinds that fit."""
        fields: dict[str, tuple[type[Method], ...]] = {
            "objective": (Objective,),
            "optimizer": (Optimizer,),
            "schedule": (Schedule,),
            "wrapper": (OptimizerWrapper,),
            "callbacks": (Callback,),
            "transforms": (Transform, BatchTransform),
        }
        found = {}
        for name, kinds in fields.items():
            value = getattr(self, name)
            if name in self.model_fields_set and value:
                found[name] = [(text, kinds) for text in ([value] if isinstance(value, str) else value)]
        return found


def _transform(text: str) -> Transform | None:
    """The transform of a spec; ``None`` where it names none, and so must name a data set."""
    try:
        catalog.find(specs.parse(text).id, Transform)
    except UserError:
        return None
    return catalog.build(text, kind=Transform)


def _build(text: str, kinds: tuple[type[Method], ...]) -> Method:
    if len(kinds) == 1:
        return catalog.build(text, kind=kinds[0])
    method: Method = catalog.build(text)
    if not isinstance(method, kinds):
        wanted = " or ".join(kind.kind for kind in kinds)
        raise UserError(f"{method.id!r} is of kind {method.kind}, but a method of kind {wanted} is needed.")
    return method


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The content of a YAML file that holds one mapping, and the line of each of its keys."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is too large for a recipe ({path.stat().st_size:,} bytes).")
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{where}: this is not YAML: {problem}.") from None
    if not isinstance(tree, MappingNode):
        raise UserError(f"{path}: a recipe consists of lines such as 'model: resnet20'.")
    lines: dict[str, int] = {}
    for key, _ in tree.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UserError(f"{path}:{line}: {key.value!r} is given twice, first in line {lines[key.value]}.")
        lines[key.value] = line
    return {str(name): value for name, value in content.items()}, lines
