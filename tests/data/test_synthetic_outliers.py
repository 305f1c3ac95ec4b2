import pytest
import torch

from holdfast.data import Images, SyntheticOutliers, load_data, ood_sets
from holdfast.data.synthetic_outliers import jigsaw, mixed_pairs, unlike_test_shapes
from holdfast.errors import UserError
from holdfast.run import Run


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def bytes32():
    x = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x=x, y=torch.arange(30) % 3, classes=("a", "b", "c"), name="noise")


def rng():
    return torch.Generator().manual_seed(0)


def test_a_jigsaw_has_the_tiles_of_its_image_elsewhere(bytes32):
    shuffled = jigsaw(bytes32.x, 4, rng())
    tiles = [
        x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(30, 16, -1) for x in (bytes32.x, shuffled)
    ]
    for before, after in zip(*tiles, strict=True):
        where = (after[:, None] == before[None]).all(2)
        assert where.sum(0).tolist() == [1] * 16
        assert not torch.equal(where, torch.eye(16, dtype=torch.bool))


def test_of_two_by_two_tiles_none_stays_whole_and_a_margin_stays():
    x = torch.rand(200, 1, 7, 7, generator=rng())
    shuffled = jigsaw(x, 2, rng())
    assert (shuffled != x).flatten(1).any(1).all()
    assert torch.equal(shuffled[:, :, 6], x[:, :, 6])
    assert torch.equal(shuffled[..., 6], x[..., 6])


def test_a_mixture_is_the_mean_of_two_images_of_two_classes(bytes32):
    mixed = mixed_pairs(bytes32, torch.arange(30), rng()).short()
    for row, image in enumerate(mixed):
        means = (bytes32.x[row].short() + bytes32.x.short() + 1) // 2
        (partner,) = (means == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert bytes32.y[partner] != bytes32.y[row]


def test_there_is_one_outlier_per_image_of_each_kind_in_equal_parts(bytes32):
    made = SyntheticOutliers()(bytes32, run=Run())
    assert made.x.shape == bytes32.x.shape
    assert made.x.dtype == torch.uint8
    same_bytes = made.x.flatten(1).sort(1).values[:, None] == bytes32.x.flatten(1).sort(1).values[None]
    assert same_bytes.all(2).any(1).sum() == 10, "jigsaws keep the bytes of their image"
    assert len({image.numpy().tobytes() for image in made.x}) == 30
    again = SyntheticOutliers()(bytes32, run=Run())
    assert again.fingerprint() == made.fingerprint()
    assert SyntheticOutliers()(bytes32, run=Run(seed=1)).fingerprint() != made.fingerprint()


def test_grey_floats_of_another_size_get_outliers_of_their_own_kind(digits):
    made = SyntheticOutliers()(digits.train, run=Run())
    assert made.x.shape == digits.train.x.shape
    assert made.x.dtype == digits.train.x.dtype


def test_no_outlier_is_an_image_of_the_sets_that_detectors_are_tested_on(digits):
    shapes = unlike_test_shapes(digits.train, 200, Run())
    made = SyntheticOutliers()(digits.train, run=Run())
    for images in (made.x, shapes):
        known = {(x * 255).round().byte().numpy().tobytes() for x in images}
        for tested, _ in ood_sets(digits, Run(), count=300).values():
            assert not known & {(x * 255).round().byte().numpy().tobytes() for x in tested.x}


def test_what_cannot_be_made_is_refused_in_a_sentence(digits):
    ones = digits.train.select(digits.train.y == 1)
    with pytest.raises(UserError, match="is of one class, and pairs need images of two"):
        SyntheticOutliers(kinds=("mixed",))(ones, run=Run())
    with pytest.raises(UserError, match="tiles must be at most 8"):
        SyntheticOutliers(tiles=9)(digits.train, run=Run())
    assert len(SyntheticOutliers(kinds=("jigsaw",))(ones.select(slice(0, 1)), run=Run())) == 1
