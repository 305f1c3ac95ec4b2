import numpy as np
import pytest
import torch

from holdfast.errors import UserError
from holdfast.ood import VRA, Energy, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([VRA(**fields)], real.train, real.head).values()
    return detector


def test_the_score_is_the_energy_of_features_within_their_units_percentiles(real):
    low, high = np.quantile(real.train.penultimate.numpy(), [0.1, 0.8], axis=0)
    limited = torch.from_numpy(real.test.penultimate.numpy().clip(low, high)).double()
    logits = limited @ real.head.weight.detach().double().T + real.head.bias.detach().double()
    assert torch.allclose(fitted(real, low=10, high=80).score(real.test), -logits.logsumexp(1), atol=1e-4)


def test_the_whole_range_is_the_energy_of_what_it_learnt_from(real):
    scores = fitted(real, low=0, high=100).score(real.train)
    assert torch.allclose(scores, Energy().score(real.train, {}), atol=1e-4)


def test_low_must_be_under_high():
    with pytest.raises(UserError, match="vra: low must be less than high, got 60 and 50"):
        VRA(low=60, high=50)
