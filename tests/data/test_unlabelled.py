import re

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import load_data
from holdfast.data.unlabelled import read_unlabelled
from holdfast.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))


def pictures(root, names, size=(8, 8)):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 10 * i, np.uint8)).save(root / name)
    return root


def test_all_pictures_of_a_folder_count_however_deep(tmp_path):
    root = pictures(tmp_path / "in", ["b.png", "a.png", "x/c.png", "train/cat/d.png"])
    (root / "notes.txt").write_text("no picture")
    images = read_unlabelled(str(root), shape=(3, 8, 8))
    assert [path.rsplit("/", 1)[1] for path in images.columns["path"]] == ["a.png", "b.png", "d.png", "c.png"]
    assert images.x[:, 0, 0, 0].tolist() == [10, 0, 30, 20]
    one = read_unlabelled(str(root / "a.png"), shape=(3, 8, 8))
    assert torch.equal(one.x, images.x[:1])


def test_pictures_are_brought_to_the_shape_of_the_model(tmp_path):
    root = pictures(tmp_path / "in", ["a.png", "b.png"], size=(20, 30))
    assert read_unlabelled(str(root), shape=(1, 6, 5)).shape == (1, 6, 5)


def test_an_edited_picture_is_read_anew(tmp_path):
    root = pictures(tmp_path / "in", ["a.png"])
    before = read_unlabelled(str(root), shape=(3, 8, 8)).x.clone()
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(root / "a.png")
    assert not torch.equal(read_unlabelled(str(root), shape=(3, 8, 8)).x, before)


def test_arrays_need_no_labels(tmp_path):
    x = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        images = read_unlabelled(str(tmp_path / name), shape=(1, 8, 8))
        assert np.array_equal(images.x[:, 0].numpy(), x)


def test_a_data_set_gives_the_split_that_is_asked_for(tmp_path):
    data = load_data("digits")
    for split in ("test", "val", "train"):
        read = read_unlabelled("digits", shape=(1, 8, 8), split=split)
        assert read.fingerprint() == getattr(data, split).fingerprint()
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y, x_ood_noise=x[:5])
    assert len(read_unlabelled(str(tmp_path / "d.npz"), shape=(1, 8, 8))) == 40
    assert len(read_unlabelled(str(tmp_path / "d.npz"), shape=(1, 8, 8), split="noise")) == 5


@pytest.mark.parametrize(
    ("spec", "split", "words"),
    [
        ("digits", "tset", "Did you mean 'test'"),
        ("./nowhere", "test", "nowhere"),
        ("empty", "test", "empty"),
        ("nan.npy", "test", "NaN"),
        ("large.npy", "test", "takes images of shape 1x8x8, got 1x9x9"),
        ("objects.npy", "test", "objects.npy"),
        ("text.npy", "test", "text.npy"),
    ],
)
def test_what_cannot_be_read_is_named(spec, split, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    np.save("nan.npy", np.full((2, 8, 8), np.nan, np.float32))
    np.save("large.npy", np.zeros((2, 9, 9), np.uint8))
    np.save("objects.npy", np.array([{}] * 4, dtype=object))
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(UserError, match=re.escape(words)):
        read_unlabelled(spec, shape=(1, 8, 8), split=split)
