"""Adversarial images in the forms an incident leaves them in."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.evidence import read_evidence, read_images

RNG = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (3, 3, 6, 5), generator=RNG, dtype=torch.uint8)


def pictures(folder, x, names=("b", "a", "c")):
    folder.mkdir()
    for name, picture in zip(names, x, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    return folder


def campaign(folder, x=X, index=(4, 0, 2), correct=(True, True, False), success=(True, False, True)):
    folder.mkdir()
    safetensors.torch.save_file({"x_adv": x.float() / 255}, folder / "adversarial.safetensors")
    table = pa.table({"index": list(index), "correct": list(correct), "success": list(success)})
    pq.write_table(table, folder / "samples.parquet")
    return folder


def test_arrays_and_pictures_are_read_pixel_by_pixel(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.numpy(), x_adv=(255 - X).numpy())
    np.save(tmp_path / "a.npy", X.permute(0, 2, 3, 1).numpy())
    safetensors.torch.save_file({"x": X.float() / 255}, tmp_path / "a.safetensors")
    assert torch.equal(read_images(tmp_path / "a.npz"), 255 - X)
    assert torch.equal(read_images(tmp_path / "a.npy"), X)
    assert torch.equal(read_images(tmp_path / "a.safetensors"), X.float() / 255)
    assert torch.equal(read_images(pictures(tmp_path / "folder", X)), X[[1, 0, 2]])


def test_of_an_attacks_folder_the_successes_are_read_beside_their_clean_images(tmp_path):
    folder = campaign(tmp_path / "attack")
    test = Images(x=torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 6, 5), y=torch.zeros(5).long(),
                  classes=("a",))  # fmt: skip
    x_adv, clean = read_evidence(folder, test=test)
    assert torch.equal(x_adv, X[:1].float() / 255)
    assert torch.equal(clean, test.x[[4]])
    assert read_evidence(folder)[1] is None
    with pytest.raises(UserError, match="not made of images"):
        read_evidence(folder, test=test.select(slice(0, 3)))
    with pytest.raises(UserError, match="fooled the model on no image"):
        read_evidence(campaign(tmp_path / "failed", success=(False, False, True)))
    with pytest.raises(UserError, match="is about 2 images, but there are 3 beside it"):
        read_evidence(campaign(tmp_path / "mixed", index=(1, 2), correct=(1, 1), success=(1, 1)))


def test_clean_pictures_are_matched_by_name(tmp_path):
    attacked, clean = pictures(tmp_path / "attacked", X), pictures(tmp_path / "clean", 255 - X)
    x_adv, before = read_evidence(attacked, clean=clean)
    assert torch.equal(before, 255 - x_adv)
    other = pictures(tmp_path / "other", X, names=("a", "b", "d"))
    with pytest.raises(UserError, match="a clean picture of the same name for each"):
        read_evidence(attacked, clean=other)
    np.save(tmp_path / "short.npy", X[:2].numpy())
    with pytest.raises(UserError, match=r"must be like the attacked, 3 of shape \(3, 6, 5\), got 2 of"):
        read_evidence(attacked, clean=tmp_path / "short.npy")


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.npz").write_text("x")
    np.savez(tmp_path / "b.npz", y=np.zeros(3))
    np.save(tmp_path / "c.npy", np.array([object()]), allow_pickle=True)
    folder = pictures(tmp_path / "sizes", X)
    Image.new("RGB", (9, 9)).save(folder / "z.png")
    campaign(tmp_path / "torn")
    (tmp_path / "torn" / "samples.parquet").write_text("x")
    for path, said in (
        ("nothing", "no such file or folder"),
        ("empty", "holds no pictures"),
        ("a.txt", "images are read from"),
        ("a.npz", "cannot be read as NumPy arrays"),
        ("b.npz", "no array x_adv or x; it holds y"),
        ("c.npy", "cannot be read as NumPy arrays"),
        ("sizes", "pictures must be of one size"),
        ("torn", "cannot be read"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            read_evidence(tmp_path / path)
        assert "\n" not in str(caught.value)
