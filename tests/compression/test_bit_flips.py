import math

import pytest
import torch
from torch import nn

from holdfast.compression import Bit, draw_bits, draw_exponent_bits, flip_bits, flipped, worst_flip
from holdfast.compression.bit_flips import _distinct, locate
from holdfast.errors import UserError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 4))
    return net.to(memory_format=torch.channels_last)


def words(model):
    """All weights as integers, in logical order."""
    types = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    return torch.cat([p.detach().clone().view(types[p.dtype]).flatten() for p in model.parameters()])


def popcount(x):
    return sum(int(((x >> b) & 1).sum()) for b in range(32))


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-2, 0.5])
def test_as_many_bits_flip_as_announced_and_all_come_back(net, rate):
    before = words(net)
    with flip_bits(net, rate, rng=rng()) as count:
        assert popcount(before ^ words(net)) == count
    assert torch.equal(words(net), before)


def test_weights_come_back_after_an_exception(net):
    before = words(net)

    def fail():
        with flip_bits(net, 0.1, rng=rng()):
            assert not torch.equal(words(net), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(words(net), before)


def test_equal_generators_flip_equal_bits(net):
    assert torch.equal(draw_bits(net, 1e-2, rng=rng(3)), draw_bits(net, 1e-2, rng=rng(3)))
    assert not torch.equal(draw_bits(net, 1e-2, rng=rng(3)), draw_bits(net, 1e-2, rng=rng(4)))


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.01])
def test_the_number_of_flips_is_binomial(net, rate):
    total = 32 * sum(p.numel() for p in net.parameters())
    counts = torch.tensor([len(draw_bits(net, rate, rng=rng(s))) for s in range(400)]).double()
    error = math.sqrt(total * rate * (1 - rate) / 400)
    assert abs(counts.mean() - total * rate) < 4 * error
    assert counts.var() == pytest.approx(total * rate * (1 - rate), rel=0.3)


def test_every_bit_is_equally_likely():
    for count in (10, 30):  # few of them, and most of them
        hits = torch.zeros(40)
        for seed in range(2000):
            drawn = _distinct(40, count, rng(seed))
            assert len(drawn.unique()) == count
            hits[drawn] += 1
        p = count / 40
        assert ((hits - 2000 * p).abs() < 4 * math.sqrt(2000 * p * (1 - p))).all()


def test_bit_30_of_one_half_is_1_7e38():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.25, 0.5]]))
    with flipped(layer, torch.tensor([32 + 30])):
        assert layer.weight.tolist() == [[0.25, 2.0**127]]
    with flipped(layer, torch.tensor([31])):
        assert layer.weight.tolist() == [[-0.25, 0.5]]
    with flipped(layer, torch.tensor([23 + 32, 31 + 32, 22 + 32])):  # three flips of one weight
        assert layer.weight.tolist() == [[0.25, -1.5]]
    assert layer.weight.tolist() == [[0.25, 0.5]]


def test_an_address_is_named(net):
    assert locate(net, 0) == Bit("0.weight", 0, 0)
    assert locate(net, 32 * 216 + 33) == Bit("0.bias", 1, 1)
    with pytest.raises(IndexError):
        locate(net, 10**9)


def test_an_address_names_the_weight_that_changes_whatever_the_layout(net):
    for address in draw_bits(net, 1e-3, rng=rng()).tolist():
        bit = locate(net, address)
        before = dict(net.named_parameters())[bit.parameter].detach().flatten().clone()
        with flipped(net, torch.tensor([address])):
            after = dict(net.named_parameters())[bit.parameter].detach().flatten()
            assert (after.view(torch.int32) != before.view(torch.int32)).nonzero().flatten().tolist() == [bit.index]


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, range(23, 31)), (torch.bfloat16, range(7, 15)), (torch.float16, range(10, 15))],
)
def test_exponent_bits_are_exponent_bits(net, dtype, exponent):
    net = net.to(dtype)
    drawn = draw_exponent_bits(net, 400, rng=rng())
    assert len(drawn.unique()) == 400
    assert {locate(net, int(a)).bit for a in drawn} == set(exponent)
    assert len({locate(net, int(a)).parameter for a in drawn}) > 1
    everything = draw_exponent_bits(net, 10**9, rng=rng())
    assert len(everything) == len(exponent) * sum(p.numel() for p in net.parameters())


def test_sixteen_bit_weights_flip_and_come_back(net):
    net = net.half()
    before = words(net)
    with flip_bits(net, 0.2, rng=rng()) as count:
        assert sum(int((((before ^ words(net)) >> b) & 1).sum()) for b in range(16)) == count
    assert torch.equal(words(net), before)


def test_the_worst_flip_is_found_and_undone():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.5, 4.0]]))
    before = layer.weight.detach().clone()
    # The only bit that adds more than 1e38 to the middle weight is its bit 30.
    worst = worst_flip(layer, lambda m: -m.weight[0, 1].item(), count=24, rng=rng())
    assert (worst.bit, worst.value) == (Bit("weight", 1, 30), -(2.0**127))
    assert len(worst.values) == 24
    assert torch.equal(layer.weight, before)


def test_a_score_that_is_not_a_number_is_the_worst():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)  # bit 30 of 1 gives infinity
    worst = worst_flip(layer, lambda m: (m.weight - m.weight).sum().item(), count=8, rng=rng())
    assert worst.bit.bit == 30
    assert math.isnan(worst.value)


def test_gradients_still_flow_inside_the_block(net):
    with flip_bits(net, 1e-3, rng=rng()):
        assert torch.is_grad_enabled()
        net(torch.rand(2, 3, 6, 6)).sum().backward()
    assert net[0].weight.grad is not None


def test_rates_and_types_that_make_no_sense_are_refused(net):
    with pytest.raises(UserError, match=r"rate must be in \[0, 0.5\], got 0.7"):
        draw_bits(net, 0.7, rng=rng())
    net.register_parameter("extra", nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False))
    with pytest.raises(UserError, match=r"'extra' is of type torch\.int32"):
        draw_bits(net, 0.1, rng=rng())
