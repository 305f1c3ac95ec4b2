import pytest
import torch

from holdfast import Run, UserError
from holdfast.models import Normalize, architectures, build_model, check_model, classifier_head, frozen

NAMES = [
    "resnet20",
    "preact-resnet18",
    "wrn-10-1(dropout=0.3)",
    "vgg16-bn",
    "mobilenet-v2",
    "convnet",
    "mlp(hidden=[16])",
    "vit(dim=24, depth=2)",
]


def parameters(name, classes=10, **kwargs):
    with torch.device("meta"):  # counting needs no memory
        model = build_model(name, num_classes=classes, **kwargs)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet56", 10, 853_018),
        ("preact-resnet18", 10, 11_172_170),
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-40-2", 10, 2_243_546),
        ("wrn-16-4", 10, 2_748_890),
        ("wrn-34-10", 10, 46_160_474),
        ("vgg16-bn", 10, 14_728_266),
        ("mobilenet-v2", 1000, 3_504_872),
        ("mobilenet-v2", 10, 2_236_682),
    ],
)
def test_parameter_counts_are_those_of_the_literature(name, classes, count):
    assert parameters(name, classes) == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 48, 40), (1, 8, 8), (3, 13, 7)])
def test_every_architecture_takes_any_image_shape_and_number_of_classes(name, shape):
    model = build_model(name, num_classes=7, image_shape=shape)
    x = torch.rand(3, *shape)
    with frozen(model, check=x):
        assert model(x).shape == (3, 7)
    assert isinstance(classifier_head(model), torch.nn.Linear)
    assert model.training
    assert (model.num_classes, model.image_shape) == (7, shape)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_every_architecture_learns(name):
    model = build_model(name, num_classes=5, image_shape=(1, 16, 16))
    model(torch.rand(4, 1, 16, 16)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_starting_weights_depend_on_the_run_and_on_nothing_else():
    before = torch.get_rng_state()
    one = build_model("convnet", num_classes=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    same = build_model("convnet", num_classes=3, run=Run(seed=0))
    other = build_model("convnet", num_classes=3, run=Run(seed=1))
    weights = [m.features[0].weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_the_shortcut_of_option_a_subsamples_and_pads_with_zeros():
    block = build_model("resnet20", num_classes=2).layer2[0]
    x = torch.rand(2, 16, 9, 8)
    out = block.shortcut(x)
    assert out.shape == block(x).shape == (2, 32, 5, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_dropout_is_active_in_training_only():
    model = build_model("wrn-10-1(dropout=0.5)", num_classes=3, image_shape=(1, 8, 8))
    x = torch.rand(4, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    check_model(model.eval(), x)


def test_the_first_layer_normalises_with_the_given_statistics():
    model = build_model("resnet20", num_classes=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    layer = next(model.children())
    assert isinstance(layer, Normalize)
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25, (x[:, 2] - 0.3) / 2], 1)
    torch.testing.assert_close(layer(x), expected)
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "model 'resnet21' is unknown. Did you mean 'resnet"),
        ("wrn-29-3", "depth must be 6n \\+ 4"),
        ("wrn-16-0", "width must be at least 1"),
        ("convnet(width=0)", "convnet: width should be greater than or equal to 1, got 0"),
        ("convnet(wdth=8)", "'wdth' is not an option. Did you mean 'width'"),
        ("mobilenet-v2(width=2)", "It takes no options"),
        ("vit(heads=5)", "heads must divide dim"),
        ("resnet20(num_classes=3)", "'num_classes' is not an option"),
        ("resnet20(depth=3)", "'depth' is not an option"),
    ],
)
def test_a_wrong_name_or_option_is_refused_in_one_sentence(name, message):
    with pytest.raises(UserError, match=message):
        build_model(name, num_classes=3)


@pytest.mark.parametrize(
    "kwargs",
    [{"num_classes": 0}, {"image_shape": (3, 32)}, {"image_shape": (3, 0, 32)}, {"mean": (0.5,)}, {"std": (1, 0, 1)}],
)
def test_wrong_sizes_and_statistics_are_refused(kwargs):
    with pytest.raises(UserError):
        build_model("convnet", **{"num_classes": 3, **kwargs})


def test_models_bound_to_a_shape_say_so_for_another():
    for name in ("mlp", "vit(dim=24, depth=1)"):
        model = build_model(name, num_classes=3, image_shape=(1, 8, 8))
        with pytest.raises(UserError, match="was built for images of shape"):
            model(torch.rand(1, 1, 9, 8))


def test_every_listed_name_can_be_built():
    for name in architectures():
        assert parameters(name, 2) > 0
