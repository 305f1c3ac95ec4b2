"""What users get wrong, and the one sentence each of them gets: exit code 2, no traceback."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.models import build_model, save_weights

DIGITS = ["--model", "zoo:digits-convnet", "--data", "digits"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)


def pictures(root, classes=("a", "b"), size=(8, 8), count=6):
    for label in classes:
        (root / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(root / label / f"{i}.png")
    return root


def model_file(path, body):
    path.write_text("import torch\nfrom torch import nn\n" + body)


class Bomb:
    def __reduce__(self):
        return (exec, ("open('executed', 'w').close()",))


# Each case: what it is, how to prepare the folder, the command, and words that the sentence must hold.
CASES = {
    "unknown model": (None, ["audit", "--model", "resnet21", "--data", "digits"], "resnet20"),
    "unknown zoo model": (None, ["audit", "--model", "zoo:digits-convnt", "--data", "digits"], "digits-convnet"),
    "unknown data": (None, ["audit", "--model", "zoo:digits-convnet", "--data", "digit"], "digits"),
    "missing path": (None, ["audit", "--model", "zoo:digits-convnet", "--data", "./nowhere"], "nowhere"),
    "missing weights": (
        None,
        ["audit", "--model", "convnet", "--weights", "none.safetensors", "--data", "digits"],
        "none.safetensors",
    ),
    "unknown device": (None, ["audit", *DIGITS, "--device", "gpu"], "device"),
    "negative seed": (None, ["audit", *DIGITS, "--seed", "-1"], "seed"),
    "no batch": (None, ["audit", *DIGITS, "--batch-size", "0"], "batch_size"),
    "unknown check": (None, ["audit", *DIGITS, "--only", "acuracy"], "accuracy"),
    "missing policy": (None, ["audit", *DIGITS, "--policy", "none.yaml"], "none.yaml"),
    "policy that is no YAML": (
        lambda d: (d / "p.yaml").write_text("rules: ["),
        ["audit", *DIGITS, "--policy", "p.yaml"],
        "p.yaml",
    ),
    "policy with a misspelt check": (
        lambda d: (d / "p.yaml").write_text("rules: {acuracy: {accuracy: {pass: 0.9}}}"),
        ["audit", *DIGITS, "--policy", "p.yaml"],
        "accuracy",
    ),
    "policy with a limit that is no number": (
        lambda d: (d / "p.yaml").write_text("rules: {accuracy: {accuracy: {pass: high}}}"),
        ["audit", *DIGITS, "--policy", "p.yaml"],
        "pass",
    ),
    "output is a file": (lambda d: (d / "out").write_text(""), ["audit", *DIGITS, "--out", "out"], "out"),
    "weights of another model": (
        lambda d: save_weights(build_model("mlp", num_classes=10, image_shape=(1, 8, 8)), d / "w.safetensors", {}),
        ["audit", "--model", "convnet", "--weights", "w.safetensors", "--data", "digits"],
        "w.safetensors",
    ),
    "weights cut short": (
        lambda d: (d / "w.safetensors").write_bytes(struct.pack("<Q", 1000) + b'{"a":'),
        ["audit", "--model", "convnet", "--weights", "w.safetensors", "--data", "digits"],
        "w.safetensors",
    ),
    "weights with NaN": (
        lambda d: save_file(
            {k: torch.full_like(v, float("nan")) if v.is_floating_point() else v
             for k, v in build_model("mlp", num_classes=10, image_shape=(1, 8, 8)).state_dict().items()},
            d / "w.safetensors",
        ),
        ["attack", "fgsm", "--model", "mlp", "--weights", "w.safetensors", "--data", "digits", "-n", "4"],
        "NaN",
    ),
    "a pickled module": (
        lambda d: torch.save(torch.nn.Linear(2, 2), d / "w.pt"),
        ["audit", "--model", "convnet", "--weights", "w.pt", "--data", "digits"],
        "safetensors",
    ),
    "a pickle that would run code": (
        lambda d: (d / "w.pt").write_bytes(pickle.dumps(Bomb())),
        ["audit", "--model", "convnet", "--weights", "w.pt", "--data", "digits"],
        "safetensors",
    ),
    "a module that does not exist": (None, ["audit", "--model", "no_such:make", "--data", "digits"], "no_such"),
    "a file that does not exist": (None, ["audit", "--model", "gone.py:make", "--data", "digits"], "gone.py"),
    "a factory that does not exist": (
        lambda d: model_file(d / "my.py", "def mak(): return nn.Flatten()\n"),
        ["audit", "--model", "my.py:make", "--data", "digits"],
        "make",
    ),
    "a factory that fails": (
        lambda d: model_file(d / "my.py", "def make(): return 1 / 0\n"),
        ["audit", "--model", "my.py:make", "--data", "digits"],
        "ZeroDivisionError",
    ),
    "a factory that makes no module": (
        lambda d: model_file(d / "my.py", "def make(): return 3\n"),
        ["audit", "--model", "my.py:make", "--data", "digits"],
        "int",
    ),
    "a model for another image size": (
        lambda d: model_file(d / "my.py", "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))\n"),
        ["audit", "--model", "my.py:make", "--data", "digits"],
        "1x8x8",
    ),
    "a model with too few classes": (
        lambda d: model_file(d / "my.py", "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"),
        ["audit", "--model", "my.py:make", "--data", "digits"],
        "10",
    ),
    "an empty folder": (lambda d: (d / "e").mkdir(), ["data", "show", "./e"], "e"),
    "an empty class folder": (lambda d: (pictures(d / "p") / "c").mkdir(), ["data", "show", "./p"], "c"),
    "a picture that is none": (
        lambda d: (pictures(d / "p") / "a" / "bad.png").write_text("no picture"),
        ["data", "show", "./p"],
        "bad.png",
    ),
    "pictures of several sizes": (
        lambda d: Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save(pictures(d / "p") / "a" / "odd.png"),
        ["data", "show", "./p"],
        "size",
    ),
    "labels out of range": (
        lambda d: np.savez(d / "d.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.array([0, 1, 2, -1])),
        ["data", "show", "./d.npz"],
        "label",
    ),
    "pixels out of range": (
        lambda d: np.savez(d / "d.npz", x=np.full((4, 3, 8, 8), 7.0, np.float32), y=np.arange(4) % 2),
        ["data", "show", "./d.npz"],
        "[0, 1]",
    ),
    "pixels that are NaN": (
        lambda d: np.savez(d / "d.npz", x=np.full((4, 3, 8, 8), np.nan, np.float32), y=np.arange(4) % 2),
        ["data", "show", "./d.npz"],
        "NaN",
    ),
    "arrays of objects": (
        lambda d: np.savez(d / "d.npz", x=np.array([Bomb()] * 4, dtype=object), y=np.arange(4)),
        ["data", "show", "./d.npz"],
        "d.npz",
    ),
    "an archive that climbs out": (
        lambda d: zipfile.ZipFile(d / "z.zip", "w").writestr("../../escaped/a.png", b"x"),
        ["data", "show", "./z.zip"],
        "z.zip",
    ),
    "an archive that is none": (
        lambda d: (d / "z.zip").write_bytes(b"PK nonsense"),
        ["data", "show", "./z.zip"],
        "z.zip",
    ),
    "a table that is none": (
        lambda d: (d / "t.parquet").write_bytes(b"PAR1"),
        ["data", "show", "./t.parquet"],
        "t.parquet",
    ),
    "eps in bytes": (None, ["attack", "pgd(eps=8)", *DIGITS], "8/255"),
    "a misspelt hyperparameter": (None, ["attack", "pgd(epz=0.1)", *DIGITS], "'eps'"),
    "an attack that cannot be read": (None, ["attack", "pgd(eps=", *DIGITS], "pgd(eps=8/255, steps=20)"),
    "a detector as an attack": (None, ["attack", "energy", *DIGITS], "attack"),
    "an unknown method": (None, ["show", "pgdd"], "'pgd'"),
    "an unknown kind": (None, ["list", "--kind", "atack"], "attack"),
    "an unknown proof": (None, ["prove", "enrgy"], "energy"),
    "a recipe that does not exist": (None, ["train", "none.yaml"], "none.yaml"),
    "a recipe with a misspelt field": (
        lambda d: (d / "r.yaml").write_text("model: convnet\ndata: digits\nepochz: 3\n"),
        ["train", "r.yaml"],
        "epochs",
    ),
    "a recipe without epochs": (
        lambda d: (d / "r.yaml").write_text("model: convnet\ndata: digits\nepochs: 0\n"),
        ["train", "r.yaml"],
        "epochs",
    ),
    "one audit to compare": (None, ["compare", "one"], "two or more"),
    "audits that do not exist": (None, ["compare", "one", "two"], "one"),
    "an audit that is none": (
        lambda d: [(d / n).mkdir() or (d / n / "audit.json").write_text(json.dumps({"a": 1})) for n in ("one", "two")],
        ["compare", "one", "two"],
        "audit.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_gets_exit_code_2_and_one_helpful_sentence(case, tmp_path):
    prepare, command, words = CASES[case]
    if prepare is not None:
        prepare(tmp_path)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, (result.output, result.exception)
    message = result.stderr.strip()
    assert message.startswith("holdfast: ")
    assert "\n" not in message
    assert "Traceback" not in message
    assert words in message
    assert len(message) < 500
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path.parent.parent / "escaped").exists()


def test_there_are_at_least_thirty_of_them():
    assert len(CASES) >= 30
