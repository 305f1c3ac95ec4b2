"""Several processes attack as one."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq

from holdfast.data import load_data

WORDS = ["attack", "pgd(eps=0.15, steps=2)", "--model", "zoo:digits-convnet", "--device", "cpu"]


def attack(data, out, *launcher):
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "holdfast", *WORDS, "--data", str(data), "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_share_an_attack_and_come_to_the_result_of_one(tmp_path):
    images, data = load_data("digits").train, tmp_path / "many.npz"  # more than one part
    np.savez(data, x_test=images.x.numpy(), y_test=images.y.numpy())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together, alone = attack(data, tmp_path / "two", *launcher), attack(data, tmp_path / "one")
    assert together.count("robust accuracy") == 1
    assert together.splitlines()[0] == alone.splitlines()[0]
    one, two = (pq.read_table(tmp_path / name / "samples.parquet") for name in ("one", "two"))
    assert len(one) > 512
    assert one.equals(two)
    names = [{p.name for p in (tmp_path / folder / "state").iterdir()} for folder in ("one", "two")]
    assert names[0] == names[1]
