import math

import torch
import torch.nn.functional as F

from holdfast.training import LogitAdjustment, Step
from holdfast.training.cross_entropy import CrossEntropy

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def identity(x):
    return x


def step(counts):
    return Step(counts=torch.tensor(counts))


def test_tau_0_is_cross_entropy():
    given = step([6, 3, 2, 1])
    assert torch.equal(LogitAdjustment(tau=0)(identity, X, Y, given), CrossEntropy()(identity, X, Y, given))


def test_equal_classes_need_no_adjustment():
    given = step([4, 4, 4, 4, 4])
    torch.testing.assert_close(LogitAdjustment()(identity, X, Y, given), F.cross_entropy(X, Y))


def test_logits_that_only_know_the_frequencies_are_learnt_as_constant():
    """The adjusted loss of constant logits is the entropy of the labels: nothing is left to learn."""
    loss = LogitAdjustment()(identity, torch.zeros(8, 4), torch.tensor([0, 0, 0, 0, 1, 1, 2, 3]), step([4, 2, 1, 1]))
    assert math.isclose(loss.item(), 1.75 * math.log(2), rel_tol=1e-6)


def test_a_class_without_images_leaves_the_loss_finite_and_accuracy_counts_raw_logits():
    given = step([6, 3, 3, 0])
    assert torch.isfinite(LogitAdjustment()(identity, X, Y % 3, given))
    assert torch.equal(given.logits, X)
