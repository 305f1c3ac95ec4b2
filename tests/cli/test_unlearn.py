"""``holdfast unlearn``."""

import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data import load_data
from holdfast.models import load_model, weights_hash

METHOD = "salun(epochs=1, batch_size=64, crop=none, flip=none)"
COMMON = ["--model", "zoo:digits-convnet", "--data", "digits", "--quiet"]


def invoke(*args):
    return CliRunner().invoke(app, ["unlearn", *args])


def test_it_writes_weights_and_a_certificate_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "out"
    args = ["--method", METHOD, *COMMON, "--forget", "class=3", "--out", str(out), "--json"]
    first = invoke(*args)
    assert first.exit_code == 0, first.output
    said = json.loads(first.output)
    kept = json.loads((out / "certificate.json").read_text())
    assert said == kept
    data = load_data("digits")
    positions = [int(line) for line in (out / "forget.csv").read_text().split()[1:]]
    assert positions == (data.train.y == 3).nonzero().flatten().tolist()
    model = load_model("convnet", weights=out / "weights.safetensors", num_classes=10, image_shape=data.shape)
    assert weights_hash(model) == kept["unlearned"]
    assert kept["original"] != kept["unlearned"]
    assert "Evidence of unlearning" in (out / "certificate.html").read_text()
    again = json.loads(invoke(*args).output)
    assert {**again, "made": ""} == {**kept, "made": ""}


def test_the_time_of_one_request_does_not_stand_for_another(tmp_path):
    """By a method without training, which has no checkpoint to refuse the folder by."""
    taken = {}
    for label in ("3", "4"):
        args = ["--method", "ssd", *COMMON, "--forget", f"class={label}", "--out", str(tmp_path)]
        assert invoke(*args).exit_code == 0
        taken[label] = json.loads((tmp_path / "unlearn" / "seconds.json").read_text())
        assert json.loads((tmp_path / "certificate.json").read_text())["seconds"] == round(taken[label]["seconds"], 2)
    assert taken["3"]["work"] != taken["4"]["work"]
    assert taken["3"]["seconds"] != taken["4"]["seconds"]


def test_with_retraining_the_gap_is_told(tmp_path):
    retrain = "retrain(epochs=1, batch_size=64, crop=none, flip=none)"
    result = invoke("--method", METHOD, *COMMON, "--forget", "class=3", "--out", str(tmp_path), "--retrain", retrain)
    assert result.exit_code == 0, result.output
    assert "mean gap to a retrained model" in result.output
    assert "retrained" in result.output
    assert json.loads((tmp_path / "certificate.json").read_text())["reference_seconds"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--forget", "class=12"], "no class"),
        (["--forget", "nothing.csv"], "cannot be read"),
        (["--forget", "class=3", "--method", "salnu"], "Did you mean 'salun'"),
        (["--forget", "class=3", "--reference", "a.safetensors", "--retrain", "retrain"], "give one of them"),
        (["--forget", "class=3", "--method", "pgd"], "unlearner"),
    ],
)
def test_a_bad_request_gets_one_sentence(changes, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("--method", METHOD, *COMMON, "--out", str(tmp_path), *changes)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1
