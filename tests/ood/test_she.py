import warnings

import pytest
import torch

from holdfast.models import Features
from holdfast.ood import SHE


@pytest.fixture(scope="module")
def known():
    rng = torch.Generator().manual_seed(0)
    logits, y = torch.randn(200, 4, generator=rng), torch.randint(4, (200,), generator=rng)
    return Features(logits=logits, penultimate=torch.randn(200, 6, generator=rng).relu(), y=y)


def test_the_score_is_minus_the_inner_product_with_the_mean_of_the_rightly_classified(known):
    scores = SHE().score(known, SHE().fit_features(known, None))
    for i in range(0, 200, 17):
        predicted = int(known.logits[i].argmax())
        members = [j for j in range(200) if known.y[j] == predicted and known.logits[j].argmax() == predicted]
        pattern = sum(known.penultimate[j].double() for j in members) / len(members)
        assert scores[i].item() == pytest.approx(-float(known.penultimate[i].double() @ pattern), rel=1e-9)


def test_the_score_scales_with_the_feature(known):
    state = SHE().fit_features(known, None)
    longer = Features(logits=known.logits, penultimate=3 * known.penultimate, y=known.y)
    torch.testing.assert_close(SHE().score(longer, state), 3 * SHE().score(known, state), rtol=1e-6, atol=1e-6)


def test_a_class_that_is_never_classified_rightly_stores_all_its_images_and_says_so(known):
    logits = known.logits.clone()
    logits[known.y == 2, 2] = -100
    with pytest.warns(UserWarning, match="no training image of class 2 is classified rightly"):
        state = SHE().fit_features(Features(logits=logits, penultimate=known.penultimate, y=known.y), None)
    torch.testing.assert_close(state["patterns"][2], known.penultimate[known.y == 2].double().mean(0))


def test_a_class_without_images_stores_nothing(known):
    y = torch.zeros_like(known.y)
    logits = known.logits.clone()
    logits[:100, 0] = 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = SHE().fit_features(Features(logits=logits, penultimate=known.penultimate, y=y), None)
    assert not state["patterns"][1:].any()
    assert torch.isfinite(SHE().score(known, state)).all()
