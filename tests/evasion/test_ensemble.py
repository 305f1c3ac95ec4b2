import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.evasion import MIFGSM, PGD, SVRE, Ensemble
from holdfast.evasion.ensemble import fused_loss
from holdfast.run import Run


def member(seed, classes=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64))
    return nn.Sequential(Double(), model)


class Double(nn.Module):
    def forward(self, x):
        return x.double()


X = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MEMBERS = [member(s) for s in range(3)]


def own(fusion, weights):
    """What the three fusions are, written out."""
    logits = torch.stack([m(X) for m in MEMBERS])
    w = torch.tensor(weights, dtype=torch.float64).view(3, 1, 1) / sum(weights)
    y = torch.arange(10) % 4
    if fusion == "logits":
        return F.cross_entropy((w * logits).sum(0), y, reduction="none")
    if fusion == "probabilities":
        return F.nll_loss((w * logits.softmax(2)).sum(0).log(), y, reduction="none")
    return sum(w[i].squeeze() * F.cross_entropy(z, y, reduction="none") for i, z in enumerate(logits))


@pytest.mark.parametrize("fusion", ["logits", "probabilities", "loss"])
@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 1, 0]])
def test_the_loss_is_that_of_the_mean_logits_the_mean_probabilities_or_the_mean_loss(fusion, weights):
    ensemble = Ensemble(MEMBERS, fusion, weights)
    y = torch.arange(10) % 4
    loss = fused_loss(ensemble, "any", "ce")
    torch.testing.assert_close(loss(ensemble(X).double(), y, y), own(fusion, weights), atol=1e-5, rtol=1e-5)


def test_fusing_losses_is_not_fusing_logits():
    y = MEMBERS[0](X).argmax(1)
    points = [MIFGSM(eps=0.2)(Ensemble(MEMBERS, fusion), X, y, run=Run()) for fusion in ("logits", "loss")]
    assert not torch.equal(*points)


def test_one_member_is_the_member_itself():
    y = MEMBERS[1](X).argmax(1)
    for attack in (MIFGSM(eps=0.1), PGD(eps=0.1)):
        alone, ensemble = (attack(m, X, y, run=Run()) for m in (MEMBERS[1], Ensemble([MEMBERS[1]])))
        torch.testing.assert_close(alone, ensemble)


def test_members_of_different_tasks_are_refused():
    with pytest.raises(UserError, match="ensemble: the models must have the same number of classes, got 4, 5"):
        Ensemble([member(0), member(1, classes=5)])(X)


@pytest.mark.parametrize("bad", [[1], [0, 0, 0], [1, -1, 1], [float("nan"), 1, 1]])
def test_weights_that_do_not_fit_are_refused(bad):
    with pytest.raises(UserError, match="ensemble: 3 models need as many weights"):
        Ensemble(MEMBERS, weights=bad)


def test_an_empty_ensemble_and_an_unknown_fusion_are_refused():
    with pytest.raises(UserError, match="at least one model"):
        Ensemble([])
    with pytest.raises(UserError, match="fusion must be one of"):
        Ensemble(MEMBERS, "votes")


def plain_svre(models, x0, y, eps, steps, order):
    """Algorithm 1 of the paper, with logits fused."""

    def slope(model, x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        return g

    def unit(g):
        return g / g.abs().mean((1, 2, 3), keepdim=True)

    def move(x, g):
        return (x + eps / steps * g.sign()).clamp(x0 - eps, x0 + eps).clamp(0, 1)

    x, outer = x0, 0
    for _ in range(steps):
        whole = slope(lambda z: sum(m(z) for m in models) / len(models), x)
        at, inner = x, 0
        for _ in range(4 * len(models)):
            model = models[int(torch.randint(len(models), (), generator=order))]
            inner = inner + unit(slope(model, at) - (slope(model, x) - whole))
            at = move(at, inner)
        outer = outer + unit(inner)
        x = move(x, outer)
    return x


def test_svre_is_the_papers_algorithm():
    y = Ensemble(MEMBERS)(X).argmax(1)
    outcome = SVRE(eps=0.1, steps=3).run(Ensemble(MEMBERS), X, y, run=Run())
    order = torch.Generator().manual_seed(Run().seed_for("svre"))
    expected = plain_svre(MEMBERS, X, y, 0.1, 3, order)
    assert ((outcome.x_adv - expected).abs() < 1e-6).double().mean() > 0.99
    assert outcome.gradients.unique().tolist() == [3 * (1 + 2 * 12)]
