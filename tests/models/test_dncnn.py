import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.models import DnCNN


def images(n=8):
    return torch.rand(n, 3, 10, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
def test_a_new_one_is_the_identity_to_the_last_bit(training):
    x = images()
    assert torch.equal(DnCNN(3, depth=5, width=8).train(training)(x), x)


def test_it_has_the_layers_of_the_paper():
    net = DnCNN(3)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(convolutions), len(norms)) == (17, 15)
    assert [c.bias is not None for c in convolutions] == [True] + 16 * [False]
    assert all(n.num_features == 64 and n.eps == 1e-4 for n in norms)
    weight = convolutions[3].weight.flatten(1)
    assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-5)


def test_it_takes_away_what_its_network_says():
    net = DnCNN(3, depth=2, width=4).eval()
    nn.init.dirac_(net.net[0].weight)
    nn.init.dirac_(net.net[-1].weight)
    x = images()
    assert torch.allclose(net(x), torch.zeros_like(x))  # first channels pass through unchanged, and are taken away


def test_statistics_in_use_are_a_long_average_and_not_the_last_batch():
    net = DnCNN(3, depth=3, width=4).train()
    for _ in range(200):
        net(images())
    mean = net.net[3].running_mean.clone()
    net(torch.zeros(8, 3, 10, 12))
    assert torch.allclose(net.net[3].running_mean, 0.95 * mean, atol=1e-6)


def test_weights_come_from_the_generator_given_and_no_other():
    torch.default_generator.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (DnCNN(1, depth=3, width=4, rng=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.net[0].weight, again.net[0].weight)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)


def test_beginning_again_forgets_everything():
    net = DnCNN(3, depth=3, width=4, rng=torch.Generator().manual_seed(1)).train()
    net(images())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    net.initialise(torch.Generator().manual_seed(1))
    fresh = DnCNN(3, depth=3, width=4, rng=torch.Generator().manual_seed(1)).state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name


@pytest.mark.parametrize("wrong", [{"depth": 1}, {"width": 0}, {"depth": 2.5}, {"width": True}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=f"dncnn: {next(iter(wrong))} must be a whole number"):
        DnCNN(3, **wrong)
