"""Guards on the command line."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from holdfast.cli import app, options

MODEL = ["--model", "zoo:digits-convnet", "--data", "digits", "--device", "cpu"]


def attack(*words):
    return CliRunner().invoke(app, ["attack", *words, *MODEL, "--json"])


def robust(*words):
    result = attack(*words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["robust_accuracy"]["value"]


def test_a_guard_hides_gradients_and_knowing_it_finds_them():
    pgd = "pgd(eps=0.2, steps=5, random_start=False)"
    plain, guarded = robust(pgd, "-n", "40"), robust(pgd, "-n", "40", "--guard", "aaa(tau=6, iterations=30)")
    assert plain < 0.7
    assert guarded > 0.9
    assert robust(pgd, "-n", "40", "--guard", "aaa(tau=6, iterations=30)", "--adaptive") == plain


def test_results_of_two_guards_do_not_mix_in_one_folder(tmp_path):
    square = ["square(eps=0.2, queries=20)", "-n", "20", "--out", str(tmp_path)]
    first = robust(*square, "--guard", "aaa(tau=6, iterations=30)")
    assert robust(*square, "--guard", "aaa(tau=1, iterations=0)") == robust(*square[:3])
    assert robust(*square, "--guard", "aaa(tau=6, iterations=30)") == first


def test_guards_stack_in_order(tmp_path):
    assert robust("random-noise(queries=1)", "-n", "10", "--guard", "rnd(sigma=0)", "--guard", "aaa") > 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guard", "aaaa"], "aaa"),
        (["--guard", "pgd"], "surgery"),
        (["--guard", "aaa(tau=0)"], "tau must be"),
        (["--adaptive"], "adaptive()"),
    ],
)
def test_mistakes_are_said_in_one_sentence(words, said):
    result = attack("pgd", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_audit_of_a_guarded_model_names_the_guard_and_sees_masked_gradients(tmp_path):
    words = [
        "audit",
        *MODEL,
        "--guard",
        "aaa(tau=5, iterations=4)",
        "--only",
        "gradient-masking",
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    audit = json.loads(result.stdout)
    assert "--guard 'aaa(tau=5, iterations=4)'" in audit["command"]
    assert "behind aaa(tau=5, iterations=4)" in audit["name"]
    (finding,) = audit["findings"]
    assert finding["verdict"] == "fail"
    assert next(m for m in finding["metrics"] if m["name"] == "cut-gradient")["value"] == 1


@pytest.mark.parametrize("text", ["aaa", "aaa(tau=6)", "abf(weights='a b.safetensors')", "abf(weights='$x')", "a'\"b"])
def test_a_spec_is_one_word_of_the_shell(text):
    assert shlex.split(options.quoted(text)) == [text]
