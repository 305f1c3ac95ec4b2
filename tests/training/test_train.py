import csv
import json

import pytest
import torch

from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.models import load_model, load_weights
from holdfast.run import Run
from holdfast.training import Recipe, train
from holdfast.training.train import pixel_statistics

RECIPE = Recipe(
    model="convnet", data="digits", epochs=2, batch_size=32, ema=0.9, precision="fp32", optimizer="sgd(lr=0.05)"
)


def test_the_card_tells_the_accuracy_of_the_weights_beside_it(tmp_path, digits):
    card = train(RECIPE, Run(out=tmp_path))
    assert card == json.loads((tmp_path / "card.json").read_text())
    model = load_model(tmp_path / "weights.safetensors")
    with torch.no_grad():
        right = (model(digits.test.x).argmax(1) == digits.test.y).double().mean().item()
    assert card["accuracy"]["value"] == pytest.approx(right, abs=1e-12)
    assert card["accuracy"]["n"] == len(digits.test)
    assert card["accuracy"]["value"] > 0.5
    assert card["recipe"]["optimizer"] == "sgd(lr=0.05)"


def test_the_folder_holds_metrics_of_every_epoch_and_the_best_weights(tmp_path):
    train(RECIPE, Run(out=tmp_path))
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["val_accuracy"]) for row in rows] == [line["val_accuracy"] for line in lines]
    assert len(rows) == 2
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 2
    best = load_weights(load_model(tmp_path / "best.safetensors"), tmp_path / "best.safetensors")
    scores = [line["val_accuracy"] for line in lines]
    assert int(best["epoch"]) == scores.index(max(scores)) + 1


def test_the_seed_of_the_run_comes_before_the_recipe_s(tmp_path):
    recipe = RECIPE.model_copy(update={"epochs": 1, "seed": 5})
    seeds = [train(recipe, Run(out=tmp_path / str(seed), seed=seed))["seed"] for seed in (0, 7)]
    assert seeds == [5, 7]


def test_a_share_may_be_held_out_and_the_training_set_changed(tmp_path):
    changes = {"epochs": 1, "val": 0.25, "transforms": ("subset(fraction=0.5)", "crop(padding=1)")}
    card = train(RECIPE.model_copy(update=changes), Run(out=tmp_path))
    train_images = len(load_data("digits").train)
    assert card["validation_images"] == pytest.approx(train_images / 4, abs=2)
    assert card["training_images"] == pytest.approx(train_images * 3 / 8, abs=12)


def test_training_goes_on_from_given_weights(tmp_path):
    train(RECIPE, Run(out=tmp_path / "first"))
    start = str(tmp_path / "first/weights.safetensors")
    on = RECIPE.model_copy(update={"weights": start, "epochs": 1, "optimizer": "sgd(lr=0.001)", "ema": None})
    first = json.loads((tmp_path / "first/metrics.jsonl").read_text().splitlines()[0])
    train(on, Run(out=tmp_path / "second"))
    assert json.loads((tmp_path / "second/metrics.jsonl").read_text())["train_loss"] < first["train_loss"] / 2


def test_the_model_is_given_the_spread_of_its_training_pixels(digits):
    mean, std = pixel_statistics(digits.train)
    assert mean == pytest.approx([digits.train.x.mean().item()], abs=1e-6)
    assert std == pytest.approx([digits.train.x.std().item()], abs=1e-4)
    flat = digits.train.but(x=torch.full_like(digits.train.x, 0.3))
    assert pixel_statistics(flat)[1] == [1.0]


def test_a_run_without_folder_and_data_without_training_split_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs an output folder"):
        train(RECIPE, Run())
