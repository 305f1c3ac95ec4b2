import math

import numpy as np
import pytest
import torch
from scipy import stats

from holdfast import Run, UserError
from holdfast import run as run_module
from holdfast.run import content_keys, uniform_at


def test_a_stream_depends_on_its_name_and_the_seed_and_on_nothing_else():
    run = Run(seed=3)
    first = torch.rand(4, generator=run.rng("trigger"))
    run.rng("another")
    torch.default_generator.manual_seed(0)
    assert torch.equal(torch.rand(4, generator=run.rng("trigger")), first)
    assert not torch.equal(torch.rand(4, generator=run.rng("order")), first)
    assert not torch.equal(torch.rand(4, generator=Run(seed=4).rng("trigger")), first)
    assert run.numpy_rng("a").random() == run.numpy_rng("a").random()


def test_a_child_has_its_own_streams_and_folder(tmp_path):
    run = Run(out=tmp_path)
    child = run.child("pgd")
    assert child.out == tmp_path / "pgd"
    assert child.seed_for("start") != run.seed_for("start")
    # scope and name must not be confusable
    assert run.child("a").seed_for("b", "c") != run.child("ab").seed_for("c")


def test_the_global_generator_is_left_alone():
    torch.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    Run().rng("x")
    uniform_at(1, content_keys(torch.rand(3, 4, generator=torch.Generator().manual_seed(0))), 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"device": "gpu"}, "device"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_wrong_settings_are_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Run(**fields)


@pytest.mark.parametrize(("able", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_hardware_computes_in_it(monkeypatch, able, precision):
    monkeypatch.setattr(run_module, "computes_bf16", lambda device: able)
    run = Run(device="cpu", precision="auto")
    assert run.precision == precision
    assert run.child("x").precision == precision
    assert run == Run(device="cpu", precision=precision)


def test_imitated_bf16_is_warned_of(monkeypatch):
    monkeypatch.setattr(run_module, "computes_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="ten times slower"):
        Run(device="cpu", precision="bf16")


def test_cuda_is_refused_where_there_is_none():
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA"):
            Run(device="cuda")


def test_sample_noise_is_independent_of_batch_and_order():
    x = torch.rand(7, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    noise = uniform_at(9, content_keys(x), 75)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    assert torch.equal(uniform_at(9, content_keys(x[order]), 75), noise[order])
    assert torch.equal(uniform_at(9, content_keys(x[2:4]), 75), noise[2:4])
    assert torch.equal(uniform_at(9, content_keys(x), 5, offset=70), noise[:, 70:])
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(content_keys(channels_last), content_keys(x))


def test_sample_noise_is_uniform_and_uncorrelated():
    x = torch.zeros(200, 1, 2, 2)
    x[:, 0, 0, 0] = torch.arange(200) / 255  # neighbours differ in one pixel only
    noise = uniform_at(5, content_keys(x), 500).double().numpy()
    assert noise.min() >= 0
    assert noise.max() < 1
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(noise)
    off = correlation[~np.eye(200, dtype=bool)]
    assert abs(off.mean()) < 0.005
    assert np.abs(off).max() < 6 / math.sqrt(500)
    assert not np.array_equal(uniform_at(6, content_keys(x), 500).numpy(), noise)


def test_swapping_two_pixels_changes_the_key():
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    swapped = x.clone()
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = x[0, 0, 0, 1], x[0, 0, 0, 0]
    assert content_keys(x) != content_keys(swapped)
