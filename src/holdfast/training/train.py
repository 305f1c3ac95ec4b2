"""`train`: from a recipe to weights, metrics and a card."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from torch import nn

import holdfast
from holdfast import files
from holdfast.data import Data, Images, load_data, split
from holdfast.data.images import to_float
from holdfast.data.resize import fitted
from holdfast.errors import UserError
from holdfast.models import build_model, load_model, predict, save_weights
from holdfast.run import Run
from holdfast.training.fit import fit
from holdfast.training.recipe import Recipe

__all__ = ["train"]


def train(recipe: Recipe | str | os.PathLike[str], run: Run) -> dict[str, Any]:
    """Train a model by a recipe.

    The folder ``run.out`` gets ``weights.safetensors`` (the last weights, or their average where the recipe asks for
    one), ``best.safetensors`` where there is a validation set, ``metrics.csv``, ``metrics.jsonl``, ``timing.jsonl``,
    ``card.json`` and a checkpoint. Calling it again with the same folder resumes; see `fit`.

    Args:
        recipe: or the path of its YAML file.
        run: device, seed, output folder. The precision is the recipe's, and so is the seed when the run has none
            (that is, 0).

    Returns:
        The card: what was trained how, and its accuracy on the test split, measured in float32.

    Raises:
        UserError: the recipe does not fit the data, or ``run.out`` is not set or holds another training.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    out = run.out
    if out is None:
        raise UserError("train: the run needs an output folder, for the weights and to resume from.")
    run = run.but(precision=recipe.precision, seed=run.seed or recipe.seed)
    data = load_data(recipe.data, run=run)
    images, val = _training_sets(recipe, data, run)
    model = _model(recipe, data, images, run)
    files.make_dir(out)
    result = fit(
        model,
        images,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        objective=recipe.objective,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        wrapper=recipe.wrapper,
        callbacks=recipe.callbacks,
        transforms=recipe.batch_transforms(),
        companions=_companions(recipe, images, run),
        val=val,
        ema=recipe.ema,
        accumulate=recipe.accumulate,
        compile=recipe.compile,
        save_minutes=recipe.save_minutes,
        run=run,
    )
    final = result.final_model
    right = int((predict(final, data.test, run=run).argmax(1) == data.test.y).sum())
    card = {
        "model": recipe.model,
        "data": recipe.data,
        "classes": list(data.classes),
        "image_shape": list(data.shape),
        "parameters": sum(p.numel() for p in final.parameters()),
        "accuracy": {"value": right / len(data.test), "n": len(data.test), "data": f"{recipe.data} test"},
        "training_images": len(images),
        "validation_images": 0 if val is None else len(val),
        "seed": run.seed,
        "recipe": recipe.model_dump(mode="json"),
        "seconds": round(result.seconds, 1),
        "versions": {
            "holdfast": holdfast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if _first_process():
        save_weights(final, out / "weights.safetensors", {"classes": list(data.classes)})
        files.write_json(out / "card.json", card)
    return card


def _training_sets(recipe: Recipe, data: Data, run: Run) -> tuple[Images, Images | None]:
    """The training set, changed as the recipe says, and the validation set, which no transform touches."""
    if data.train is None:
        raise UserError(f"{data.name} has no training split to train on.")
    images, val = data.train, data.val
    if recipe.val is not None:
        parts = split(images, {"train": 1 - recipe.val, "val": recipe.val}, run)
        images, val = parts["train"], parts["val"]
    for transform in recipe.data_transforms():
        images = transform(images, run=run)
    return images, val


def _companions(recipe: Recipe, images: Images, run: Run) -> dict[str, Images]:
    """The sets that accompany the training set, in the shape of its images."""
    found = {}
    for name, spec in recipe.companions.items():
        transform = recipe.companion_transform(name)
        if transform is not None:
            found[name] = transform(images, run=run)
            continue
        data = load_data(spec, run=run)
        chosen = data.test if data.train is None else data.train
        channels, height, width = images.shape
        found[name] = chosen.but(x=fitted(chosen.x, (height, width), channels), columns={})
    return found


def _model(recipe: Recipe, data: Data, images: Images, run: Run) -> nn.Module:
    """The model to start from: trained weights, the user's own code, or a fresh one with the data's normalisation."""
    if recipe.weights is not None or ":" in recipe.model:
        return load_model(
            recipe.model,
            weights=recipe.weights,
            num_classes=data.num_classes,
            image_shape=data.shape,
            classes=data.classes,
        )
    mean, std = pixel_statistics(images)
    return build_model(recipe.model, num_classes=data.num_classes, image_shape=data.shape, mean=mean, std=std, run=run)


def pixel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels in [0, 1]; a constant channel counts as spread 1."""
    sums = torch.zeros(2, images.shape[0], dtype=torch.float64)
    for start in range(0, len(images), 4096):
        x = to_float(images.x[start : start + 4096]).double()
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean, square = sums / (len(images) * images.shape[1] * images.shape[2])
    std = (square - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6, std, 1.0).tolist()


def _first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
