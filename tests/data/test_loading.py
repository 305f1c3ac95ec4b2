import numpy as np
import pytest
import torch

from holdfast.data import Images, loader, to_float

N = 103


@pytest.fixture(params=["in memory", "mapped"])
def images(request, tmp_path):
    x = torch.randint(0, 256, (N, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if request.param == "mapped":
        np.save(tmp_path / "x.npy", x.numpy())
        x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    return Images(x=x, y=torch.arange(N) % 7, classes=tuple("abcdefg"))


def rng():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_read_ahead_are_those_taken_by_index(images, shuffle, drop_last):
    direct = loader(images, 10, rng=rng() if shuffle else None, drop_last=drop_last)
    ahead = loader(images, 10, rng=rng() if shuffle else None, drop_last=drop_last, in_memory=0)
    one, two = list(direct), list(ahead)
    assert len(one) == len(two) == len(direct) == (10 if drop_last else 11)
    for (x, y), (u, v) in zip(one, two, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize("in_memory", [0, 10**9])
def test_shuffled_batches_cover_all_images_once_with_their_labels_anew_each_time(images, in_memory):
    batches = loader(images, 16, rng=rng(), in_memory=in_memory)
    first, second = (
        (torch.cat([x for x, _ in b]), torch.cat([y for _, y in b])) for b in (list(batches), list(batches))
    )
    assert not torch.equal(first[0], second[0])
    keys = {x.numpy().tobytes(): int(y) for x, y in zip(to_float(images.x), images.y, strict=True)}
    for x, y in (first, second):
        found = [(row.contiguous().numpy().tobytes(), int(label)) for row, label in zip(x, y, strict=True)]
        assert len({key for key, _ in found}) == N
        assert all(keys[key] == label for key, label in found)


def test_batches_are_floats_in_channels_last_order(images):
    x, y = next(iter(loader(images, 8)))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, to_float(images.x[:8]))
    assert y.dtype == torch.int64


def test_stopping_early_leaves_no_thread_behind(images):
    import threading

    before = threading.active_count()
    batches = iter(loader(images, 2, in_memory=0))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_images_give_batches_in_order(images):
    assert torch.equal(torch.cat([x for x, _ in images.batches(9)]), to_float(images.x))


def test_changing_a_batch_leaves_the_images_alone(images):
    before = images.x.clone()
    for in_memory in (0, 10**9):
        for x, _ in loader(images, 50, in_memory=in_memory):
            x.zero_()
    assert torch.equal(images.x, before)
    floats = images.but(x=to_float(images.x))
    for x, _ in floats.batches(50):
        x.zero_()
    assert torch.equal(floats.x, to_float(before))
