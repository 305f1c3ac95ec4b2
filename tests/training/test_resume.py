"""A training that was stopped, in whatever way, ends as if it had not been."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from holdfast.errors import UserError
from holdfast.methods import Callback
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import fit

TRAINING = {
    "epochs": 3,
    "batch_size": 12,
    "optimizer": "sgd(lr=0.05)",
    "transforms": ["crop(padding=1)"],
    "ema": 0.9,
    "wrapper": "sam",
    "objective": "pgd-at(eps=0.1, step=0.1, steps=1)",
    "save_minutes": 0.0,
}

# Imports once, then forks a child per attempt and kills it at a random moment after its next few checkpoints.
KILLER = """
import os, random, signal, sys, time
import torch
import torch._dynamo, lightning_fabric, sklearn.datasets
from holdfast.run import Run
from holdfast.training import Recipe, train

torch.set_num_threads(1)
recipe = Recipe(model="mlp(hidden=[32])", data="digits", epochs=6, batch_size=128, ema=0.9, save_minutes=0.0,
                precision="bf16", transforms=("crop(padding=1)",), optimizer="sgd(lr=0.05)")

def start(out):
    child = os.fork()
    if not child:
        train(recipe, Run(out=out))
        os._exit(0)
    return child

def checkpoint(out):
    path = os.path.join(out, "checkpoint.pt")
    return os.stat(path).st_ino if os.path.exists(path) else None

def runs_on(child, out, saves):
    for _ in range(saves):
        before = checkpoint(out)
        while checkpoint(out) == before:
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
            time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.003))
    return True

whole, killed, seed = sys.argv[1:]
os.waitpid(start(whole), 0)
chance = random.Random(int(seed))
kills = 0
while kills < 10 and runs_on(child := start(killed), killed, chance.randint(1, 3)):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
os.waitpid(start(killed), 0)
print(kills)
"""


def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, script, whole, killed, "0"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == 10
    for name in ("weights.safetensors", "best.safetensors", "metrics.csv", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert not list(killed.glob(".*")), "a kill left something behind"


@dataclass(frozen=True)
class PressesCtrlC(Callback):
    """Sends SIGINT to its own process after a step."""

    step: int = 5

    def on_step(self, state):
        if state.index == self.step and not (state.run.out / "pressed").exists():
            (state.run.out / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [2, 4, 9])  # within an epoch, and at its end
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_to_the_same_end(noise, convolutional, tmp_path, step):
    def run(name, model):
        settings = TRAINING | {"save_minutes": 60, "callbacks": [PressesCtrlC(step)], "run": Run(out=tmp_path / name)}
        return fit(model, noise, **settings)

    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "pressed").touch()
    whole = run("whole", convolutional())
    (tmp_path / "stopped").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run("stopped", convolutional())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = run("stopped", convolutional())
    assert weights_hash(again.model) == weights_hash(whole.model)
    assert weights_hash(again.ema_model) == weights_hash(whole.ema_model)
    assert again.history == whole.history
    assert (tmp_path / "stopped/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_finished_training_is_not_repeated(noise, convolutional, tmp_path):
    run = Run(out=tmp_path)
    first = fit(convolutional(), noise, **TRAINING, run=run)
    stamp = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    second = fit(convolutional(), noise, **TRAINING, run=run)
    assert weights_hash(first.model) == weights_hash(second.model)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"epochs": 4}, 0, "with epochs 3, and this one has 4"),
        ({"optimizer": "sgd(lr=0.1)"}, 0, r"optimizer sgd\(lr=0.05\), and this one has sgd"),
        ({}, 7, "with seed 0, and this one has 7"),
    ],
)
def test_another_training_in_the_same_folder_is_refused(noise, convolutional, tmp_path, changes, seed, message):
    fit(convolutional(), noise, **TRAINING, run=Run(out=tmp_path))
    with pytest.raises(UserError, match=message):
        fit(convolutional(), noise, **(TRAINING | changes), run=Run(out=tmp_path, seed=seed))


def test_other_data_or_other_starting_weights_are_refused(noise, convolutional, tmp_path):
    fit(convolutional(), noise, **TRAINING, run=Run(out=tmp_path))
    with pytest.raises(UserError, match="holds a training with data noise"):
        fit(convolutional(), noise.but(x=noise.x.flip(3)), **TRAINING, run=Run(out=tmp_path))
    other = convolutional()
    torch.nn.init.zeros_(other[-1].weight)
    with pytest.raises(UserError, match="holds a training with starting weights"):
        fit(other, noise, **TRAINING, run=Run(out=tmp_path))


def test_a_damaged_or_malicious_checkpoint_is_refused_and_runs_nothing(noise, convolutional, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        fit(convolutional(), noise, **TRAINING, run=Run(out=tmp_path))
    torch.save(Malicious(tmp_path / "ran"), path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        fit(convolutional(), noise, **TRAINING, run=Run(out=tmp_path))
    assert not (tmp_path / "ran").exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_callbacks_get_their_memory_back(noise, linear, tmp_path):
    @dataclass(frozen=True)
    class Counts(Callback):
        def on_step(self, state):
            state.memory["steps"] = state.memory.get("steps", 0) + 1
            if state.index == 3 and not (tmp_path / "pressed").exists():
                (tmp_path / "pressed").touch()
                os.kill(os.getpid(), signal.SIGINT)

        def on_end(self, state):
            (tmp_path / "count").write_text(str(state.memory["steps"]))

    def run():
        fit(linear(), noise, epochs=2, batch_size=12, callbacks=[Counts()], run=Run(out=tmp_path))

    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert (tmp_path / "count").read_text() == "8"
