import pytest
import torch
from torch import nn

from holdfast import Run, UserError
from holdfast.data.images import Images
from holdfast.models import Features, build_model, classifier_head, extract, frozen, predict, tap


@pytest.fixture
def images():
    rng = Run().rng("images")
    x = torch.randint(0, 256, (37, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return Images(x=x, y=torch.arange(37) % 5, classes=("a", "b", "c", "d", "e"))


@pytest.fixture
def model():
    return build_model("resnet20(width=4)", num_classes=5, image_shape=(3, 8, 8))


def test_one_pass_gives_what_the_model_computes(model, images):
    count = 0

    def counting(*_):
        nonlocal count
        count += 1

    model.layer2.register_forward_hook(counting)
    features = extract(model, images, run=Run(batch_size=10), layers=("layer1", "layer3.2.bn1"))
    assert count == 4 + 1  # batches, and one small pass to find the head
    with frozen(model), torch.no_grad():
        x = images.x.float() / 255
        trunk = model.layer1(torch.relu(model.bn1(model.conv1(model.normalize(x)))))
        torch.testing.assert_close(features.logits, model(x))
    torch.testing.assert_close(features.layers["layer1"], trunk.mean((2, 3)))
    torch.testing.assert_close(features.logits, model.fc(features.penultimate).detach())
    assert features.layers["layer3.2.bn1"].shape == (37, 16)
    assert torch.equal(features.y, images.y)
    assert torch.equal(features.predictions, features.logits.argmax(1))
    torch.testing.assert_close(features.probabilities.sum(1), torch.ones(37))
    torch.testing.assert_close(predict(model, images, run=Run()), features.logits)
    assert model.training
    assert len(model.layer1._forward_hooks) == len(model.fc._forward_pre_hooks) == 0


def test_results_do_not_depend_on_the_batch_size(model, images):
    small, large = (extract(model, images, run=Run(batch_size=n), layers=("conv1",)) for n in (5, 64))
    torch.testing.assert_close(small.logits, large.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small.penultimate, large.penultimate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small.layers["conv1"], large.layers["conv1"], rtol=1e-5, atol=1e-6)


def test_unpooled_layers_keep_their_maps(model, images):
    features = extract(model, images, run=Run(batch_size=16), layers=("layer2", "layer2"), pool=False)
    assert features.layers["layer2"].shape == (37, 8, 4, 4)
    chosen = features.select(features.y == 2)
    assert len(chosen) == len(chosen.layers["layer2"]) == len(chosen.penultimate) == int((images.y == 2).sum())


def test_an_activation_in_place_does_not_write_into_what_was_tapped(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
    features = extract(model, images, run=Run(), layers=("0", "1"), pool=False)
    assert features.layers["0"].min() < 0
    torch.testing.assert_close(features.layers["0"].relu(), features.layers["1"])


def test_the_tap_keeps_the_graph(model):
    with frozen(model), tap(model, ["layer2"]) as seen:
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        model(x)
        (gradient,) = torch.autograd.grad(seen["layer2"].square().sum(), x)
    assert gradient.abs().sum() > 0


def test_unknown_layers_and_empty_sets_are_refused(model, images):
    with pytest.raises(UserError, match=r"layer 'layer9' is unknown. Did you mean 'layer"):
        extract(model, images, run=Run(), layers=("layer9",))
    with pytest.raises(UserError, match="no images"):
        extract(model, images.select(slice(0, 0)), run=Run())
    with pytest.raises(UserError, match="no images"):
        predict(model, images.select(slice(0, 0)), run=Run())


def test_a_layer_that_is_not_used_or_returns_no_rows_is_refused(images):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(2, 2)
            self.fc = nn.Linear(192, 5)

        def forward(self, x):
            return self.fc(x.flatten(1))

    with pytest.raises(UserError, match="'idle' must return a tensor with one row per image, got nothing"):
        extract(Odd(), images, run=Run(), layers=("idle",))


class TwoHeads(nn.Module):
    """The last registered linear layer is an auxiliary one."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)
        self.auxiliary = nn.Linear(192, 5)

    def forward(self, x):
        x = x.flatten(1)
        self.auxiliary(x)
        return self.fc(x)


def test_the_head_is_the_layer_that_makes_the_logits(images):
    model = TwoHeads()
    example = torch.rand(2, 3, 8, 8)
    assert classifier_head(model, example) is model.fc
    assert classifier_head(nn.Sequential(model, nn.Identity()), example) is model.fc
    assert classifier_head(nn.Sequential(model, nn.LogSoftmax(1)), example) is None
    assert classifier_head(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), example) is None
    features = extract(nn.Sequential(model, nn.Tanh()), images, run=Run())
    assert features.penultimate is None


def test_the_head_is_found_without_an_example_and_without_touching_the_model(model):
    mean = model.bn1.running_mean.clone()
    assert classifier_head(model) is model.fc
    assert torch.equal(mean, model.bn1.running_mean)
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert classifier_head(own) is own[3]
    assert classifier_head(nn.Flatten()) is None


def test_a_probe_sees_every_image_once_with_the_raw_maps_of_its_layers():
    class Look:
        layers = ("0",)

        def __init__(self):
            self.starts = []

        def __call__(self, seen):
            self.starts.append(seen.start)
            assert seen.head is seen.model[-1]
            assert not seen.logits.requires_grad
            torch.testing.assert_close(seen.head(seen.penultimate), seen.logits)
            return torch.cat([seen.layers["0"].amax((2, 3)), seen.y[:, None].float()], dim=1)

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = Images(x=torch.rand(10, 3, 8, 8), y=torch.arange(10) % 5, classes=tuple("abcde"))
    look = Look()
    found = extract(model, images, run=Run(batch_size=4), layers=["0"], probes={"look": look})
    assert look.starts == [0, 4, 8]
    maps = model[0](images.x)
    torch.testing.assert_close(found.observed["look"], torch.cat([maps.amax((2, 3)), images.y[:, None].float()], 1))
    torch.testing.assert_close(found.layers["0"], maps.mean((2, 3)))
    assert torch.equal(found.select([3, 1]).observed["look"], found.observed["look"][[3, 1]])


def test_what_is_derived_from_features_is_derived_once():
    found = Features(logits=torch.zeros(2, 2), y=torch.zeros(2, dtype=torch.int64))
    assert found.once("a", object) is found.once("a", object)
    assert found.select([0]).once("a", object) is not found.once("a", object)
