import os

import numpy as np
import pytest
import torch

from holdfast.data import decoded
from holdfast.data.decoded import mapped
from holdfast.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    return tmp_path / "decoded"


@pytest.fixture
def filled():
    """How often the array had to be made."""
    return []


@pytest.fixture
def get(filled):
    def get(state="one"):
        def fill(path):
            filled.append(state)
            with open(path, "wb") as file:
                np.save(file, np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2))

        return mapped("thing", state, fill, lambda array: array.shape == (2, 3, 2, 2))

    return get


def test_the_second_load_opens_what_the_first_one_wrote(cache, get, filled):
    assert torch.equal(get(), get())
    assert filled == ["one"]


def test_a_change_of_the_source_makes_it_anew_and_removes_the_stale_entry(cache, get, filled):
    get("one")
    get("two")
    assert filled == ["one", "two"]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "longer", "shape"])
def test_a_damaged_entry_is_found_out_and_rebuilt(cache, get, filled, damage):
    get()
    (path,) = cache.iterdir()
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-5])
        case "header":
            path.write_bytes(b"\0" * len(content))
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(content + b"x")
        case "shape":
            with open(path, "wb") as file:
                np.save(file, np.zeros((1, 3, 2, 2), np.uint8))
    assert get()[1, 2, 1, 1] == 23
    assert filled == ["one", "one"]


def test_writing_to_the_images_never_reaches_the_cache(cache, get):
    get().zero_()
    assert get()[1, 2, 1, 1] == 23


def test_a_failure_while_decoding_leaves_nothing_behind(cache):
    def fail(path):
        path.write_bytes(b"half")
        raise UserError("a picture is damaged.")

    with pytest.raises(UserError, match="a picture is damaged"):
        mapped("thing", "one", fail, lambda array: True)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"a file stands where a folder is needed. Set HOLDFAST_CACHE"):
        mapped("thing", "one", lambda path: None, lambda array: True)


def test_a_full_disk_is_an_error_when_space_is_taken_not_a_crash_later(cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no space left on the disk. Set HOLDFAST_CACHE"):
        mapped("thing", "one", lambda path: decoded._allocate(path, (10, 3, 4, 4)), lambda array: True)
    assert list(cache.iterdir()) == []
