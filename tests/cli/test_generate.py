import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from holdfast.cli import app

TINY = "ddpm-ddim-cfg(updates=4, width=8, steps=20, batch_size=32)"


def holdfast(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A model told captions, trained as briefly as can be."""
    out = tmp_path_factory.mktemp("shapes")
    words = ["--data", "shapes32(n=300)", "--size", 16, "--method", TINY]
    result = holdfast("generate", "train", *words, "--out", out, "-q")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Trained on 300 images of 3x16x16, and told captions." in said
    assert f"holdfast generate sample {out} --prompt 'a painting of a" in said
    return out


def picture(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def test_a_prompt_gives_a_grid(shapes, tmp_path):
    words = ["generate", "sample", shapes, "-n", 6, "--sampler", "ddim(steps=4)", "-q"]
    result = holdfast(*words, "--prompt", "a red star on a dotted background", "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(tmp_path / "a.png")
    assert picture(tmp_path / "a.png").shape == (64, 6 * 66 - 2, 3)
    again = holdfast(*words, "-p", "red star dotted", "--out", tmp_path / "b.png")
    assert again.exit_code == 0, again.output
    assert np.array_equal(picture(tmp_path / "a.png"), picture(tmp_path / "b.png"))
    two = holdfast(*words, "-p", "red star", "-p", "blue disc", "--out", tmp_path / "c.png", "--json")
    assert json.loads(two.output)["images"] == 12
    assert picture(tmp_path / "c.png").shape == (2 * 66 - 2, 6 * 66 - 2, 3)


def test_without_a_prompt_it_shows_anything(shapes, tmp_path):
    result = holdfast("generate", "sample", shapes, "-n", 3, "--sampler", "ddim(steps=2)", "-o", tmp_path / "d.png")
    assert result.exit_code == 0, result.output


def test_a_word_that_it_does_not_know_gets_one_sentence_with_the_nearest(shapes, tmp_path):
    result = holdfast("generate", "sample", shapes, "--prompt", "red disk on blue", "--out", tmp_path / "e.png")
    assert result.exit_code == 2
    said = result.output.strip()
    assert "the word 'disk' is unknown to this model" in said
    assert said.endswith("the nearest of them is 'disc'.")
    assert "\n" not in said
    assert not (tmp_path / "e.png").exists()


def test_a_finished_training_is_not_done_again(shapes):
    words = ["--data", "shapes32(n=300)", "--size", 16, "--method", TINY, "--out", shapes, "--json"]
    before = (shapes / "model" / "model.safetensors").read_bytes()
    result = holdfast("generate", "train", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["told"] == "text"
    assert (shapes / "model" / "model.safetensors").read_bytes() == before


def test_digits_are_told_apart_by_class(tmp_path):
    result = holdfast("generate", "train", "-d", "digits", "-n", 100, "--method", TINY, "-o", tmp_path / "m", "-q")
    assert result.exit_code == 0, result.output
    assert "told classes" in result.output
    words = ["generate", "sample", tmp_path / "m", "--sampler", "ddim(steps=2)", "-o", tmp_path / "g.png"]
    assert holdfast(*words, "-p", "7").exit_code == 0
    wrong = holdfast(*words, "-p", "seven")
    assert wrong.exit_code == 2
    assert "class 'seven' is unknown" in wrong.output


def test_mistakes_are_said_in_one_sentence(tmp_path):
    for words, said in (
        (["train", "-d", "digits", "--method", "pgd"], "a method of kind generator is needed"),
        (["train", "-d", "digits", "--method", "ddpm-ddim-cfg(width=0)"], "width must be a whole number of at least 1"),
        (["sample", tmp_path], "model.json: no such file"),
    ):
        result = holdfast("generate", *words)
        assert result.exit_code == 2, result.output
        assert said in result.output.replace("\n", " ")
