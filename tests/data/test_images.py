from typing import ClassVar

import numpy as np
import pytest
import torch

from holdfast.data import Data, Images, concat, to_float
from holdfast.errors import UserError


def images(count=6, **changes):
    fields = {
        "x": torch.arange(count * 48, dtype=torch.uint8).view(count, 3, 4, 4),
        "y": torch.arange(count) % 2,
        "classes": ("a", "b"),
        "columns": {"group": torch.arange(count), "name": np.array([f"n{i}" for i in range(count)])},
        **changes,
    }
    return Images(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(6, 4, 4)}, "must have shape"),
        ({"x": torch.zeros(6, 2, 4, 4)}, "must have shape"),
        ({"x": torch.zeros(6, 3, 4, 4, dtype=torch.int32)}, "uint8 in 0..255 or float"),
        ({"x": torch.full((6, 3, 4, 4), 2.0)}, "Divide bytes by 255"),
        ({"x": torch.full((6, 3, 4, 4), float("nan"))}, "NaN"),
        ({"x": torch.full((6, 3, 4, 4), float("inf"))}, "infinite"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "6 images need 6 labels"),
        ({"y": torch.zeros(6)}, "labels must be int64"),
        ({"y": torch.full((6,), 2)}, "labels must lie in 0..1"),
        ({"y": torch.full((6,), -1)}, "labels must lie in 0..1"),
        ({"columns": {"group": torch.zeros(5)}}, "column 'group' has 5 values for 6 images"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        images(**changes)


@pytest.mark.parametrize("which", [[4, 1], torch.tensor([4, 1]), np.array([4, 1]), slice(4, 0, -3)])
def test_selecting_takes_columns_along(which):
    if isinstance(which, slice):
        which = [4, 1]
    chosen = images().select(which)
    assert torch.equal(chosen.x, images().x[[4, 1]])
    assert chosen.columns["group"].tolist() == [4, 1]
    assert chosen.columns["name"].tolist() == ["n4", "n1"]


def test_an_empty_list_selects_nothing():
    none = images().select([])
    assert len(none) == len(none.y) == len(none.columns["name"]) == 0


def test_a_mask_selects_where_it_is_true():
    assert images().select(torch.tensor([True, False] * 3)).columns["group"].tolist() == [0, 2, 4]


def test_joined_sets_keep_shared_columns():
    joined = concat(images(3), images(2).with_column("more", torch.zeros(2)))
    assert len(joined) == 5
    assert set(joined.columns) == {"group", "name"}
    with pytest.raises(UserError, match="cannot be joined"):
        concat(images(), images(classes=("a", "c")))


def test_a_fingerprint_sees_pixels_labels_and_names():
    prints = {
        images().fingerprint(),
        images(x=images().x.flip(0)).fingerprint(),
        images(y=1 - images().y).fingerprint(),
        images(classes=("a", "c")).fingerprint(),
    }
    assert len(prints) == 4
    assert images().fingerprint() in prints


def test_bytes_in_a_mapped_file_are_not_read_to_be_validated(tmp_path):
    """A set larger than memory must not be paged in when it is merely opened or sliced."""
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 64, 64), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")

    class Untouchable(torch.Tensor):
        touched: ClassVar[list[str]] = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func.__name__ in ("aminmax", "min", "max", "isfinite", "float", "sum", "clone", "contiguous"):
                cls.touched.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.from_numpy(mapped).as_subclass(Untouchable)
    opened = Images(x=x, y=torch.zeros(4, dtype=torch.int64), classes=("a",))
    opened.select(slice(0, 2))
    assert Untouchable.touched == []


def test_floats_pass_and_bytes_become_fractions():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    x = torch.rand(3)
    assert to_float(x) is x


def test_splits_of_a_bundle_must_match():
    with pytest.raises(UserError, match="different classes"):
        Data(name="d", test=images(), train=images(classes=("a", "c")))
    with pytest.raises(UserError, match="different shapes"):
        Data(name="d", test=images(), train=images(x=torch.zeros(6, 1, 4, 4)))
    with pytest.raises(UserError, match="the test split is empty"):
        Data(name="d", test=images(0))
