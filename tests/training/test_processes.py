"""Several processes do the work of one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from holdfast.run import Run
from holdfast.training import fit

# Imports once, then forks the two processes that a launcher such as torchrun would start.
TWO = """
import json, os, sys
import torch
torch.set_num_threads(1)
import torch._dynamo, lightning_fabric
import holdfast.hardening.pgd_at
from holdfast.data import Images
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import fit

children = []
for rank in range(2):
    child = os.fork()
    if child:
        children.append(child)
        continue
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    given = torch.load(sys.argv[2], weights_only=False)
    images = Images(x=given["x"], y=given["y"], classes=tuple("abcd"), name="noise")
    results = {}
    for name, objective in (("plain", "cross-entropy"), ("robust", "pgd-at(eps=0.1, step=0.1, steps=1)")):
        model = given[name]
        result = fit(model, images, epochs=2, batch_size=8, objective=objective, val=images, ema=0.5,
                     run=Run(out=sys.argv[3] + "/" + name))
        torch.save({k: v.detach().clone() for k, v in model.state_dict().items()}, f"{sys.argv[3]}/{name}{rank}.pt")
        results[name] = {"hash": weights_hash(model), "average": weights_hash(result.ema_model),
                         "history": result.history}
    with open(f"{sys.argv[3]}/{rank}.json", "w") as file:
        json.dump(results, file)
    os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture(scope="module")
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_processes_take_the_steps_of_one_with_the_double_batch(noise, linear, convolutional, tmp_path, port):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    given = tmp_path / "given.pt"
    torch.save({"x": noise.x, "y": noise.y, "plain": linear(), "robust": convolutional()}, given)
    subprocess.run(
        [sys.executable, script, port, given, tmp_path], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "weights, averages and metrics agree, also those of batch norm"
    alone = fit(linear(), noise, epochs=2, batch_size=16, val=noise, ema=0.5, run=Run())
    together = torch.load(tmp_path / "plain0.pt")
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=1e-6, rtol=1e-5)
    for one, other in zip(alone.history, first["plain"]["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert len((tmp_path / "plain/metrics.csv").read_text().splitlines()) == 3
