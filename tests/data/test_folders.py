import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import load_data
from holdfast.errors import UserError


def picture(path, size=(8, 6), mode="RGB", colour=None, seed=0, **save):
    """Save a picture of the given (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if colour is not None:
        image = Image.new(mode, size, colour)
    else:
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    image.save(path, **save)
    return np.asarray(image)


def flat(root, per_class=8, classes=("cat", "dog"), **kwargs):
    for k, name in enumerate(classes):
        for i in range(per_class):
            picture(root / name / f"{i}.png", seed=100 * k + i, **kwargs)
    return root


def test_a_folder_per_class_is_shared_out_by_class_and_pixels_are_exact(tmp_path):
    root = flat(tmp_path / "pets", 20)
    data = load_data(str(root))
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.shape == (3, 6, 8)
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 6, 10]
    assert torch.bincount(data.test.y).tolist() == [5, 5]
    paths = [p for s in (data.train, data.val, data.test) for p in s.columns["path"]]
    assert len(set(paths)) == 40
    for split in (data.train, data.test):
        for i, path in enumerate(split.columns["path"]):
            expected = np.asarray(Image.open(root / path)).transpose(2, 0, 1)
            assert np.array_equal(split.x[i].numpy(), expected)
            assert data.classes[split.y[i]] == path.split("/")[0]


def test_the_share_out_of_a_folder_is_always_the_same(tmp_path):
    from holdfast.run import Run

    root = flat(tmp_path / "pets", 10)
    one, two = load_data(root, run=Run(seed=1)), load_data(root, run=Run(seed=2))
    assert one.test.columns["path"].tolist() == two.test.columns["path"].tolist()


def test_named_splits_are_taken_as_they_are(tmp_path):
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        flat(tmp_path / split, count)
    picture(tmp_path / "ood" / "x.png", size=(20, 30))
    picture(tmp_path / "ood" / "near-birds" / "deep" / "y.jpg", size=(9, 9))
    data = load_data(str(tmp_path))
    assert [len(s) for s in (data.train, data.val, data.test)] == [10, 4, 6]
    assert {name: images.shape for name, images in data.ood.items()} == {"ood": (3, 6, 8), "near-birds": (3, 6, 8)}


def test_ood_stands_beside_class_folders_too(tmp_path):
    flat(tmp_path, 10)
    picture(tmp_path / "ood" / "x.png")
    data = load_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert list(data.ood) == ["ood"]


def test_validation_pictures_stand_in_for_missing_test_pictures(tmp_path):
    flat(tmp_path / "train", 4)
    flat(tmp_path / "val", 3)
    data = load_data(str(tmp_path))
    assert data.val is None
    assert len(data.test) == 6


def test_test_pictures_alone_are_enough(tmp_path):
    flat(tmp_path / "test", 3)
    data = load_data(str(tmp_path))
    assert data.train is None
    assert len(data.test) == 6


def test_classes_called_train_and_bus_are_classes(tmp_path):
    flat(tmp_path, 8, classes=("train", "bus"))
    assert load_data(str(tmp_path)).classes == ("bus", "train")


def test_labels_follow_the_training_classes_when_the_test_lacks_one(tmp_path):
    flat(tmp_path / "train", 2, classes=("a", "b", "c"))
    flat(tmp_path / "test", 2, classes=("c",))
    data = load_data(str(tmp_path))
    assert data.test.y.tolist() == [2, 2]
    assert data.test.classes == ("a", "b", "c")


def test_grey_pictures_stay_grey_unless_one_has_colour(tmp_path):
    flat(tmp_path / "grey", 6, mode="L")
    assert load_data(str(tmp_path / "grey")).shape == (1, 6, 8)
    flat(tmp_path / "mixed", 6, mode="L")
    picture(tmp_path / "mixed" / "cat" / "0.png")
    data = load_data(str(tmp_path / "mixed"))
    assert data.shape == (3, 6, 8)
    grey = data.train.x[data.train.columns["path"] == "dog/1.png"]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_channels_can_be_asked_for(tmp_path):
    flat(tmp_path / "grey", 6, mode="L")
    assert load_data(f"folder('{tmp_path}/grey', channels=3)").shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 128), [10, 20, 30]),
        ("LA", (77, 100), [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("CMYK", (255, 0, 0, 0), None),
        ("I;16", 65535, [255, 255, 255]),
        ("I;16", 32768, [128, 128, 128]),
    ],
)
def test_every_kind_of_pixel_is_read_by_its_meaning(tmp_path, mode, colour, expected):
    flat(tmp_path, 6)
    suffix = "jpg" if mode == "CMYK" else "png"
    picture(tmp_path / "cat" / f"special.{suffix}", mode=mode, colour=colour)
    data = load_data(str(tmp_path))
    found = [
        split.x[i, :, 3, 3].tolist()
        for split in (data.train, data.val, data.test)
        for i, path in enumerate(split.columns["path"])
        if "special" in path
    ]
    assert len(found) == 1
    if expected is not None:
        assert found[0] == expected


def test_a_transparent_palette_keeps_its_colours(tmp_path):
    flat(tmp_path, 6)
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = b"\x00\x80"
    image.save(tmp_path / "cat" / "special.png", transparency=b"\x00\x80")
    data = load_data(str(tmp_path))
    pixels = [
        s.x[i, :, 0, 0].tolist()
        for s in (data.train, data.val, data.test)
        for i, p in enumerate(s.columns["path"])
        if "special" in p
    ]
    assert pixels == [[200, 100, 50]]


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    flat(tmp_path, 6, size=(6, 8))
    image = Image.new("RGB", (8, 6), "black")
    image.paste((255, 0, 0), (0, 0, 8, 2))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: above comes to the right
    image.save(tmp_path / "cat" / "turned.jpg", exif=exif, quality=100, subsampling=0)
    data = load_data(str(tmp_path))
    assert data.shape == (3, 8, 6)
    turned = next(
        s.x[i]
        for s in (data.train, data.val, data.test)
        for i, p in enumerate(s.columns["path"])
        if p == "cat/turned.jpg"
    )
    assert turned[0, 4, 5] > 200
    assert turned[0, 4, 0] < 50


def test_nested_hidden_and_foreign_files_and_unicode_names(tmp_path):
    flat(tmp_path, 8, classes=("Käse", "猫"))
    picture(tmp_path / "猫" / "a" / "b" / "deep.PNG")
    picture(tmp_path / "猫" / ".hidden.png", size=(99, 99))
    picture(tmp_path / ".trash" / "x.png", size=(99, 99))
    (tmp_path / "猫" / "notes.txt").write_text("no picture")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    data = load_data(str(tmp_path))
    assert data.classes == ("Käse", "猫")
    assert sum(len(s) for s in (data.train, data.val, data.test)) == 17


def test_names_in_either_unicode_form_are_one_class(tmp_path):
    flat(tmp_path / "train", 3, classes=("caf\u00e9", "bar"))
    flat(tmp_path / "test", 3, classes=("cafe\u0301", "bar"))
    assert load_data(str(tmp_path)).classes == ("bar", "caf\u00e9")


def test_links_in_a_circle_end(tmp_path):
    flat(tmp_path, 8)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    data = load_data(str(tmp_path))
    assert sum(len(s) for s in (data.train, data.val, data.test)) == 16


def test_mixed_sizes_are_named_with_a_remedy_that_works(tmp_path):
    flat(tmp_path, 8)
    picture(tmp_path / "cat" / "large.png", size=(16, 16))
    with pytest.raises(UserError, match=r"6x8 \(16.*16x16 \(1, e\.g\. .*large\.png\).*size=\[6, 8\]") as caught:
        load_data(str(tmp_path))
    remedy = str(caught.value).rpartition("to: ")[2].rstrip(".")
    assert load_data(remedy).shape == (3, 6, 8)
    assert load_data(f"folder(path='{tmp_path}', size=12)").shape == (3, 12, 12)


def test_resizing_crops_to_the_aspect_instead_of_squeezing(tmp_path):
    flat(tmp_path, 6, size=(12, 12))
    wide = Image.new("RGB", (36, 12), "black")
    wide.paste((255, 255, 255), (12, 0, 24, 12))  # the middle square is white
    wide.save(tmp_path / "cat" / "wide.png")
    data = load_data(f"folder('{tmp_path}', size=12)")
    found = [
        s.x[i].float().mean().item()
        for s in (data.train, data.val, data.test)
        for i, p in enumerate(s.columns["path"])
        if p == "cat/wide.png"
    ]
    assert found == [255.0]


def malformed(tmp_path, case):
    root = tmp_path / "data"
    match case:
        case "empty":
            root.mkdir()
        case "loose":
            picture(root / "a.png")
        case "beside":
            flat(root)
            picture(root / "stray.png")
        case "one class":
            flat(root, classes=("cat",))
        case "empty class":
            flat(root)
            (root / "bird").mkdir()
        case "train only":
            flat(root / "train")
        case "stranger":
            flat(root / "train")
            flat(root / "test", classes=("cat", "emu"))
        case "truncated":
            flat(root)
            good = (root / "cat" / "3.png").read_bytes()
            (root / "cat" / "3.png").write_bytes(good[: len(good) // 2])
        case "no picture":
            flat(root)
            (root / "dog" / "2.png").write_bytes(b"hello")
        case "too few":
            flat(root, 1)
        case "empty ood":
            flat(root)
            (root / "ood" / "birds").mkdir(parents=True)
        case "float tiff":
            flat(root)
            Image.fromarray(np.zeros((6, 8), np.float32)).save(root / "cat" / "f.tiff")
    return root


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "neither images nor class folders"),
        ("loose", r"holds images \(a.png, ...\) but no class folders"),
        ("beside", "stray.png lies beside the class folders"),
        ("one class", "at least 2 class folders, got only 'cat'"),
        ("empty class", "class folder 'bird' holds no images"),
        ("train only", "neither test nor val"),
        ("stranger", "class 'emu' is in test/ but not in train/"),
        ("truncated", r"cat/3.png cannot be read as an image"),
        ("no picture", r"dog/2.png cannot be read as an image: it is no image, or damaged"),
        ("too few", "too few to split"),
        ("empty ood", "ood/birds holds no images"),
        ("float tiff", "f.tiff holds 'F' pixels of unknown range"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_sentence(tmp_path, case, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(str(malformed(tmp_path, case)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["0", "[1, 2, 3]", "5000", "[]", "'large'"])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(UserError, match="size must be"):
        load_data(f"folder('{tmp_path}', size={size})")
