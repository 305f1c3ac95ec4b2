import numpy as np
import pytest
import torch
from patterns_task import TINY, Linear
from torch import nn

from holdfast.audit import audit


def finding(model, data, run, check):
    return audit(model, data, profile=TINY, run=run, only=[check]).finding(check)


def value(found, name):
    return next(m.value for m in found.metrics if m.name == name)


class Scaled(nn.Module):
    """A model made for pixels in another range."""

    def __init__(self, undo):
        super().__init__()
        self.model, self.undo = Linear(), undo

    def forward(self, x):
        return self.model(self.undo(x))


@pytest.mark.parametrize(
    ("undo", "expected"),
    [
        (lambda x: (x / 255).clamp(0, 1), "[0, 255]"),
        (lambda x: ((x + 1) / 2).clamp(0.5, 1) * 2 - 1, None),
        (lambda x: x, None),
    ],
)
def test_a_model_made_for_bytes_is_found_out(data, run, undo, expected):
    found = finding(Scaled(undo), data, run, "input-range")
    if expected == "[0, 255]":
        # Divided by 255 all images look nearly black to it.
        assert found.verdict == "fail"
        assert "[0, 255]" in found.actions[0].text
    elif undo(torch.tensor(0.3)) == 0.3:
        assert found.verdict == "pass"


def test_a_softmax_at_the_end_is_found_out_and_does_not_distort_the_confidence(data, run):
    soft = nn.Sequential(Linear(), nn.Softmax(1))
    assert finding(soft, data, run, "output-kind").verdict == "attention"
    assert finding(Linear(), data, run, "output-kind").verdict == "pass"
    for name in ("ece", "nll", "brier"):
        expected = value(finding(Linear(), data, run, "calibration"), name)
        assert value(finding(soft, data, run, "calibration"), name) == pytest.approx(expected, abs=1e-4)


class MixesTheBatch(Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Random(Linear):
    def forward(self, x):
        return super().forward(x) + 3 * torch.randn(len(x), 1) * torch.tensor([1.0, 0, 0, 0])


@pytest.mark.parametrize("kind", [MixesTheBatch, Random])
def test_answers_that_depend_on_neighbours_or_chance_fail(data, run, kind):
    found = finding(kind(), data, run, "determinism")
    assert found.verdict == "fail"
    assert value(found, "label-flips") > 0


def test_a_model_that_mixes_the_batch_is_audited_as_far_as_it_goes(data, run):
    result = audit(MixesTheBatch(), data, profile=TINY, run=run)
    assert result.verdict("sanity") == "fail"
    assert "depends on the other images" in result.finding("evasion").reason
    assert result.finding("evasion").verdict == "not assessed"
    assert result.finding("accuracy").metrics


def test_a_random_models_audit_is_repeatable_all_the_same(data, run):
    torch.default_generator.manual_seed(1)
    first = audit(Random(), data, profile=TINY, run=run, only=["accuracy", "determinism"])
    torch.default_generator.manual_seed(2)
    assert (
        audit(Random(), data, profile=TINY, run=run, only=["accuracy", "determinism"]).fingerprint == first.fingerprint
    )


def test_the_global_generator_is_left_alone(data, run):
    model = Random()
    before = torch.random.get_rng_state()
    audit(model, data, profile=TINY, run=run, only=["sanity"])
    assert torch.equal(torch.random.get_rng_state(), before)


class Learns(Linear):
    """Counts what it sees, even in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("maps", torch.zeros(1, 1, 8, 8))

    def forward(self, x):
        self.seen += len(x)
        self.maps += x.mean(0, keepdim=True)
        return super().forward(x)


def test_a_model_that_evaluation_changes_fails(data, run):
    found = finding(Learns(), data, run, "evaluation-mode")
    assert found.verdict == "fail"
    assert value(found, "changed-tensors") == 2
    assert [row[0] for row in found.figures[0].rows] == ["seen", "maps"]


def test_being_handed_over_in_training_mode_is_said(data, run):
    assert value(finding(Linear().train(), data, run, "evaluation-mode"), "came-in-training-mode") == 1
    assert value(finding(Linear().eval(), data, run, "evaluation-mode"), "came-in-training-mode") == 0


class RefusesNaN(Linear):
    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not a number\nand more")
        return super().forward(x)


class SwallowsNaN(Linear):
    def forward(self, x):
        return super().forward(torch.nan_to_num(x, nan=0.5, posinf=1.0))


class DividesByContrast(Linear):
    def forward(self, x):
        return super().forward(x) / (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None]


def test_refusing_nan_is_as_good_as_passing_it_on(data, run):
    for model in (Linear(), RefusesNaN()):
        assert finding(model, data, run, "extreme-inputs").verdict == "pass"
    responses = [row[2] for row in finding(RefusesNaN(), data, run, "extreme-inputs").figures[0].rows]
    assert "refused (ValueError: not a number)" in responses


def test_answering_nan_as_if_nothing_were_wrong_needs_attention(data, run):
    found = finding(SwallowsNaN(), data, run, "extreme-inputs")
    assert found.verdict == "attention"
    assert value(found, "silent-nan") == 3


def test_constant_images_that_break_the_model_fail(data, run):
    found = finding(DividesByContrast(), data, run, "extreme-inputs")
    assert found.verdict == "fail"
    assert value(found, "non-finite-valid") == 3  # black, white, grey


class Masked(Linear):
    """Robust to look at: its gradients are cut, its decisions are those of a linear model."""

    def forward(self, x):
        return super().forward(x.detach()) + 0 * x.sum((1, 2, 3))[:, None]


def test_masked_gradients_fail_and_cast_doubt_on_the_robust_accuracy(data, run):
    weak = {"threat": {"eps": 0.03}}
    result = audit(Masked(), data, profile=TINY, policy=weak, run=run, only=["gradient-masking", "evasion"])
    masking, evasion = result.finding("gradient-masking"), result.finding("evasion")
    assert masking.verdict == "fail"
    assert masking.actions[0].method == "square"
    assert evasion.verdict != "pass"
    assert evasion.reason.startswith("Gradients seem to be masked (")
    honest = audit(Linear(), data, profile=TINY, policy=weak, run=run, only=["gradient-masking", "evasion"])
    assert honest.finding("gradient-masking").verdict == "pass"
    assert "masked" not in honest.finding("evasion").reason


def test_test_images_that_were_trained_on_are_found(data, run):
    assert finding(Linear(), data, run, "leakage").verdict == "pass"
    copied = data.train.but(x=torch.cat([data.test.x[3:7], data.train.x[4:]]))
    result = audit(Linear(), data.but(train=copied), profile=TINY, run=run, only=["leakage"])
    assert result.finding("leakage").verdict == "fail"
    assert value(result.finding("leakage"), "exact-duplicates") == 4 / 160
    assert np.flatnonzero(result.samples["leakage.in-train"].to_pylist()).tolist() == [3, 4, 5, 6]
    assert finding(Linear(), data.but(train=None), run, "leakage").verdict == "not assessed"
