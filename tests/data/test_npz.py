import numpy as np
import pytest
import torch

from holdfast.data import load_data
from holdfast.data.npz import read_npz
from holdfast.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
Y = np.arange(40) % 4


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_x_and_y_are_shared_out_with_their_columns(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y, row=np.arange(40), classes=np.array(["a", "b", "c", "d"]))
    data = load_data(path)
    assert data.classes == ("a", "b", "c", "d")
    assert data.shape == (3, 6, 5)
    assert sorted(torch.cat([s.columns["row"] for s in (data.train, data.val, data.test)]).tolist()) == list(range(40))
    rows = data.test.columns["row"].numpy()
    assert np.array_equal(data.test.x.numpy(), X[rows].transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.y.numpy(), Y[rows])


@pytest.mark.parametrize("shape", [(40, 6, 5), (40, 6, 5, 1), (40, 1, 6, 5), (40, 3, 6, 5), (40, 6, 5, 3)])
def test_usual_layouts_are_recognised(tmp_path, shape):
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = load_data(save(tmp_path / "a.npz", x_test=x, y_test=Y))
    assert data.shape == (3 if 3 in shape else 1, 6, 5)
    pixel = x[7].reshape(-1)[0]
    assert data.test.x[7, 0, 0, 0] == pixel


def test_named_splits_floats_and_ood(tmp_path):
    x = X.astype(np.float64) / 255
    path = save(
        tmp_path / "a.npz",
        x_train=x,
        y_train=Y,
        x_test=x[:8],
        y_test=Y[:8],
        group_test=np.arange(8),
        x_ood_noise=RNG.random((5, 12, 12)),
    )
    data = load_data(path)
    assert data.train.x.dtype == torch.float32
    assert torch.equal(data.test.columns["group"], torch.arange(8))
    assert data.ood["noise"].shape == (3, 6, 5)


def test_wide_whole_numbers_in_byte_range_become_bytes(tmp_path):
    for kind in (np.int64, np.uint16, ">i4"):
        data = load_data(save(tmp_path / "a.npz", x_test=X.astype(kind), y_test=Y.astype(np.uint8)))
        assert data.test.x.dtype == torch.uint8
        assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), X)


def test_a_large_array_is_mapped_and_equals_the_small_reading(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_test=X, y_test=Y)
    small, large = read_npz(path, title="a"), read_npz(path, title="a", large=100)
    assert torch.equal(small.test.x, large.test.x)


def test_python_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = save(tmp_path / "a.npz", x=np.array([Bomb()] * 4, dtype=object), y=np.arange(4))
    with pytest.raises(UserError, match="'x' holds Python objects, which are not loaded"):
        load_data(path)
    with pytest.raises(UserError, match="'x' holds Python objects"):
        read_npz(tmp_path / "a.npz", title="a", large=1)
    assert not (tmp_path / "ran").exists()


def test_an_unrelated_array_of_objects_does_no_harm(tmp_path):
    path = save(tmp_path / "a.npz", x_test=X, y_test=Y, notes=np.array([{}] * 40, dtype=object))
    assert list(load_data(path).test.columns) == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": X}, "neither arrays x and y nor x_test and y_test; it holds data"),
        ({"x": X}, "the labels y of x are missing"),
        ({"x_train": X, "y_train": Y}, "neither x_test nor x_val"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y}, "both x and x_test"),
        ({"x": X, "y": Y[:30]}, "40 images need 40 labels"),
        ({"x": X, "y": Y - 1}, "labels must be 0 or above, got -1"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, r"labels must lie in 0..1 for 2 classes, got 0..3"),
        ({"x": X, "y": np.eye(4)[Y]}, r"labels must be one per image, got shape \(40, 4\)"),
        ({"x": X, "y": Y + 0.5}, "labels must be whole numbers or text"),
        ({"x": X, "y": np.full(40, 10**9)}, "class indices counted from 0"),
        ({"x": X.astype(np.float32), "y": Y}, r"must lie in \[0, 1\].*Divide bytes by 255"),
        ({"x": np.where(X > 250, np.nan, X / 255), "y": Y}, "NaN or infinite"),
        ({"x": X.astype(np.int32) * 2, "y": Y}, r"must lie in 0..255"),
        ({"x": X > 5, "y": Y}, "got bool"),
        ({"x": X.astype("U3"), "y": Y}, "bytes in 0..255 or floats"),
        ({"x": np.zeros((40, 6, 5, 4), np.uint8), "y": Y}, "1 or 3 channels"),
        ({"x": np.zeros((40, 30), np.uint8), "y": Y}, r"images must have shape"),
        ({"x": np.zeros((0, 6, 5), np.uint8), "y": Y[:0]}, "there are no labels"),
    ],
)
def test_what_is_wrong_with_the_arrays_is_said_in_one_sentence(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK not really a zip")
    with pytest.raises(UserError, match="cannot be read as a NumPy archive"):
        load_data(str(tmp_path / "a.npz"))
    path = save(tmp_path / "b.npz", x=X, y=Y)
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[1000:1010] = b"\0" * 10
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(UserError, match="the array 'x' is damaged"):
        load_data(path)
