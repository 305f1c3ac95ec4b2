"""``holdfast membership``, as a user types it."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from holdfast.cli import app

START = ["membership", "--model", "zoo:digits-convnet", "--data", "digits", "-q"]


def holdfast(*words):
    return CliRunner().invoke(app, [*START, *words])


def test_it_writes_figures_and_scores_and_goes_on_where_it_was(tmp_path):
    words = [
        "--attack",
        "rmia(a=0.5)",
        "--attack",
        "loss-mia",
        "--shadows",
        "2",
        "--epochs",
        "1",
        "--out",
        str(tmp_path),
    ]
    result = holdfast(*words, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "membership.json").read_text())
    assert list(told["attacks"]) == ["rmia(a=0.5)", "loss-mia"]
    assert told["attacks"]["loss-mia"]["tpr"]["0.001"]["value"] is None  # 449 test images cannot say
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.num_rows == told["members"] + told["nonmembers"] == 1078 + 449
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shadows").iterdir()}
    assert len(before) == 2
    shown = holdfast(*words)
    assert "too few" in shown.stdout
    assert "Note: Shadow models are trained on 763 images" in " ".join(shown.stdout.split())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shadows").iterdir()} == before


def test_the_recipe_of_the_model_is_followed(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: mlp\ndata: digits\nepochs: 1\noptimizer: sgd(lr=0.01)\nprecision: fp32\n")
    result = holdfast("--recipe", str(recipe), "--attack", "loss-mia", "--out", str(tmp_path / "out"), "--json")
    assert "SGD(lr=0.01" in json.loads(result.stdout)["recipe"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "lira must know how the model was trained: give the recipe"),
        (["--optimizer", "sgd"], "say by --epochs"),
        (["--epochs", "1", "--shadows", "3"], "must be even"),
        (["--epochs", "1", "--attack", "lira", "--shadows", "2"], "at least 2 shadow models"),
        (["--epochs", "1", "--attack", "pgd"], "of kind attack"),
        (["--epochs", "1", "--optimizer", "sdg"], "Did you mean 'sgd'"),
        (["--epochs", "1", "--recipe", "r.yaml"], "leave out --epochs"),
    ],
)
def test_mistakes_get_one_sentence(words, message, tmp_path):
    result = holdfast(*words, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
