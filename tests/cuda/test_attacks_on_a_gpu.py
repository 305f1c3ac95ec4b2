"""Attacks on a GPU find what they find on a CPU."""

import pytest
import torch

from holdfast import catalog
from holdfast.data import load_data, to_float
from holdfast.models import load_model
from holdfast.run import Run

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(
    "spec", ["fgsm(eps=0.15)", "pgd(eps=0.1, steps=20)", "pgd(eps=0.5, norm='l2')", "square(eps=0.15, queries=200)"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_is_as_strong_on_a_gpu_as_on_a_cpu(spec, precision):
    model, images = load_model("zoo:digits-convnet"), load_data("digits").test.select(slice(0, 256))
    x = to_float(images.x)
    robust = {}
    for device in ("cpu", "cuda"):
        outcome = catalog.build(spec).run(model, x, images.y, run=Run(device=device, precision=precision))
        assert outcome.x_adv.device.type == "cpu"
        robust[device] = float((~outcome.success).float().mean())
    assert 0.02 < robust["cpu"] < 0.98
    assert abs(robust["cpu"] - robust["cuda"]) <= 4 / 256


def test_when_memory_runs_out_the_batch_is_halved_and_the_result_is_the_same():
    model, images = load_model("zoo:digits-convnet"), load_data("digits").test
    x, attack = to_float(images.x), catalog.build("pgd(eps=0.15, steps=5)")
    whole = attack.run(model, x, images.y, run=Run(device="cuda", batch_size=4096))
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 24e6) / total)
    try:
        tight = attack.run(model, x, images.y, run=Run(device="cuda", batch_size=4096))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (whole.success == tight.success).float().mean() > 0.99
