"""``holdfast generate unlearn`` and ``holdfast generate attack``."""

import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.generative import load_diffusion
from holdfast.models import weights_hash

TINY = "ddpm-ddim-cfg(updates=4, width=8, steps=20, batch_size=32, tokens=16)"
ESD = "esd(steps=2, ddim_steps=2, optimizer=adam(lr=0.001))"
JUDGE = """
import torch

class Judge(torch.nn.Module):
    def forward(self, x):  # class 1 is whatever is brighter than nothing
        return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3)) - {least}], 1)

def make():
    return Judge()
"""


def holdfast(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A model told captions, trained as briefly as can be."""
    out = tmp_path_factory.mktemp("shapes")
    words = ["--data", "shapes32(n=300)", "--size", 16, "--method", TINY]
    assert holdfast("generate", "train", *words, "--out", out, "-q").exit_code == 0
    return out


def test_a_concept_is_forgotten_and_the_new_model_is_like_any_other(shapes, tmp_path):
    words = ["generate", "unlearn", shapes, "--method", ESD, "--concept", "disc", "--out", tmp_path, "-q"]
    result = holdfast(*words, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said == json.loads((tmp_path / "unlearning.json").read_text())
    new, old = load_diffusion(tmp_path / "model"), load_diffusion(shapes / "model")
    assert (weights_hash(new), weights_hash(old)) == (said["unlearned"], said["original"])
    assert said["unlearned"] != said["original"]
    shown = holdfast("generate", "sample", tmp_path, "-p", "red disc", "-n", 1, "--sampler", "ddim(steps=2)", "-q",
                     "--out", tmp_path / "a.png")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    again = holdfast(*words)
    assert "made the model forget 'disc'" in again.output
    assert json.loads((tmp_path / "unlearning.json").read_text())["unlearned"] == said["unlearned"]


def test_pictures_of_the_concept_are_found_among_others_by_their_captions(shapes, tmp_path):
    method = "salun-diffusion(steps=2, batch_size=8, optimizer=adam(lr=0.001))"
    words = ["generate", "unlearn", shapes, "--method", method, "--data", "shapes32(n=300)", "--size", 16, "-q"]
    result = holdfast(*words, "--concept", "disc", "--instead", "star", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    wrong = holdfast(*words, "--concept", "disc", "--out", tmp_path / "b")
    assert wrong.exit_code == 2
    assert "say what is to be drawn in the place of 'disc'" in wrong.output


@pytest.mark.parametrize(("least", "state"), [(0.0, "without attack"), (9.0, "resists")])
def test_an_attack_is_judged_by_another_model(shapes, tmp_path, least, state):
    (tmp_path / "judge.py").write_text(JUDGE.format(least=least))
    attack = "unlearndiffatk(tokens=2, times=2, iterations=2, ddim_steps=2)"
    words = [
        "generate",
        "attack",
        shapes,
        "--original",
        shapes,
        "--method",
        attack,
        "-p",
        "red disc",
        "-p",
        "blue disc",
    ]
    named = ["--judge", f"{tmp_path / 'judge.py'}:make", "--shows", 1, "--out", tmp_path / "out", "-q"]
    result = holdfast(*words, *named)
    assert result.exit_code == 0, result.output
    assert state in result.output
    found = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert found["rate"] == (1.0 if least == 0 else 0.0)
    assert [row["rounds"] for row in found["prompts"]] == ([0, 0] if least == 0 else [2, 2])
    assert (tmp_path / "out" / "attack.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unlearn", "FOLDER", "--concept", "disk", "--method", ESD], "the nearest of them is 'disc'"),
        (["unlearn", "FOLDER", "--concept", "disc", "--method", "salun"], "of kind concept-unlearner is needed"),
        (["unlearn", "nowhere", "--concept", "disc"], "nowhere"),
        (["unlearn", "FOLDER", "--concept", "dis", "--data", "shapes32(n=50)"], "no picture is of 'dis'"),
        (["attack", "FOLDER", "--original", "FOLDER", "-p", "red disc", "--judge", "JUDGE", "--shows", "disc"],
         "give --shows as a number, not 'disc'"),
        (["attack", "FOLDER", "--original", "FOLDER", "-p", "red disc", "--judge", "JUDGE", "--shows", "2",
          "--method", "p4d(tokens=1, ddim_steps=2)"], "there is no class 2"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_one_sentence(words, said, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(JUDGE.format(least=0.5))
    known = {"FOLDER": shapes, "JUDGE": f"{tmp_path / 'judge.py'}:make"}
    result = holdfast("generate", *(known.get(word, word) for word in words), "--out", tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1
