import numpy as np
import torch

from holdfast.ood import DICE, Energy, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([DICE(**fields)], real.train, real.head).values()
    return detector


def test_with_no_weight_dropped_it_is_the_energy(real):
    assert torch.allclose(fitted(real, percentile=0).score(real.test), Energy().score(real.test, {}), atol=1e-4)


def test_the_weights_that_contribute_most_on_average_stay(real):
    weight, mean = real.head.weight.detach().numpy(), real.train.penultimate.double().mean(0).numpy()
    kept = fitted(real, percentile=75).state["weight"].numpy() != 0
    contribution = weight * mean[None]
    assert kept.sum() == round(0.25 * weight.size)
    assert contribution[kept].min() > contribution[~kept].max()
    assert np.array_equal(fitted(real, percentile=75).state["weight"].numpy()[kept], weight[kept])


def test_the_score_is_the_energy_of_the_summed_votes(real):
    detector = fitted(real)
    votes = real.test.penultimate.double()[:, None, :] * detector.state["weight"].double()
    logits = votes.sum(2) + real.head.bias.detach().double()
    assert torch.allclose(detector.score(real.test), -logits.exp().sum(1).log(), atol=1e-4)


def test_units_that_never_fire_lose_their_weights(real):
    dead = real.train.penultimate.clone()
    dead[:, 3] = 0
    (detector,) = fit_on_features([DICE()], real.but(real.train, dead), real.head).values()
    assert (detector.state["weight"][:, 3] == 0).all()
    assert (real.head.weight[:, 3] != 0).any()


def test_features_that_are_all_zero_give_the_energy_of_the_bias(real):
    nothing = real.but(real.train, torch.zeros_like(real.train.penultimate))
    (detector,) = fit_on_features([DICE()], nothing, real.head).values()
    assert torch.allclose(detector.score(real.test), -real.head.bias.detach().double().logsumexp(0).expand(200))
