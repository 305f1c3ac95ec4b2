import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app

SETTINGS = 'model-parsing(attacks=["fgsm(eps=0.25)"], width=4, epochs=2, batch_size=64)'
MODEL = "zoo:digits-convnet"


def holdfast(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """A parser of the small family, trained as briefly as can be."""
    out = tmp_path_factory.mktemp("parser")
    result = holdfast("parse", "train", SETTINGS, "-d", "digits", "--epochs", 1, "-o", out, "-q")
    assert result.exit_code == 0, result.output
    assert "the parser names kernel rightly in" in " ".join(result.output.split())
    report = json.loads((out / "report.json").read_text())
    assert report["attributes"] == {"kernel": ["3", "5", "7"], "activation": ["relu", "tanh", "elu"]}
    return out / "parser.safetensors"


@pytest.fixture(scope="module")
def incident(tmp_path_factory):
    out = tmp_path_factory.mktemp("incident")
    result = holdfast("attack", "fgsm(eps=0.25)", "-m", MODEL, "-d", "digits", "-n", 60, "-o", out, "-q")
    assert result.exit_code == 0, result.output
    return out


def test_an_attacks_folder_is_parsed(parser, incident):
    result = holdfast("parse", "read", parser, "--images", incident, "-d", "digits")
    assert result.exit_code == 0, result.output
    assert "look most like those of a model with kernel" in result.output
    found = json.loads(holdfast("parse", "read", parser, "-i", incident, "-d", "digits", "--json").output)
    attack = json.loads(holdfast("attack", "fgsm(eps=0.25)", "-m", MODEL, "-d", "digits", "-n", 60, "--json").output)
    fooled = attack["clean_accuracy"]["value"] - attack["robust_accuracy"]["value"]
    assert found["n"] == round(60 * fooled)
    assert sum(found["pooled"]["activation"].values()) == pytest.approx(1)


def test_models_that_are_named_are_told_apart(tmp_path):
    words = ["-d", "digits", "-n", 100, "-o", tmp_path, "--json", "--victim", MODEL, "--victim"]
    result = holdfast("parse", "train", SETTINGS, *words, f"{tmp_path}/other.py:make")
    assert result.exit_code == 2
    (tmp_path / "other.py").write_text(
        "from holdfast.models import load_model\n\n\ndef make():\n    return load_model('zoo:digits-convnet')\n"
    )
    result = holdfast("parse", "train", SETTINGS, *words, f"{tmp_path}/other.py:make")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["attributes"] == {"model": [MODEL, f"{tmp_path}/other.py:make"]}


def test_mistakes_are_said_in_one_sentence(parser, incident, tmp_path):
    for words, said in (
        (("read", parser, "--images", incident), "needs the clean images too"),
        (("read", incident / "adversarial.safetensors", "--images", incident), "is not a parser"),
        (("read", parser, "--images", tmp_path / "none"), "no such file or folder"),
        (("train", "pgd", "-d", "digits", "-o", tmp_path), "analysis"),
        (("train", SETTINGS, "-d", "digits", "-o", tmp_path, "--victim", MODEL), "differ in an attribute"),
    ):
        result = holdfast("parse", *words)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
