import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.data import Images, load_data, to_float
from holdfast.errors import UserError
from holdfast.evasion.balls import distance
from holdfast.evasion.layer_errors import MEASURES, layer_errors, most_vulnerable, moved
from holdfast.evasion.lsa import LSA, _noisy
from holdfast.models import Queryable, load_model, tap, weights_hash
from holdfast.run import Run

QUICK = LSA(attacks=("i-fgsm(random_start=true, steps=3, eps=0.1)", "gaussian", "salt-and-pepper", "uniform"))


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


@pytest.fixture(scope="module")
def images():
    return load_data("digits").test.select(slice(0, 40))


def pair(rows=6):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, 2, 2, generator=rng), torch.randn(rows, 3, 2, 2, generator=rng)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_outputs_have_not_moved_not_even_dead_ones(measure):
    a, _ = pair()
    for output in (a, torch.zeros_like(a)):
        assert moved(output, output.clone(), measure) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_scaling_a_layer_changes_nothing(measure):
    a, b = pair()
    assert moved(100 * a, 100 * b, measure) == pytest.approx(moved(a, b, measure).item(), rel=1e-5)


def test_the_measures_are_the_formulas():
    a, b = pair()
    assert moved(a, b) == pytest.approx(math.sqrt(float(((a - b) ** 2).sum())) / math.sqrt(float((a**2).sum())))
    each = [float((p - q).norm() / p.norm()) for p, q in zip(a, b, strict=True)]
    assert moved(a, b, "per-sample") == pytest.approx(sum(each) / 6)
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
    assert moved(a, b, "cosine") == pytest.approx(1 - cosine.item(), rel=1e-5)


def test_errors_are_those_of_the_whole_set_whatever_the_batch_size(model, images):
    x = to_float(images.x)
    other = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    names = ["features.2", "features.6", "features.10"]
    outputs = []
    for version in (x, other):
        with torch.no_grad(), tap(model, names) as seen:
            model.eval()(version)
        outputs.append(dict(seen))
    for size in (64, 7):
        [found] = layer_errors(model, x, {"noise": other}, run=Run(batch_size=size))
        assert list(found.errors["relative"]) == names  # in the order of depth
        for measure in MEASURES:
            for name in names:
                expected = moved(outputs[0][name], outputs[1][name], measure).item()
                assert found.errors[measure][name] == pytest.approx(expected, rel=1e-4), (measure, name)
        assert found.l2 == pytest.approx(float(distance(other, x, "l2").mean()), rel=1e-5)
    [same] = layer_errors(model, x, {"same": x.clone()}, run=Run())
    assert same.changed == 0
    assert all(value == 0 for errors in same.errors.values() for value in errors.values())


def test_layers_above_the_mean_are_most_vulnerable_in_order_of_depth():
    errors = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.3}
    assert most_vulnerable(errors) == ("a", "c")
    assert most_vulnerable(errors, spread=1) == ("c",)
    assert most_vulnerable(errors, spread=5) == ("c",)  # never none
    assert most_vulnerable(errors, top=3) == ("a", "c", "d")
    assert most_vulnerable({"only": 0.2}) == ("only",)


@pytest.mark.parametrize("kind", ["gaussian", "salt-and-pepper", "uniform"])
def test_noise_has_the_norm_asked_for_and_is_the_image_s_own(images, kind):
    x = to_float(images.x)
    norm = torch.linspace(0, 1.5, len(x))
    noisy = _noisy(kind, x, norm, 7)
    torch.testing.assert_close(distance(noisy, x, "l2"), norm, atol=2e-5, rtol=1e-5)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert torch.equal(_noisy(kind, x[10:20], norm[10:20], 7), noisy[10:20])
    assert not torch.equal(_noisy(kind, x, norm, 8), noisy)


def test_salt_and_pepper_touches_few_values_and_noise_all():
    x, norm = torch.full((4, 1, 8, 8), 0.5), torch.full((4,), 1.0)
    touched = {k: (_noisy(k, x, norm, 1) != x).float().mean() for k in ("salt-and-pepper", "gaussian", "uniform")}
    assert touched["salt-and-pepper"] <= 5 / 64  # four values at distance 0.5 have norm 1
    assert min(touched["gaussian"], touched["uniform"]) == 1


