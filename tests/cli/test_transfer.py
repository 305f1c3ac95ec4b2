import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app

MODEL = "zoo:digits-convnet"


def transfer(*words):
    command = ["transfer", *words, "-s", MODEL, "-v", MODEL, "-d", "digits", "-n", "24", "-q"]
    return CliRunner().invoke(app, command)


def test_the_table_has_a_row_for_each_attack():
    result = transfer("i-fgsm(steps=2)", "mi-fgsm(steps=2)", "--eps", "40/255", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["eps"] == pytest.approx(40 / 255)
    assert [row["attack"] for row in found["rows"]] == ["i-fgsm(steps=2)", "mi-fgsm(steps=2)"]
    assert all(0 < row["success"][MODEL] <= 1 for row in found["rows"])


def test_it_ends_with_a_sentence():
    result = transfer("fgsm", "--eps", "0.1")
    assert result.exit_code == 0, result.output
    assert "transfers best" in result.output


def test_a_radius_in_levels_is_refused():
    result = transfer("fgsm", "--eps", "8")
    assert result.exit_code == 2
    assert "Did you mean 8/255" in result.output
