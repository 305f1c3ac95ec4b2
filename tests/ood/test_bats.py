import torch

from holdfast.ood import BATS, Energy, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([BATS(**fields)], real.train, real.head).values()
    return detector


def test_the_score_is_the_energy_of_features_within_so_many_deviations(real):
    h = real.train.penultimate.double().numpy()
    low, high = h.mean(0) - 0.5 * h.std(0), h.mean(0) + 0.5 * h.std(0)
    typical = torch.from_numpy(real.test.penultimate.double().numpy().clip(low, high))
    logits = typical @ real.head.weight.detach().double().T + real.head.bias.detach().double()
    assert torch.allclose(fitted(real, width=0.5).score(real.test), -logits.logsumexp(1), atol=1e-4)


def test_with_all_features_typical_it_is_the_energy(real):
    assert torch.allclose(fitted(real, width=1e6).score(real.test), Energy().score(real.test, {}), atol=1e-4)


def test_a_unit_that_never_varied_is_held_where_it_was(real):
    train, test = real.train.penultimate.clone(), real.test.penultimate.clone()
    train[:, 5] = 0.3
    (detector,) = fit_on_features([BATS()], real.but(real.train, train), real.head).values()
    scores = []
    for value in (0.0, 0.3, 9.0):
        test[:, 5] = value
        scores.append(detector.score(real.but(real.test, test)))
    assert torch.allclose(scores[0], scores[1], atol=1e-5)
    assert torch.allclose(scores[2], scores[1], atol=1e-5)
