import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.training import CrossEntropy, Step

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [0.0, 3.0, 1.0], [1.0, 1.0, 4.0]])
Y = torch.tensor([0, 0, 0, 2])


def loss(objective, step=None):
    return objective(nn.Identity(), LOGITS, Y, step or Step())


def test_it_is_the_mean_negative_log_probability_of_the_true_class():
    expected = -LOGITS.softmax(1)[torch.arange(4), Y].log().mean()
    torch.testing.assert_close(loss(CrossEntropy()), expected)


def test_smoothing_spreads_its_share_over_all_classes():
    target = F.one_hot(Y, 3) * 0.7 + 0.1
    expected = -(target * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(CrossEntropy(label_smoothing=0.3)), expected)


def test_balanced_weights_give_every_class_the_same_say():
    step = Step(counts=torch.tensor([6, 0, 2]))
    losses = -LOGITS.log_softmax(1)[torch.arange(4), Y]
    weights = torch.tensor([8 / (3 * 6), 8 / (3 * 6), 8 / (3 * 6), 8 / (3 * 2)])
    torch.testing.assert_close(loss(CrossEntropy(class_weights="balanced"), step), (losses * weights).mean())


def test_balanced_weights_need_counts():
    with pytest.raises(UserError, match="needs the class counts"):
        loss(CrossEntropy(class_weights="balanced"))


def test_logits_are_reported_and_the_loss_is_float32():
    step = Step()
    value = CrossEntropy()(lambda x: x.bfloat16(), LOGITS.requires_grad_(), Y, step)
    assert value.dtype == torch.float32
    assert step.logits.dtype == torch.float32
    assert not step.logits.requires_grad
