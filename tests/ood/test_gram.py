import pytest
import torch
from torch import nn

from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.models import build_model, extract, load_model
from holdfast.ood import Gram, fit_detectors, gram, score_detectors
from holdfast.ood.gram import row_sums
from holdfast.run import Run


def naive(maps, powers):
    """Row sums of Gram matrices that are really made."""
    found = []
    for p in range(1, powers + 1):
        raised = maps.double().flatten(2) ** p
        sums = (raised @ raised.mT).sum(2)
        found.append(sums.sign() * sums.abs() ** (1 / p))
    return torch.cat(found, dim=1)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_row_sums_are_those_of_the_gram_matrices_of_each_power(layout):
    maps = torch.randn(5, 6, 3, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    torch.testing.assert_close(row_sums(maps, 6).double(), naive(maps, 6), rtol=1e-4, atol=1e-4)


def test_blocks_change_nothing(monkeypatch):
    maps = torch.randn(9, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = row_sums(maps, 3)
    monkeypatch.setattr(gram, "_AT_ONCE", 250)
    torch.testing.assert_close(row_sums(maps, 3), whole)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_row_sums_grow_with_the_square_of_the_maps_however_large_they_are(scale):
    maps = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_sums(scale * maps, 10), scale**2 * row_sums(maps, 10), rtol=1e-4, atol=0)


def test_a_map_of_zeros_has_row_sums_of_zero():
    assert not row_sums(torch.zeros(2, 3, 4, 4), 5).any()


def test_the_score_follows_the_paper_step_by_step(model, data):
    train, test, run = data.train.select(slice(0, 300)), data.test.select(slice(0, 40)), Run(batch_size=64)
    layers = ["features.6", "features"]
    detector = Gram(powers=3, maps=layers)
    fitted = fit_detectors([detector], model, train, run=run)
    held = torch.zeros(300, dtype=torch.bool)
    held[torch.randperm(300, generator=Run().rng("gram held out"))[:30]] = True

    seen = [extract(model, images, run=run, layers=layers, pool=False) for images in (train, test)]
    sums = [[naive(part.layers[layer], 3) for layer in layers] for part in seen]
    confidence = [part.logits.double().softmax(1).amax(1) for part in seen]

    def deviation(which, layer, row):
        of_class = (seen[0].predictions == seen[which].predictions[row]) & ~held
        low, high = sums[0][layer][of_class].amin(0), sums[0][layer][of_class].amax(0)
        value = sums[which][layer][row]
        outside = (low - value).clamp(min=0) / (low + 1e-6).abs() + (value - high).clamp(min=0) / (high + 1e-6).abs()
        return outside.sum() / confidence[which][row]

    usual = [torch.stack([deviation(0, i, row) for row in held.nonzero().flatten()]).mean() for i in range(2)]
    expected = torch.stack([sum(deviation(1, i, row) / usual[i] for i in range(2)) for row in range(40)])
    scores = score_detectors(fitted, model, test, run=run)[str(detector)]
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_training_images_that_were_not_held_out_do_not_deviate(model, data):
    train = data.train.select(slice(0, 200))
    scores = score_detectors(fit_detectors(["gram"], model, train, run=Run()), model, train, run=Run())["gram"]
    held = torch.randperm(200, generator=Run().rng("gram held out"))[:20]
    kept = torch.ones(200, dtype=torch.bool)
    kept[held] = False
    assert scores[kept].max() < 1e-4 < scores[held].mean()


def test_the_fit_passes_over_the_training_images_once(data):
    model, count = load_model("zoo:digits-convnet"), []
    handle = model.features[0].register_forward_hook(lambda module, inputs, output: count.append(len(output)))
    fit_detectors(["gram"], model, data.train.select(slice(0, 400)), run=Run(batch_size=100))
    handle.remove()
    assert 400 <= sum(count) <= 420  # and a few to find the stages


def test_classes_that_are_never_predicted_and_a_single_image_survive(model, data):
    of_one_class = data.train.select(data.train.y == 3)
    for train in (of_one_class, of_one_class.select(slice(0, 1))):
        fitted = fit_detectors(["gram"], model, train, run=Run())
        assert all(torch.isfinite(value).all() for value in fitted["gram"].state.values())
        assert torch.isfinite(score_detectors(fitted, model, data.test.select(slice(0, 50)), run=Run())["gram"]).all()


def test_noise_and_constant_images_deviate_more_than_digits(model, data):
    fitted = fit_detectors(["gram"], model, data.train, run=Run())
    known = score_detectors(fitted, model, data.test, run=Run())["gram"]
    noise = torch.rand(50, *data.shape, generator=torch.Generator().manual_seed(0))
    for x in (noise, torch.zeros(1, *data.shape), torch.ones(1, *data.shape)):
        alien = Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=data.classes)
        scores = score_detectors(fitted, model, alien, run=Run())["gram"]
        assert scores.min() > known.quantile(0.95)


def test_a_model_without_maps_is_refused():
    mlp = build_model("mlp", num_classes=3, image_shape=(1, 4, 4), run=Run())
    images = Images(x=torch.rand(20, 1, 4, 4), y=torch.zeros(20, dtype=torch.int64), classes=("a", "b", "c"))
    with pytest.raises(UserError, match="gram looks at maps inside of the model, but found none"):
        fit_detectors(["gram"], mlp, images, run=Run())
    with pytest.raises(UserError, match="maps must have shape"):
        fit_detectors(
            [Gram(maps=[next(n for n, m in mlp.named_modules() if isinstance(m, nn.ReLU))])], mlp, images, run=Run()
        )
