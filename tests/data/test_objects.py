from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from holdfast.data import Data, Images, load_data
from holdfast.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]


class VisionLike(Dataset):
    """As torchvision's data sets are: Pillow images, whole-number targets, `classes`, a transform."""

    def __init__(self, transform=None, pixels=PIXELS):
        self.classes, self.pixels, self.transform = ["ant", "bee", "cow"], pixels, transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        image = Image.fromarray(self.pixels[index])
        return (self.transform(image) if self.transform else image), LABELS[index]


class HuggingLike:
    """As Hugging Face's data sets are: rows are dictionaries, classes stand in the features."""

    def __init__(self):
        self.features = {"img": object(), "label": SimpleNamespace(names=["ant", "bee", "cow"])}

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return {"img": Image.fromarray(PIXELS[index]), "label": LABELS[index]}


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("dataset", [VisionLike(), HuggingLike()])
def test_a_data_set_object_is_the_test_split_with_its_class_names(dataset):
    data = load_data(dataset)
    assert data.train is None
    assert data.classes == ("ant", "bee", "cow")
    assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), PIXELS)
    assert data.test.y.tolist() == LABELS


def test_tensors_from_a_transform_stay_floats():
    data = load_data(VisionLike(to_tensor))
    assert data.test.x.dtype == torch.float32
    assert torch.allclose(data.test.x * 255, torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float(), atol=1e-4)


def test_a_part_of_a_data_set_knows_the_classes_of_the_whole():
    data = load_data(Subset(Subset(VisionLike(), range(6)), [0, 1, 3, 4]))
    assert data.classes == ("ant", "bee", "cow")
    assert data.test.y.tolist() == [0, 1, 0, 1]


def test_tensor_data_sets_and_streams_are_read():
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, LABELS, strict=True))

    for dataset in (TensorDataset(x, torch.tensor(LABELS)), Stream(), list(zip(x, LABELS, strict=True))):
        data = load_data(dataset)
        assert torch.equal(data.test.x, x)
        assert data.classes == ("0", "1", "2")


def test_a_mapping_names_the_splits():
    ood = {"noise": torch.utils.data.TensorDataset(torch.rand(4, 1, 9, 9))}
    data = load_data({"train": VisionLike(), "validation": VisionLike(), "test": HuggingLike(), "ood": ood})
    assert [len(s) for s in (data.train, data.val, data.test)] == [12, 12, 12]
    assert data.ood["noise"].shape == (3, 6, 5)


def test_grey_and_colour_pictures_become_colour():
    class Mixed(VisionLike):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image.convert("L") if index % 2 else image), label

    data = load_data(Mixed())
    assert data.shape == (3, 6, 5)
    assert torch.equal(data.test.x[1, 0], data.test.x[1, 1])


def test_data_and_images_pass_through():
    images = Images(x=torch.zeros(2, 1, 4, 4), y=torch.zeros(2, dtype=torch.int64), classes=("a",))
    data = Data(name="mine", test=images)
    assert load_data(data) is data
    assert load_data(images).test is images
    assert load_data({"test": images}).test is images


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (VisionLike(lambda image: to_tensor(image) * 2 - 1), "leave normalisation to the model"),
        (VisionLike(lambda image: "no"), "item 0: an image must be a Pillow image, a tensor or an array, got str"),
        ([PIXELS[0], PIXELS[1]], r"items must be pairs .*got ndarray at 0"),
        ([{"photo": 1, "label": 2}], "got a dictionary of photo, label at 0"),
        ([(PIXELS[0], 0), (PIXELS[1][:4], 0)], r"item 1 is 4x5 .*before it 6x5"),
        ([(PIXELS[0], 0), (PIXELS[1] / 255, 0)], "item 1 is of type"),
        ([(PIXELS[0], np.zeros(3))], r"item 0 must have one label"),
        ([(PIXELS[0], None)], "items must be pairs"),
        ([(PIXELS[0], -1)], "labels must be 0 or above"),
        ([], "the data set is empty"),
        (17, "must be indexable or iterable, got int"),
        ({"train": VisionLike()}, "needs 'test'"),
        ({"tset": VisionLike()}, "the split 'tset' is unknown"),
        (VisionLike(lambda image: np.zeros((6, 5, 2), np.uint8)), "1 or 3 channels"),
    ],
)
def test_what_is_wrong_with_an_object_is_said_in_one_sentence(dataset, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(dataset)
    assert "\n" not in str(caught.value)
