import pytest
import torch

from holdfast.evasion import NES, Bandits
from holdfast.evasion.bandits import Bandit, exponentiated
from holdfast.models import build_model
from holdfast.run import Run


def test_the_update_in_l_inf_is_the_papers_exponentiated_gradient():
    generator = torch.Generator().manual_seed(0)
    guess = (2 * torch.rand(1000, generator=generator, dtype=torch.float64) - 1) * 0.99
    gradient = torch.randn(1000, generator=generator, dtype=torch.float64) / 50
    share = (guess + 1) / 2
    up, down = share * torch.exp(100 * gradient), (1 - share) * torch.exp(-100 * gradient)
    expected = 2 * up / (up + down) - 1
    moderate = expected.abs() < 0.999
    assert moderate.sum() > 300
    assert torch.allclose(exponentiated(guess, gradient, 100)[moderate], expected[moderate], atol=1e-9)


def test_no_gradient_makes_a_guess_that_cannot_be_unmade():
    guess = torch.zeros(4)
    sure = exponentiated(guess, torch.tensor([1e9, -1e9, 5.0, -5.0]), 100)
    assert sure.isfinite().all()
    assert (sure.abs() < 1).all()
    back = exponentiated(sure, -20 * sure.sign(), 1)
    assert torch.equal(back.sign(), -sure.sign())


def test_the_guess_is_coarse_and_every_cell_covers_a_block_of_pixels():
    bandit = Bandit(Bandits(tile=3), "any", 0)
    guess = torch.arange(9.0).view(1, 1, 3, 3)
    large = bandit.enlarged(guess, torch.zeros(1, 1, 6, 6))
    assert torch.equal(large[0, 0], torch.arange(9.0).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1))
    fresh = {"x0": torch.zeros(2, 3, 5, 2)}
    bandit.begin(fresh)
    assert fresh["guess"].shape == (2, 3, 3, 2), "never finer than the image"


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.4)])
def test_on_the_same_budget_it_finds_more_than_nes(norm, eps):
    model = build_model("convnet", num_classes=4, image_shape=(3, 16, 16), run=Run(seed=3)).eval()
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    bandits, nes = (a(eps=eps, norm=norm, queries=90).run(model, x, y, run=Run()) for a in (Bandits, NES))
    assert bandits.success.sum() > nes.success.sum()
