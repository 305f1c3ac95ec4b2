from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.run import Run


def test_digits_are_the_same_where_the_file_is_not_found(monkeypatch):
    read = load_data("digits").train
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_data("digits").train.fingerprint() == read.fingerprint()


def test_digits_are_those_of_scikit_learn_in_0_to_1_split_the_same_for_every_seed():
    data = load_data("digits")
    assert data.shape == (1, 8, 8)
    parts = (data.train, data.val, data.test)
    assert [len(p) for p in parts] == [1078, 270, 449]
    every = torch.cat([p.x for p in parts])
    expected = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
    assert torch.equal(every.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    assert every.max() == 1
    assert torch.equal(load_data("digits", run=Run(seed=5)).test.x, data.test.x)
    # Pinned, because a bundled model was trained on this very split: another would let it be judged on what it saw.
    assert load_data(" digits() ").test.fingerprint() == "6d55d0faeea6015a"


def test_every_digit_has_its_share_in_every_split():
    data = load_data("digits")
    whole = torch.bincount(torch.from_numpy(load_digits().target))
    for split, fraction in ((data.train, 0.6), (data.val, 0.15), (data.test, 0.25)):
        assert (torch.bincount(split.y) - fraction * whole).abs().max() < 1


def test_a_name_wins_over_a_folder_of_that_name_and_a_dot_asks_for_the_folder(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / "digits" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").num_classes == 10
    assert load_data("./digits").classes == ("cat", "dog")
    assert load_data(Path("digits")).classes == ("cat", "dog")
    (tmp_path / "pets").symlink_to("digits")
    assert load_data("pets").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar1", "data set 'cifar1' is unknown. Did you mean 'cifar10'. Or give a path"),
        ("mnist", "data set 'mnist' is unknown. It takes one of: cifar10, cifar100, digits, folder, shapes32. Or give"),
        ("shape32(n=50)", "'shape32' is unknown. Did you mean 'shapes32'"),
        ("photos/here", "photos/here: no such file or folder"),
        ("./x", "no such file or folder"),
        ("photos.npz", "photos.npz: no such file or folder"),
        ("", "a name or a path is needed"),
        ("shapes32(n=-1)", "shapes32: n must be a whole number in"),
        ("shapes32(m=3)", "'m' is not a hyperparameter"),
        ("shapes32(n=50", "is missing at character|unknown"),
        ("digits(n=3)", "'n' is not a hyperparameter"),
        ("folder()", "the path is missing"),
        ("folder(size=3)", "the path is missing"),
        ("folder('nowhere')", "nowhere: no such file or folder"),
        ("folder('x', channels=2)", "channels must be one of 1, 3"),
        ("a" * 5000, "unknown"),
        ("bad\0name/x", "no such file or folder"),
    ],
)
def test_what_is_no_data_set_is_refused_with_one_sentence(spec, message):
    with pytest.raises(UserError, match=message.replace("cifar10'.", "cifar10'\\?")) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match="is of no kind that holds a data set"):
        load_data(str(tmp_path / "a.txt"))
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        load_data(str(tmp_path / "a.npz"))