def test_an_attack_moves_every_layer_of_a_trained_network_more_than_noise_of_its_norm(model, images):
    report = QUICK(model, images, run=Run())
    attack, *noises = report.found
    assert attack.changed > 0.2 > max(n.changed for n in noises)
    for noise in noises:
        assert noise.l2 == pytest.approx(attack.l2, rel=1e-3)
        for layer, error in attack.errors["relative"].items():
            assert error > noise.errors["relative"][layer]
    assert report.vulnerable == most_vulnerable(attack.errors["relative"])
    assert "moves 3 of 3 layers more than noise" in report.sentence


def test_labels_are_not_read_so_that_wrong_images_are_perturbed_too(model, images):
    wrong = images.but(y=(images.y + 1) % 10)
    assert QUICK(model, wrong, run=Run()).to_json() == QUICK(model, images, run=Run()).to_json()


def test_the_model_is_left_as_it_was(images):
    model = load_model("zoo:digits-convnet").train()
    model.features[2].eval()
    before, modes = weights_hash(model), [m.training for m in model.modules()]
    QUICK(model, images, run=Run())
    assert weights_hash(model) == before
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_report_is_plain_and_says_what_it_ranks_by(model, images):
    report = LSA(attacks=QUICK.attacks[:2], measure="cosine", outputs="weights", top=2)(model, images, run=Run())
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    layers = [row["layer"] for row in found["perturbations"][0]["layers"]]
    assert layers == ["features.0", "features.4", "features.8", "fc"] == [row["layer"] for row in report.listing()]
    assert len(found["vulnerable"]) == 2
    rows = {row["layer"]: row["cosine"] for row in found["perturbations"][0]["layers"]}
    assert set(found["vulnerable"]) == set(sorted(rows, key=rows.get)[-2:])
    assert report.listing()[0].keys() == {"layer", "i-fgsm", "gaussian", "vulnerable"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lsa(attacks=[gaussian, pgd])", "the first of them an attack"),
        ("lsa(attacks=[])", "the first of them an attack"),
        ("lsa(attacks=[pgd, pgd])", "must be different"),
        ("lsa(attacks=[pgd, gausian])", "gausian"),
        ("lsa(attacks=['pgd(eps=8)'])", "Did you mean 8/255"),
        ("lsa(top=0)", "top must be a whole number of at least 1"),
        ("lsa(outputs=convs)", "outputs must be one of"),
    ],
)
def test_mistakes_in_the_fields_are_said(spec, message):
    with pytest.raises(UserError, match=message):
        catalog.build(spec)


def test_a_model_without_activations_is_refused(images):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="none of the model's activations can be seen"):
        QUICK(linear, images, run=Run())
    assert LSA(attacks=("fgsm",), outputs="weights")(linear, images, run=Run()).vulnerable == ("1",)


def test_a_model_that_only_answers_is_refused_before_it_is_asked(images):
    def remote(x):
        raise AssertionError("asked")

    with pytest.raises(UserError, match="lsa: it looks inside the model, but this one only answers"):
        LSA()(Queryable(remote, num_classes=10), images, run=Run())


def test_no_images_are_refused(model, images):
    with pytest.raises(UserError, match="there are no images"):
        QUICK(model, images.select(slice(0, 0)), run=Run())


def test_outputs_that_belong_to_no_image_are_left_out():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.head = nn.Parameter(torch.ones(5)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.tanh(x.flatten(1))) * torch.sigmoid(self.gate).mean()

    x = torch.rand(4, 1, 2, 2)
    images = Images(x=x, y=torch.zeros(4, dtype=torch.int64), classes=("a", "b"))
    report = LSA(attacks=("fgsm",))(Gated(), images, run=Run(batch_size=4))
    assert list(report.errors("fgsm")) == ["tanh"]
