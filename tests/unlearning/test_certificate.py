"""The certificate of evidence: what it measures and what it says."""

import dataclasses
import json

import pytest
import torch
from scipy.stats import ks_2samp

from holdfast.errors import UserError
from holdfast.models import build_model, predict, weights_hash
from holdfast.report import write_certificate
from holdfast.run import Run
from holdfast.training import SGD, fit
from holdfast.unlearning import Retrain, average_gap, certify_unlearning
from holdfast.unlearning.certificate import matched_rows

WORDS = {"request": "class=3", "method": "retrain", "seconds": 1.0}


@pytest.fixture(scope="module")
def overfit(digits):
    """Trained on 300 images of which a third is mislabelled, until it knows them by heart; and that set."""
    images = digits.train.select(slice(0, 300))
    y = images.y.clone()
    y[:100] = (y[:100] + 1 + torch.arange(100) % 9) % 10
    images = images.but(y=y)
    model = build_model("mlp", num_classes=10, image_shape=digits.shape, run=Run())
    return fit(model, images, epochs=60, optimizer=SGD(lr=0.1), run=Run()).model, images


@pytest.fixture(scope="module")
def retrained(overfit):
    model, images = overfit
    method = Retrain(epochs=60, optimizer=SGD(lr=0.1), crop=None, flip=None)
    return method(model, images.select(slice(0, 100)), images.select(slice(100, 300)), run=Run(seed=1))


@pytest.fixture(scope="module")
def mask():
    return torch.arange(300) < 100


def test_a_model_that_forgot_nothing_shows_its_traces(overfit, mask, digits):
    model, images = overfit
    c = certify_unlearning(model, model, images, mask, digits.test, **WORDS, run=Run())
    assert c.before == c.after
    assert c.after.ua < 0.05
    assert c.losses_after.membership.auc_interval[0] > 0.5
    assert c.traces
    assert c.original == c.unlearned == weights_hash(model)
    assert c.gap is None
    assert "No retrained model" in c.limitations[1]


def test_a_known_set_is_told_from_unseen_images(overfit, digits):
    model, images = overfit
    known = torch.arange(300) >= 200  # rightly labelled, and fitted
    c = certify_unlearning(model, model, images, known, digits.test, **WORDS, run=Run())
    assert c.losses_after.p < 0.05
    assert c.losses_after.membership.auc > 0.6
    assert "lower, as if the model still knew them" in c.traces[0]
    assert "AUC of 0." in c.traces[1]
    assert "Traces were found" in c.sentence


def test_the_test_of_losses_is_that_of_scipy_on_images_of_the_same_classes(overfit, mask, digits):
    model, images = overfit
    c = certify_unlearning(model, model, images, mask, digits.test, **WORDS, run=Run())
    rows = matched_rows(images.y[mask], digits.test.y, run=Run())
    losses = [
        torch.nn.functional.cross_entropy(predict(model, part, run=Run()).double(), part.y, reduction="none").numpy()
        for part in (images.select(mask), digits.test.select(rows))
    ]
    expected = ks_2samp(*losses)
    assert c.losses_after.statistic == pytest.approx(expected.statistic)
    assert c.losses_after.p == pytest.approx(expected.pvalue)
    assert c.losses_after.forgotten[2] == pytest.approx(float(torch.as_tensor(losses[0]).quantile(0.5)))
    assert c.losses_after.forgotten_below == tuple(sorted(c.losses_after.forgotten_below))


def test_with_a_retrained_model_the_gap_is_told(overfit, retrained, mask, digits):
    model, images = overfit
    c = certify_unlearning(
        model, retrained, images, mask, digits.test, **WORDS, reference=retrained, reference_from="here", run=Run()
    )
    assert c.gap == 0
    assert c.js == pytest.approx(0, abs=1e-9)
    assert c.gap_before == pytest.approx(average_gap(c.before, c.reference))
    assert c.gap_before > 20
    assert f"({c.gap_before:.1f} before)" in c.sentence
    assert not any("No retrained" in text for text in c.limitations)


def test_of_a_forgotten_class_the_test_accuracy_is_that_of_the_others(original, digits):
    mask = digits.train.y == 3
    c = certify_unlearning(original, original, digits.train, mask, digits.test, **WORDS, run=Run())
    others = digits.test.select(digits.test.y != 3)
    right = predict(original, others, run=Run()).argmax(1) == others.y
    assert c.after.ta == pytest.approx(float(right.double().mean()))
    assert c.classes == {"3": int(mask.sum())}
    assert c.unseen == int((digits.test.y == 3).sum())


def test_unseen_images_have_the_mix_of_classes_asked_for():
    wanted = torch.tensor([0] * 10 + [1] * 20)
    available = torch.tensor([0] * 30 + [1] * 30 + [2] * 30)
    rows = matched_rows(wanted, available, run=Run())
    assert torch.bincount(available[rows], minlength=3).tolist() == [15, 30, 0]
    assert not len(matched_rows(torch.tensor([5]), available, run=Run()))
    assert len(rows.unique()) == len(rows)


def test_without_unseen_images_nothing_is_claimed(original, digits):
    mask = digits.train.y == 3
    test = digits.test.select(digits.test.y != 3)
    c = certify_unlearning(original, original, digits.train, mask, test, **WORDS, run=Run())
    assert c.losses_after is None
    assert c.traces == []
    assert "no unseen images" in c.sentence
    assert any("memory cannot be told" in text for text in c.limitations)


def test_it_is_plain_json(overfit, retrained, mask, digits):
    model, images = overfit
    c = certify_unlearning(model, retrained, images, mask, digits.test, **WORDS, reference=retrained, run=Run())
    value = json.loads(json.dumps(c.to_json(), allow_nan=False))
    assert value["gap"] == 0
    assert value["before"]["ua"] == c.before.ua
    assert value["losses_after"]["membership"]["auc"] == c.losses_after.membership.auc
    assert value["count"] == 100
    assert value["sentence"] == c.sentence


@pytest.mark.parametrize("everything", [True, False])
def test_nothing_and_everything_are_refused(everything, original, digits):
    mask = torch.full((len(digits.train),), everything)
    with pytest.raises(UserError, match="some kept"):
        certify_unlearning(original, original, digits.train, mask, digits.test, **WORDS, run=Run())


def test_the_page_holds_what_was_found_and_escapes_what_it_was_given(overfit, retrained, mask, digits, tmp_path):
    model, images = overfit
    c = certify_unlearning(
        model,
        retrained,
        images,
        mask,
        digits.test,
        **{**WORDS, "request": "<script>alert(1)</script>"},
        reference=retrained,
        reference_from="here",
        reference_seconds=4.0,
        run=Run(),
    )
    text = write_certificate(c, tmp_path).read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "25.0% of retraining" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    for fact in (c.original, c.unlearned, c.digest):
        assert fact in text
    bare = dataclasses.replace(c, reference=None, js=None, kl=None, losses_before=None, losses_after=None)
    assert "No retrained model" in write_certificate(bare, tmp_path / "bare.html").read_text()
