import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from holdfast.data import load_data, to_float
from holdfast.data.drawing import SHAPES, signed_distance
from holdfast.data.shapes32 import BACKGROUNDS, COLOURS, TEXTURES, Shapes32
from holdfast.run import Run


def draw(**fields):
    return Shapes32(**fields)(run=Run())


def test_sizes_classes_and_columns_are_as_promised():
    data = load_data("shapes32(n=200, seed=3, size=24)")
    assert [len(s) for s in (data.train, data.val, data.test)] == [200, 20, 40]
    assert data.shape == (3, 24, 24)
    assert data.train.x.dtype == torch.uint8
    assert torch.bincount(data.train.y).tolist() == [20] * 10
    assert data.train.columns["mask"].shape == (200, 24, 24)
    assert set(data.train.columns) == {
        *("colour", "texture", "background", "group", "domain", "aligned", "mask", "caption")
    }


def test_the_same_seed_draws_the_same_and_another_seed_another():
    one, two, other = draw(n=50), draw(n=50), draw(n=50, seed=1)
    assert one.train.fingerprint() == two.train.fingerprint()
    assert one.train.fingerprint() != other.train.fingerprint()
    assert Shapes32(n=50)(run=Run(seed=9)).train.fingerprint() == one.train.fingerprint()


def test_a_larger_set_begins_with_the_smaller_one_and_splits_share_no_picture():
    small, large = draw(n=60), draw(n=550)
    assert torch.equal(small.train.x, large.train.x[:60])
    assert torch.equal(small.test.x, large.test.x[: len(small.test)])
    keys = {x.numpy().tobytes() for split in (large.train, large.val, large.test) for x in split.x}
    assert len(keys) == len(large.train) + len(large.val) + len(large.test)


@pytest.mark.parametrize("attribute", ["background", "colour", "texture"])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_the_attribute_is_tied_to_the_class_with_the_given_strength_in_training_only(attribute, strength):
    data = draw(n=2000, size=12, spurious=strength, attribute=attribute)
    options = {"background": len(BACKGROUNDS), "colour": len(COLOURS), "texture": len(TEXTURES)}[attribute]
    for split, tied in ((data.train, strength), (data.test, 0.0)):
        own = split.columns[attribute] == split.y % options
        assert torch.equal(own, split.columns["aligned"])
        expected = tied + (1 - tied) / options
        assert abs(own.float().mean() - expected) < 4 * (expected * (1 - expected) / len(split)) ** 0.5 + 1e-6


def test_attributes_are_independent_of_the_class_and_of_each_other():
    columns = {"shape": (data := draw(n=4000, size=12)).train.y, **data.train.columns}
    names = ["shape", "colour", "texture", "background", "group"]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            table = np.histogram2d(columns[a], columns[b], bins=(columns[a].max() + 1, columns[b].max() + 1))[0]
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            assert ((table - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_group_and_domain_shares_are_as_asked_for():
    data = draw(n=2000, size=12, minority=0.3, domains=4)
    assert abs(data.train.columns["group"].float().mean() - 0.3) < 0.05
    assert (torch.bincount(data.train.columns["domain"], minlength=4) / 2000 - 0.25).abs().max() < 0.05
    assert draw(n=50, size=12).train.columns["domain"].max() == 0


def test_the_mask_is_where_the_shape_is_drawn():
    data = draw(n=400, minority=0.0)
    columns = data.train.columns
    x, mask = to_float(data.train.x), columns["mask"]
    plain = (columns["texture"] == 0) & (columns["background"] == 0)
    palette = torch.tensor(list(COLOURS.values()))
    assert plain.sum() >= 3
    for i in torch.nonzero(plain).flatten():
        inside = x[i][:, mask[i]].median(1).values
        outside = x[i][:, ~mask[i]].median(1).values
        assert (inside - palette[columns["colour"][i]]).abs().max() < 0.06
        assert (inside - outside).abs().max() > 0.15
    share = mask.float().mean((1, 2))
    assert share.min() > 0.02
    assert share.max() < 0.6


def test_captions_say_what_is_shown():
    data = draw(n=100, size=12, domains=2)
    c = data.train.columns
    for i, caption in enumerate(c["caption"]):
        assert data.classes[data.train.y[i]] in caption
        assert list(COLOURS)[c["colour"][i]] in caption
        assert TEXTURES[c["texture"][i]] in caption
        assert f"on a {BACKGROUNDS[c['background'][i]]} background" in caption
        assert ("faint" in caption) == bool(c["group"][i])
        assert caption.startswith(("a painting", "a sketch")[c["domain"][i]])


@pytest.mark.parametrize("kind", range(10), ids=list(SHAPES))
def test_distances_grow_no_faster_than_the_way_and_are_negative_inside(kind):
    axis = torch.linspace(-1.4, 1.4, 141)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    d = signed_distance(torch.tensor([kind]), x[None], y[None])[0]
    step = 2.8 / 140
    assert (d[1:] - d[:-1]).abs().max() <= step * 1.01
    assert (d[:, 1:] - d[:, :-1]).abs().max() <= step * 1.01
    area = (d < 0).float().mean() * 2.8**2
    assert 0.4 < area < 3
    assert min(d[0].min(), d[-1].min(), d[:, 0].min(), d[:, -1].min()) > 0


def test_shapes_differ_enough_to_be_told_apart_from_their_masks():
    train, test = (data := draw(n=1500, rotation=0.0)).train, data.test
    masks = [to_float(s.columns["mask"].to(torch.uint8) * 255).flatten(1) for s in (train, test)]
    model = LogisticRegression(max_iter=1000, C=0.01).fit(masks[0], train.y)
    assert model.score(masks[1], test.y) > 0.85


def test_edges_are_smooth():
    x = draw(n=40, size=64, minority=0.0).train
    plain = (x.columns["texture"] == 0) & (x.columns["background"] == 0)
    values = [len(x.x[i, 0].unique()) for i in torch.nonzero(plain).flatten()]
    assert all(v > 20 for v in values)
