from pathlib import Path

import pytest

from holdfast.errors import UserError
from holdfast.training import Crop, Flip, Recipe

GOOD = "model: resnet20\ndata: cifar10\nepochs: 3\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_of_the_repository_are_valid(path):
    assert Recipe.load(path).epochs >= 1


def test_transforms_are_told_apart_by_their_kind(write):
    recipe = Recipe.load(write(GOOD + "transforms: [subset(fraction=0.5), crop(padding=2), flip]\n"))
    assert recipe.batch_transforms() == [Crop(padding=2), Flip()]
    assert [t.id for t in recipe.data_transforms()] == ["subset"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "optimiser: sgd\n", r"recipe.yaml:4: 'optimiser' is not a field of a recipe. Did you mean 'optimizer'"),
        (GOOD + "optimizer: sgdd(lr=1)\n", r"recipe.yaml:4: optimizer: optimizer 'sgdd' is unknown"),
        (GOOD + "optimizer: sgd(lr=0)\n", r"recipe.yaml:4: optimizer: sgd: lr must be a number above 0, got 0"),
        (GOOD + "transforms: [crop, pgd]\n", r"recipe.yaml:4: transforms: 'pgd' is of kind attack"),
        (GOOD + "batch_size: yes\n", r"recipe.yaml:4: batch_size: must be a valid integer, got true"),
        (GOOD + "batch_size: 2.5\n", r"recipe.yaml:4: batch_size: must be a valid integer, got 2.5"),
        (GOOD + "objective: pgd-at(eps=8)\n", r"recipe.yaml:4: objective: pgd-at: eps must be .* Did you mean 8/255"),
        (GOOD + "ema: 1.5\n", r"recipe.yaml:4: ema: must be less than 1, got 1.5"),
        (GOOD + "precision: fp8\n", r"recipe.yaml:4: precision: must be 'auto', 'fp32' or 'bf16', got 'fp8'"),
        ("model: resnet20\nepochs: 3\n", r"'data' is missing; it says what `load_data` takes"),
        ("model: resnet20\ndata: cifar10\nepochs: 0\n", r"recipe.yaml:3: epochs: must be greater than or equal to 1"),
        (GOOD + "epochs: 4\n", r"recipe.yaml:4: 'epochs' is given twice, first in line 3"),
        ("model: [resnet20\n", r"recipe.yaml:\d: this is not YAML"),
        ("just words\n", r"a recipe consists of lines such as 'model: resnet20'"),
        ("", r"a recipe consists of lines"),
        ("!!python/object/apply:os.system ['echo']\n", r"this is not YAML|consists of lines"),
    ],
)
def test_mistakes_are_told_with_file_and_line(write, text, message):
    with pytest.raises(UserError, match=message):
        Recipe.load(write(text))


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(UserError, match=r"image.yaml"):
        Recipe.load(tmp_path / "image.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        Recipe.load(tmp_path)
