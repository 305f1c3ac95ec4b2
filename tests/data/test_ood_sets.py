import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from holdfast.data import Data, Images, load_data, to_float
from holdfast.data.cifar import CIFAR10_CLASSES
from holdfast.data.ood_sets import ood_sets, phase_scrambled
from holdfast.run import Run

RUN = Run(seed=2)


@pytest.fixture(autouse=True)
def no_data_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path / "own"))


def colour(count=30, classes=("a", "b"), side=20):
    x = torch.randint(0, 256, (count, 3, side, side + 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x=x, y=torch.arange(count) % len(classes), classes=classes)


def test_every_set_fits_the_images_of_the_task():
    for data in (load_data("digits"), Data(name="mine", test=colour()), load_data("shapes32(n=50)")):
        sets = ood_sets(data, RUN, count=50)
        for images, distance in sets.values():
            assert images.shape == data.shape
            assert images.x.dtype == data.test.x.dtype
            assert distance == "far"
            assert 10 <= len(images) <= 100


def test_a_task_is_never_its_own_outlier():
    assert set(ood_sets(load_data("digits"), RUN, count=30)) == {
        *("shapes32", "phase-scrambled", "uniform-noise", "gaussian-noise")
    }
    assert "shapes32" not in ood_sets(load_data("shapes32(n=50)"), RUN, count=30)
    assert "digits" in ood_sets(load_data("shapes32(n=50)"), RUN, count=30)


def test_sets_are_reproducible_and_follow_the_seed():
    data = Data(name="mine", test=colour())
    one, two, other = (
        ood_sets(data, RUN, count=30),
        ood_sets(data, RUN, count=30),
        ood_sets(data, Run(seed=3), count=30),
    )
    for name in one:
        assert one[name][0].fingerprint() == two[name][0].fingerprint()
        assert (one[name][0].fingerprint() == other[name][0].fingerprint()) == (name == "digits")


def test_the_users_sets_come_whole_and_first_when_called_near():
    own = {"sketches": colour(7), "near-misses": colour(5, side=9)}
    sets = ood_sets(Data(name="mine", test=colour(), ood=own), RUN, count=30)
    assert next(iter(sets)) == "near-misses"
    assert sets["near-misses"][1] == "near"
    assert sets["sketches"][1] == "far"
    assert (len(sets["near-misses"][0]), sets["near-misses"][0].shape) == (5, (3, 20, 24))


def test_each_cifar_is_near_to_the_other_when_that_is_here(tmp_path):
    data = Data(name="photos", test=colour(classes=CIFAR10_CLASSES))
    assert all(distance == "far" for _, distance in ood_sets(data, RUN, count=30).values())
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(buffer, "PNG")
    pictures = pa.array([{"bytes": buffer.getvalue()}] * 4, pa.struct([("bytes", pa.binary())]))
    table = pa.table({"img": pictures, "label": [0, 1, 2, 3]}).replace_schema_metadata({"classes": "k,l,m,n"})
    for name in ("cifar10", "cifar100"):
        (tmp_path / "own" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "own" / name / "test.parquet")
    hundred = Data(name="cifar100", test=colour(classes=tuple(map(str, range(100)))))
    for task, other in ((data, "cifar100"), (hundred, "cifar10")):
        images, distance = ood_sets(task, RUN, count=30)[other]
        assert distance == "near"
        assert (images.x == 7).all()
        assert task.name not in ood_sets(task, RUN, count=30)


def test_scrambling_keeps_mean_and_spectrum_and_destroys_the_picture():
    x = to_float(load_data("shapes32(n=50)").train.x[:20]) * 0.2 + 0.4  # so narrow that nothing is clipped
    out = phase_scrambled(x, RUN)
    inside = ((out > 0) & (out < 1)).flatten(1).all(1)
    assert inside.sum() > 10
    before, after = torch.fft.rfft2(x[inside]).abs(), torch.fft.rfft2(out[inside]).abs()
    within = before[..., 1:16, 1:16]
    assert ((after[..., 1:16, 1:16] - within).abs() / (within + 1e-3)).median() < 1e-3
    assert torch.allclose(out.mean((2, 3))[inside], x.mean((2, 3))[inside], atol=1e-4)
    flat = [v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (x, out)]
    assert ((flat[0] * flat[1]).sum(1) / flat[0].norm(dim=1) / flat[1].norm(dim=1)).abs().mean() < 0.3
    assert torch.equal(phase_scrambled(x[3:5], RUN), out[3:5])
