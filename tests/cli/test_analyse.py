"""Analyses on the command line."""

import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.evasion import LSA, L2Transferability, MADCompetition
from holdfast.hardening import SelfGMAD
from holdfast.methods import Analysis
from holdfast.models import build_model, load_model, save_weights
from holdfast.run import Run

MODEL = "zoo:digits-convnet"
LSA_QUICK = "lsa(attacks=['i-fgsm(steps=2)', gaussian])"


def analyse(*words, data="digits"):
    return CliRunner().invoke(app, ["analyse", *words, "-d", data, "-n", "24", "-q", "--device", "cpu"])


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A network of another kind with the weights it was born with, and the words that name it."""
    model = build_model("mlp(hidden=[16])", num_classes=10, image_shape=(1, 8, 8), run=Run())
    path = tmp_path_factory.mktemp("models") / "mlp.safetensors"
    save_weights(model, path)
    return model, ["-m", "mlp(hidden=[16])", "-w", str(path)]


def test_the_layers_of_a_model_are_listed_by_depth():
    result = analyse(LSA_QUICK, "-m", MODEL)
    assert result.exit_code == 0, result.output
    places = [result.stdout.index(layer) for layer in ("features.2", "features.6", "features.10")]
    assert places == sorted(places)
    assert "moves most" in result.stdout


def test_json_and_the_file_say_what_python_says(tmp_path):
    result = analyse(LSA_QUICK, "-m", MODEL, "--json", "--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "new" / "report.json").read_text())
    assert (found["method"], found["models"], found["n"]) == (
        "lsa(attacks=['i-fgsm(steps=2)', 'gaussian'])",
        [MODEL],
        24,
    )
    images = load_data("digits").test.select(slice(0, 24))
    expected = LSA(attacks=("i-fgsm(steps=2)", "gaussian"))(load_model(MODEL), images, run=Run(device="cpu"))
    assert found["report"]["models"][MODEL] == expected.to_json()


def test_models_compete_with_their_labels_as_the_oracle(second):
    result = analyse("mad-competition", "-m", MODEL, "-w", "-", *second[1], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["report"]
    assert found["ranking"][0] == MODEL
    y = load_data("digits").test.y
    assert found["labels"]
    assert all(int(y[int(place)]) == label for place, label in found["labels"].items())
    table = analyse("mad-competition", "-m", MODEL, "-w", "-", *second[1]).stdout
    assert table.index("errors found") < table.index(MODEL)


def test_each_model_is_attacked_and_the_others_are_to_be_fooled(second):
    other = load_model(MODEL)
    images = load_data("digits").test.select(slice(0, 24))
    method = L2Transferability(attacks=("i-fgsm(steps=2)", "fgsm"), points=2, eps=0.2)
    models = {"a": load_model(MODEL), "b": other, "c": other}
    report = method.of_models(models, images, run=Run(device="cpu"))
    pairs = [(row.surrogate, victim) for row in report.rows for victim in row.success]
    assert set(pairs) == {(s, v) for s in "abc" for v in "abc" if s != v}
    alone = method({"b": other}, {"a": models["a"], "c": other}, images, run=Run(device="cpu"))
    assert [row for row in report.rows if row.surrogate == "b"] == list(alone.rows)
    assert len(report.listing()) == len(pairs)


def test_two_models_that_agree_everywhere_leave_nothing_to_ask():
    model = load_model(MODEL)
    images = load_data("digits").test.select(slice(0, 24))
    found = MADCompetition().of_models({"a": model, "b": model}, images, run=Run(device="cpu"))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gap"] is None
    assert len(found.listing()) == 2


def test_a_guard_stands_before_every_model_and_in_its_name():
    found = json.loads(analyse(LSA_QUICK, "-m", MODEL, "--guard", "rnd(sigma=0)", "--json").stdout)
    assert found["models"] == [f"{MODEL} behind rnd(sigma=0)"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lsaa", "-m", MODEL], "lsa"),
        (["pgd", "-m", MODEL], "of kind attack, but a method of kind analysis is needed"),
        (["lsa(top=0)", "-m", MODEL], "top must be"),
        (["lsa", "-m", "zoo:digits-convnt"], "digits-convnet"),
        (["self-gmad", "-m", MODEL], "cannot be run from the command line: it needs a model of scores"),
        (["mad-competition", "-m", MODEL], "at least two models"),
        (["l2-transferability", "-m", MODEL], "at least two models"),
        (["lsa", "-m", MODEL, "-m", MODEL], "given twice"),
        (["lsa", "-m", MODEL, "-w", "-", "-w", "-"], "once for each of 1 models"),
        (["lsa", "-m", MODEL, "-w", "none.safetensors"], "none.safetensors"),
        (["lsa", "-m", MODEL, "--guard", "pgd"], "surgery"),
    ],
)
def test_mistakes_are_said_in_one_sentence(words, said):
    result = analyse(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    result = analyse(LSA_QUICK, "-m", MODEL, "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_help_has_an_example():
    result = CliRunner().invoke(app, ["analyse", "--help"])
    assert result.exit_code == 0
    assert "holdfast analyse lsa" in result.stdout


def test_an_analysis_that_needs_more_says_so():
    class Deep(Analysis):
        id = "deep"

        def __call__(self):
            raise NotImplementedError

    for method, said in ((Deep(), "deep cannot be run from the command line. Its page"), (SelfGMAD(), "it needs")):
        with pytest.raises(UserError, match=said):
            method.of_models({}, None, run=Run())
