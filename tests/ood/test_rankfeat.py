import pytest
import torch

from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.models import build_model, frozen, load_model
from holdfast.ood import RankFeat, fit_detectors, rankfeat, score_detectors
from holdfast.ood.rankfeat import without_first
from holdfast.run import Run


def scores(detector, model, images, **run):
    return score_detectors(fit_detectors([detector], model, None, run=Run()), model, images, run=Run(**run))[
        str(detector)
    ]


def with_gap(n, c, h, w, ratio, seed=0):
    """Maps whose second singular value is `ratio` of the first."""
    rng = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(n, c, h * w, generator=rng), full_matrices=False)
    s[:, 1:] *= (ratio * s[:, 0] / s[:, 1])[:, None]
    return ((u * s[:, None]) @ v).reshape(n, c, h, w)


def by_svd(maps):
    u, s, v = torch.linalg.svd(maps.double().flatten(2), full_matrices=False)
    s[:, 0] = 0
    return ((u * s[:, None]) @ v).reshape(maps.shape)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 12, 2, 3)])  # more pixels than channels, and fewer
def test_a_map_of_rank_one_vanishes(shape):
    rng = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    maps = (torch.randn(n, c, 1, generator=rng) @ torch.randn(n, 1, h * w, generator=rng)).reshape(shape)
    assert without_first(maps, 20).abs().max() < 1e-4
    assert not without_first(torch.zeros(shape), 20).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 20, 3, 3)])
def test_what_is_left_is_what_the_exact_decomposition_leaves(shape, layout):
    maps = with_gap(*shape, ratio=0.7).contiguous(memory_format=layout)
    torch.testing.assert_close(without_first(maps, 20).double(), by_svd(maps), atol=1e-2, rtol=0)
    torch.testing.assert_close(without_first(maps, 200).double(), by_svd(maps), atol=1e-4, rtol=0)


def test_tokens_are_pixels_too():
    maps = with_gap(3, 6, 2, 4, ratio=0.5)
    tokens = maps.flatten(2).mT
    torch.testing.assert_close(without_first(tokens, 50), without_first(maps, 50).flatten(2).mT, atol=1e-4, rtol=0)


def test_blocks_change_nothing(monkeypatch):
    maps = with_gap(9, 4, 3, 3, ratio=0.8)
    whole = without_first(maps, 20)
    monkeypatch.setattr(rankfeat, "_AT_ONCE", 80)
    torch.testing.assert_close(without_first(maps, 20), whole, atol=1e-6, rtol=0)


def test_the_score_is_the_energy_of_the_mean_of_both_stages_logits():
    model = load_model("zoo:cifar10-resnet20")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = Images(x=x, y=torch.zeros(4, dtype=torch.int64), classes=tuple("abcdefghij"))
    with frozen(model), torch.no_grad():
        early = model.layer2(model.layer1(model.bn1(model.conv1(model.normalize(x))).relu()))
        late = model.layer3(early)
        logits = [
            model.fc(maps.mean((2, 3))) for maps in (without_first(late, 500), model.layer3(without_first(early, 500)))
        ]
    expected = -2 * torch.logsumexp((logits[0] + logits[1]).double() / 2 / 2, dim=1)
    found = scores(RankFeat(temperature=2, iterations=500), model, images, batch_size=3)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_one_stage_alone_is_the_energy_of_its_logits():
    model, images = load_model("zoo:digits-convnet"), load_data("digits").test.select(slice(0, 8))
    both, last, previous = (scores(RankFeat(maps=maps), model, images) for maps in ([], ["features"], ["features.6"]))
    assert torch.equal(both, scores(RankFeat(maps=["features.6", "features"]), model, images))
    # The log of summed exponentials is convex: the energy of the mean is at least the mean of the energies.
    assert (both >= (last + previous) / 2 - 1e-6).all()
    assert not torch.allclose(last, previous)


def test_a_vision_transformer_has_one_stage_and_a_perceptron_none():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = Images(x=x, y=torch.zeros(4, dtype=torch.int64), classes=("a", "b", "c"))
    vit = build_model("vit(patch=4, dim=16, depth=2, heads=2)", num_classes=3, image_shape=(3, 8, 8), run=Run())
    assert torch.isfinite(scores(RankFeat(), vit, images)).all()
    mlp = build_model("mlp", num_classes=3, image_shape=(3, 8, 8), run=Run())
    with pytest.raises(UserError, match="rankfeat edits maps inside of the model, but found none"):
        scores(RankFeat(), mlp, images)
