import pytest
import torch
import torch.nn.functional as F

from holdfast.models import Features
from holdfast.ood import GradNorm


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_score_is_minus_the_l1_norm_of_the_gradient(real, temperature):
    weight = real.head.weight.detach().clone().requires_grad_()
    norms = []
    for h in real.test.penultimate[:50]:
        logits = F.linear(h, weight, real.head.bias.detach())
        loss = -F.log_softmax(logits / temperature, dim=0).sum()
        norms.append(torch.autograd.grad(loss, weight)[0].abs().sum())
    scores = GradNorm(temperature=temperature).score(real.test, {})[:50]
    torch.testing.assert_close(scores, -torch.stack(norms).double(), rtol=1e-5, atol=1e-5)


def test_a_uniform_softmax_has_no_gradient():
    given = Features(logits=torch.full((1, 4), 3.0), penultimate=torch.rand(1, 5), y=torch.zeros(1, dtype=torch.int64))
    assert GradNorm().score(given, {}).abs().item() < 1e-12


def test_known_images_have_the_larger_gradient(real):
    # A half of a digit's contrast, and so of its features' length, looks less known.
    weaker = real.but(real.test, real.test.penultimate / 4)
    assert (GradNorm().score(weaker, {}) > GradNorm().score(real.test, {})).all()
