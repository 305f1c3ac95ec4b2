import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.models import build_model, frozen, load_model, tap
from holdfast.models.stages import as_maps, as_rows, logits_after, stages
from holdfast.run import Run


def built(name, shape=(3, 32, 32)):
    return build_model(name, num_classes=5, image_shape=shape, run=Run())


class Bypassed(nn.Module):
    """A second path leads around the deeper convolution, so the logits do not follow from its map alone."""

    image_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.shallow = nn.Conv2d(3, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        early = self.shallow(x).relu()
        return self.head(torch.cat([early.mean((2, 3)), self.deep(early).mean((2, 3))], dim=1))


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet20", ["layer1", "layer2", "layer3"]),
        ("wrn-16-1", ["layer1", "layer2", "layer3"]),
        ("convnet", ["features.2", "features.6", "features"]),  # before the pooling opens the next stage
        ("vit", ["blocks"]),
        ("mlp", []),
    ],
)
def test_a_stage_ends_with_the_last_block_at_its_resolution(name, ends):
    assert stages(built(name)) == ends


def test_only_maps_that_everything_after_follows_from_end_a_stage():
    assert stages(Bypassed()) == ["shallow"]


def test_pooling_and_normalisation_alone_are_no_stages():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert stages(model) == ["1"]


def test_looking_for_stages_leaves_the_model_as_it_was():
    model = built("convnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    stages(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_rest_of_a_network_gives_the_logits_and_the_layers_before_see_one_image():
    model = load_model("zoo:digits-convnet")
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    model.features[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with frozen(model), torch.no_grad():
        with tap(model, ["features.6"]) as maps:
            logits = model(x)
        seen.clear()
        after = logits_after(model, {"features.6": maps["features.6"]}, 1 - x)
    torch.testing.assert_close(after["features.6"], logits, atol=1e-4, rtol=1e-4)
    assert seen == [1]


def test_several_stages_share_a_pass_in_whatever_order_they_are_named():
    model = load_model("zoo:digits-convnet")
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["features", "features.2", "features.6"]
    with frozen(model), torch.no_grad():
        with tap(model, names) as outputs:
            model(x)
            # Each differs from the others, so that none can be taken for another.
            maps = {name: outputs[name][: 6 - i] + 0.1 * i for i, name in enumerate(names)}
        together = logits_after(model, maps, x)
        alone = {name: logits_after(model, {name: maps[name]}, x)[name] for name in names}
    for name in names:
        torch.testing.assert_close(together[name], alone[name], atol=1e-4, rtol=1e-4)


def test_a_layer_that_is_bypassed_cannot_be_edited():
    model = Bypassed().eval()
    with torch.no_grad(), pytest.raises((UserError, RuntimeError)):
        logits_after(model, {"deep": torch.zeros(3, 4, 4, 4)}, torch.rand(3, 3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 7, 3)])
def test_rows_and_maps_are_inverse(shape):
    maps = torch.randn(shape)
    rows = as_rows(maps)
    assert rows.shape[::2] == (2, 3)
    assert torch.equal(as_maps(rows, maps), maps)


def test_vectors_are_no_maps():
    with pytest.raises(UserError, match="maps must have shape"):
        as_rows(torch.zeros(2, 3))
