"""Killed at any moment and started again with the same folder, a command gives what it would have given."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOLDFAST = [sys.executable, "-c", "from holdfast.cli import main; main()"]
STARTING = 2.0  # seconds in which nothing is under way yet
QUICK = ["--only", "accuracy", "--only", "calibration", "--only", "ood"]


def start(command, cwd):
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen(
        [*HOLDFAST, *command], cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(command, cwd):
    process = start(command, cwd)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def kill_at_random_moments(command, cwd, *, within, times, seed):
    """Start and kill the command again and again, so that all starts together last about as long as one whole run."""
    moments = random.Random(seed)
    killed = 0
    for _ in range(times):
        process = start(command, cwd)
        try:
            process.wait(timeout=STARTING + moments.uniform(0.0, 2.0) * within / times)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        process.stderr.close()
    return killed


def kill_at_signs_of_work(command, cwd, folder, *, times, seed):
    """Start the command, and kill it shortly after it has written something; short runs are caught that way too."""
    moments = random.Random(seed)
    killed = 0
    for _ in range(times):
        before = written(folder)
        process = start(command, cwd)
        while process.poll() is None and written(folder) == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    return killed


def written(folder):
    """What stands in the folder, down to the moment it was written; files may vanish while we look."""
    found = set()
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def content(folder, names):
    return {name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in names}


def stable(folder):
    """All of audit.json but what a clock or the folder's name decides."""
    audit = json.loads((Path(folder) / "audit.json").read_text())

    def strip(value):
        if isinstance(value, dict):
            if value.get("volatile"):
                return {k: v for k, v in value.items() if k not in ("value", "low", "high", "n")}
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(audit)


def no_debris(folder):
    return not [p for p in Path(folder).rglob("*") if p.name.endswith(".tmp")]


def kill_again_and_again(command, tmp_path, took, times, seed):
    if times < 5:
        return kill_at_signs_of_work(command, tmp_path, tmp_path / "broken", times=times, seed=seed)
    return kill_at_random_moments(command, tmp_path, within=took, times=times, seed=seed)


def check_audit(command, tmp_path, times, seed):
    began = time.monotonic()
    finish([*command, "--out", "whole"], tmp_path)
    took = time.monotonic() - began
    killed = kill_again_and_again([*command, "--out", "broken"], tmp_path, took, times, seed)
    finish([*command, "--out", "broken"], tmp_path)
    assert killed >= times // 2, "the audit was hardly caught at work"
    assert stable(tmp_path / "broken") == stable(tmp_path / "whole")
    assert content(tmp_path / "broken", ["samples.parquet"]) == content(tmp_path / "whole", ["samples.parquet"])


def check_training(recipe, tmp_path, times, seed):
    command = ["train", str(recipe), "--quiet"]
    began = time.monotonic()
    finish([*command, "--out", "whole"], tmp_path)
    took = time.monotonic() - began
    killed = kill_again_and_again([*command, "--out", "broken"], tmp_path, took, times, seed)
    finish([*command, "--out", "broken"], tmp_path)
    assert killed >= times // 2, "the training was hardly caught at work"
    names = ["weights.safetensors", "metrics.csv", "metrics.jsonl"]
    assert content(tmp_path / "broken", names) == content(tmp_path / "whole", names)


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_killed_audit_goes_on_to_the_same_result(tmp_path):
    check_audit(["audit", "--model", "zoo:digits-convnet", "--data", "digits", "-q", *QUICK], tmp_path, times=2, seed=1)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    text = "model: convnet\ndata: digits\nepochs: 4\nbatch_size: 64\ntransforms: [crop(padding=1)]\nema: 0.9\n"
    check_training(recipe(tmp_path, text + "save_minutes: 0.005\n"), tmp_path, times=2, seed=2)


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(tmp_path):
    text = "model: convnet\ndata: digits\nepochs: 500\nbatch_size: 16\n"
    process = start(["train", str(recipe(tmp_path, text)), "--quiet", "--out", "run"], tmp_path)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert no_debris(tmp_path / "run")


@pytest.mark.slow
def test_a_standard_audit_of_real_images_survives_ten_kills(tmp_path):
    command = ["audit", "--model", "resnet20", "--weights", "zoo:cifar10-resnet20", "--data", "cifar10", "-q"]
    check_audit([*command, "--profile", "standard"], tmp_path, times=10, seed=3)


@pytest.mark.slow
def test_a_training_on_real_images_survives_ten_kills(tmp_path):
    text = "model: resnet20\ndata: cifar10\nepochs: 2\ntransforms: [subset(n=5000), crop, flip]\nema: 0.99\n"
    check_training(recipe(tmp_path, text), tmp_path, times=10, seed=4)
