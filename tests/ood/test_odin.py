import pytest
import torch
import torch.nn.functional as F

from holdfast.data import load_data
from holdfast.models import frozen, load_model
from holdfast.ood import MSP, ODIN, fit_detectors, observe, score_detectors
from holdfast.run import Run


@pytest.fixture(scope="module")
def images():
    return load_data("digits").test.select(slice(0, 60))


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


def score(method, model, images, **run):
    run = Run(**run)
    (scores,) = score_detectors(fit_detectors([method], model, None, run=run), model, images, run=run).values()
    return scores


def test_without_a_step_and_at_temperature_one_it_is_the_softmax_score(model, images):
    scores = score(ODIN(eps=0, temperature=1), model, images)
    assert torch.allclose(scores, score(MSP(), model, images), atol=1e-6)


@pytest.mark.parametrize(("temperature", "eps"), [(1000, 0.0014), (2, 0.05)])
def test_the_score_is_that_of_the_published_procedure(model, images, temperature, eps):
    x, _ = next(images.batches(60))
    expected = []
    with frozen(model):
        for image in x.split(1):
            image = image.clone().requires_grad_()
            logits = model(image) / temperature
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), image)
            with torch.no_grad():
                moved = model(image - eps * gradient.sign())
            expected.append((moved.double() / temperature).softmax(1).amax())
    confidence = torch.sigmoid(-score(ODIN(temperature=temperature, eps=eps), model, images))
    # Digits hold pixels that change next to nothing; the sign of what they do is left to rounding.
    torch.testing.assert_close(confidence, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_the_step_raises_confidence_and_is_no_longer_than_eps(model, images, monkeypatch):
    still, moved = (score(ODIN(temperature=1, eps=eps), model, images) for eps in (0, 0.01))
    assert (moved < still).all()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    try:
        score(ODIN(eps=0.01), model, images, batch_size=60)
    finally:
        model._forward_pre_hooks.clear()
    x, _ = next(images.batches(60))
    lengths = [float((images - x).abs().amax()) for images in seen if images.shape == x.shape]
    assert max(lengths) == pytest.approx(0.01, abs=1e-6)


def test_confidence_that_rounds_to_one_does_not_stop_the_step(model, images):
    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return 100 * self.inner(x)

    still, moved = (score(ODIN(temperature=1, eps=eps), Sure(), images) for eps in (0, 0.01))
    assert (moved < still).all()


def test_other_detectors_see_the_images_as_they_are(model, images):
    run = Run(batch_size=20)
    together = fit_detectors(["odin", "energy", "gradnorm"], model, None, run=run)
    alone = fit_detectors(["energy", "gradnorm"], model, None, run=run)
    features, plain = observe(together, model, images, run=run), observe(alone, model, images, run=run)
    assert torch.equal(features.penultimate, plain.penultimate)
    assert torch.equal(features.logits, plain.logits)
    assert features.observed["odin"].shape == (60, 10)


def test_scores_at_a_high_temperature_do_not_tie(model, images):
    assert len(score(ODIN(temperature=1e5), model, images).unique()) > 55
