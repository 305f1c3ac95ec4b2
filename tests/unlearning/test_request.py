"""Requests in words, and what becomes of bad ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UserError
from holdfast.run import Run
from holdfast.unlearning import forget_mask


def test_positions_from_a_file(digits, tmp_path):
    for name, text in {
        "plain.csv": "3\n5\n3\n\n",
        "head.csv": "name,index\na,3\nb,5\n",
        "list.txt": "5\n3",
        "marked.csv": "\ufeffindex\n3\n5\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        mask = forget_mask(str(tmp_path / name), digits.train)
        assert mask.nonzero().flatten().tolist() == [3, 5]


def test_classes_by_name_and_number(digits):
    images = digits.train.but(classes=tuple("abcdefghij"))
    assert torch.equal(forget_mask("class=d", images), images.y == 3)
    assert torch.equal(forget_mask("class=3", images), images.y == 3)
    assert torch.equal(forget_mask("class=d, 5", images), (images.y == 3) | (images.y == 5))


def test_rows_of_a_column(digits):
    group = torch.arange(len(digits.train)) % 3
    images = digits.train.with_column("group", group).with_column("who", (group == 1).numpy().astype(str))
    assert torch.equal(forget_mask("group=2", images), group == 2)
    assert torch.equal(forget_mask("who=True", images), group == 1)


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_random_share(share, seed, digits):
    masks = [forget_mask(f"random={share}", digits.train, run=Run(seed=seed)) for _ in range(2)]
    assert torch.equal(*masks)
    assert int(masks[0].sum()) == round(share * len(digits.train))


def test_the_worst_case(digits, convolutional):
    spec = "worst-case-forget(count=20, rounds=1, epochs=1, crop=none, flip=none)"
    assert int(forget_mask(spec, digits.train, model=convolutional).sum()) == 20
    with pytest.raises(UserError, match="needs the model"):
        forget_mask(spec, digits.train)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("class=12", "'12' is no class"),
        ("class=seven", "'seven' is no class"),
        ("group=1", "no column 'group'; they have: class"),
        ("random=1.5", r"share in \(0, 1\)"),
        ("random=much", r"share in \(0, 1\)"),
        ("random=0.00001", "no training image"),
        ("everything", "is no request"),
        ("class=0,1,2,3,4,5,6,7,8,9", "names all"),
        ("missing.csv", "cannot be read: No such file"),
        ("worst-case-forget(cuont=3)", "not a hyperparameter. Did you mean 'count'"),
    ],
)
def test_a_bad_request_gets_one_sentence(spec, said, digits, convolutional):
    with pytest.raises(UserError, match=said) as caught:
        forget_mask(spec, digits.train, model=convolutional)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("100000\n", "names image 100000, but the training images are 0 to"),
        ("-1\n", "names image -1"),
        ("index\n3\nx\n", "entry 2 of .* is 'x', which is no whole number"),
        ("1.5\n", "needs a column 'index', it has: 1.5"),
        ("index\n", "no training image"),
        ("", "no training image"),
    ],
)
def test_a_bad_file_gets_one_sentence(text, said, digits, tmp_path):
    path = tmp_path / "forget.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        forget_mask(str(path), digits.train)


def test_an_image_is_no_list(digits, tmp_path):
    path = tmp_path / "forget.csv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="it is no text"):
        forget_mask(str(path), digits.train)
