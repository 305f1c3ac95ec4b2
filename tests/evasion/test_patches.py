import pytest
import torch

from holdfast.evasion import Square
from holdfast.evasion.balls import distance
from holdfast.evasion.patches import Bumps, Squares, bump, squares
from holdfast.models import build_model
from holdfast.run import Run, content_keys

EPS = {"l2": 1.0, "l1": 8.0}
each_norm = pytest.mark.parametrize("norm", ["l2", "l1"])


def images(n=6, height=12, width=10):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def bumps(norm, x0, sides=(7, 7, 7, 7, 5, 5, 5, 5, 3, 3, 3, 3), seed=0):
    proposals = Bumps(EPS[norm], norm, seed, torch.tensor(sides))
    state = {"x0": x0, "best": x0.clone(), "key": content_keys(x0), "step": torch.zeros(len(x0), dtype=torch.int64)}
    proposals.begin(state)
    return proposals, state


def size(window, norm):
    return float(window.abs().sum() if norm == "l1" else window.norm())


@each_norm
@pytest.mark.parametrize("side", [1, 2, 3, 6, 9])
def test_a_bump_has_norm_one_and_a_hollow_below(norm, side):
    window = bump(side, norm)
    assert window.shape == (side, side)
    assert size(window, norm) == pytest.approx(1, rel=1e-5)
    assert (window[: side // 2] > 0).all()
    assert (window[side // 2 :] < 0).all()
    if side >= 6:
        assert window[side // 4, side // 2] == window.max(), "the peak is in the middle of the upper half"


def test_a_bump_is_a_pile_of_rectangles():
    # Upper half, 2 x 5, around (1, 2): rings at distance 0, 1, 2 of heights 1 + 1/4 + 1/9, 1/4 + 1/9, 1/9.
    top, ring, rim = 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9
    upper = torch.tensor([[rim, ring, ring, ring, rim], [rim, ring, top, ring, rim]])
    window = bump(5, "l2")
    assert torch.allclose(window[:2] / window[1, 2], upper / top)


@each_norm
def test_proposals_use_the_whole_radius_and_stay_in_the_box(norm):
    x0 = images() * 0.02 + 0.49  # far from the edges of the box, so that nothing is cut off
    proposals, state = bumps(norm, x0)
    for step in range(12):
        state["step"].fill_(step)
        state["best"] = proposals(state)
        far = distance(state["best"], x0, norm)
        assert torch.allclose(far, torch.full_like(far, EPS[norm]), rtol=1e-4), step
    state["x0"] = state["best"] = images().round()
    state["step"].zero_()
    for step in range(12):
        state["step"].fill_(step)
        state["best"] = proposals(state)
        assert 0 <= state["best"].min() <= state["best"].max() <= 1
        assert (distance(state["best"], state["x0"], norm) <= EPS[norm] + 1e-5).all()


def test_only_two_windows_change_their_shape_and_one_of_them_is_emptied():
    x0 = images() * 0.02 + 0.49
    proposals, state = bumps("l2", x0)
    state["best"] = proposals(state)
    before = state["best"] - x0
    state["step"].fill_(9)  # sides of 3
    after = proposals(state) - x0
    emptied = ((after == 0) & (before != 0)).any(1).flatten(1).sum(1)
    assert (emptied <= 9).all()
    assert (emptied > 0).any()
    for old, new in zip(before, after, strict=True):
        # What lies outside of both windows is the same but for one factor.
        kept = (old.abs() > 1e-6) & (new.abs() > 1e-9)
        ratios = new[kept] / old[kept]
        same = (ratios - ratios.median()).abs() < 1e-3 * ratios.median().abs()
        assert (~same).sum() <= 3 * 9
        assert float(same.float().mean()) > 0.8


def test_a_new_bump_gets_the_norm_of_both_windows_and_what_was_unused():
    x0 = torch.full((1, 3, 12, 10), 0.5)
    proposals, state = bumps("l2", x0)
    state["step"].fill_(1)
    first = proposals(state) - x0
    window = first[0].abs().sum(0) > 0
    assert window.sum() == 49
    # From nothing, each channel is given the same share, and it is one bump, upright or turned.
    assert torch.allclose(first[0].flatten(1).norm(dim=1), torch.full((3,), 3**-0.5), rtol=1e-4)
    rows, columns = window.any(1).nonzero().flatten(), window.any(0).nonzero().flatten()
    patch = first[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * 3**0.5
    pattern = bump(7, "l2")
    assert any(torch.allclose(patch, sign * p, atol=1e-4) for sign in (1, -1) for p in (pattern, pattern.T))


def test_windows_of_l2_are_odd_and_no_larger_than_the_image():
    attack = Square(norm="l2", eps=1)
    assert [attack.side(i, 32, 32) for i in (0, 11, 51, 1001, 4999)] == [29, 21, 15, 5, 3]
    assert attack.side(0, 6, 40) == 6
    assert attack.side(4000, 2, 40) == 2


@each_norm
def test_more_queries_find_more_and_noise_finds_less(norm):
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 10), run=Run(seed=3)).eval()
    x = images(40)
    with torch.no_grad():
        y = model(x).argmax(1)
        lead = model(x).sort(1).values.diff(dim=1)[:, -1]
    x, y = x[lead.argsort()[5:25]], y[lead.argsort()[5:25]]  # neither the weakest nor the strongest
    found = [Square(norm=norm, eps=EPS[norm], queries=q).run(model, x, y, run=Run()).success for q in (1, 20, 120)]
    assert (found[1] >= found[0]).all()
    assert (found[2] >= found[1]).all()
    assert found[2].sum() > found[0].sum()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_squares_of_different_sizes_are_set_to_the_bounds_and_nothing_else_is(layout):
    x0 = images(9).contiguous(memory_format=layout)
    proposals = Squares(0.1, "linf", 7, torch.tensor([9, 9, 4, 1]))
    state = {"x0": x0, "best": x0.clone(), "key": content_keys(x0), "step": torch.arange(9) % 4 + 1}
    proposals.begin(state)
    kept = state["best"].clone()
    numbers = torch.rand(9, 8, generator=torch.Generator().manual_seed(2))
    iteration = state["step"] - 1
    got = proposals.change(state, numbers, iteration)
    side = proposals.sides[iteration]
    mask = squares(*proposals.corner(numbers[:, :2], side, 12, 10), side, 12, 10)
    up = (numbers[:, 2:5] < 0.5)[:, :, None, None]
    assert torch.equal(got, torch.where(mask, torch.where(up, state["high"], state["low"]), x0))
    assert torch.equal(state["best"], kept)


def test_a_square_that_is_there_already_is_drawn_with_other_signs():
    x0 = 0.2 + 0.6 * images(40)
    proposals = Squares(0.1, "linf", 7, torch.tensor([3]))
    state = {"x0": x0, "key": content_keys(x0), "step": torch.ones(40, dtype=torch.int64)}
    proposals.begin(state)
    state["best"] = state["high"].clone()
    numbers = torch.rand(40, 8, generator=torch.Generator().manual_seed(3))
    assert (numbers[:, 2:5] < 0.5).all(1).any(), "the test needs rows that draw what is there"
    got = proposals.change(state, numbers, torch.zeros(40, dtype=torch.int64))
    assert (got != state["best"]).flatten(1).any(1).all()
    assert ((got == state["low"]) | (got == state["high"])).all()
