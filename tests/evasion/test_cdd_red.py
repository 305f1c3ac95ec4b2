import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import Images, load_data, to_float
from holdfast.errors import UserError
from holdfast.evasion import IFGSM, PGD, attacked_pairs, recovery
from holdfast.evasion.adaptive import informed
from holdfast.evasion.attacked_pairs import COLUMN, crop_and_pad, cut_mix
from holdfast.evasion.cdd_red import CDDRED, _Reversal, _Trainee, learn_denoiser, train_denoiser
from holdfast.evasion.guard import learned, save_guard
from holdfast.models import build_model, load_model, predict
from holdfast.run import Run
from holdfast.training import Step
from holdfast.training.loop import Loop

SMALL = {"depth": 3, "width": 8, "epochs": 2, "batch_size": 16, "lr": 1e-3, "attacks": ("fgsm(eps=0.15)",)}


def batch(n=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 9, 11, generator=rng)
    return x, (x + 0.1 * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def images(n=40):
    x, _ = batch(n)
    return Images(x=(255 * x).byte(), y=torch.arange(n) % 3, classes=("a", "b", "c"), name="noise")


def classifier(seed=0):
    return build_model("convnet(width=4)", num_classes=3, image_shape=(3, 9, 11), run=Run(seed=seed)).eval()


class Sensitive(nn.Module):
    """Its predictions change with every transform."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 297, generator=torch.Generator().manual_seed(5)))

    def forward(self, x):
        return 0.3 * (x - 0.5).flatten(1) @ self.weight.T


class Crooked(nn.Module):
    """Images to images: not the identity, and a fixed function of each image."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x + 0.02


# --- transforms -------------------------------------------------------------------------------------------------------


def test_crops_are_rectangles_of_every_size_kept_in_both_and_zero_elsewhere():
    ones = torch.ones(3000, 2, 20, 30)
    x, x_adv = crop_and_pad(ones, 2 * ones, torch.Generator().manual_seed(0))
    assert torch.equal(x_adv, 2 * x)
    kept = x[:, 0]
    rows, columns = kept.amax(2), kept.amax(1)
    assert torch.equal(kept, rows[:, :, None] * columns[:, None, :])  # a product of two stretches
    for stretch in (rows, columns):
        assert ((stretch[:, 1:] - stretch[:, :-1]).abs().sum(1) <= 2).all()
        assert (stretch.sum(1) >= 1).all()
        assert stretch.bool().any(0).all()  # every place is kept in some crop
    heights = rows.sum(1)
    assert heights.unique().tolist() == list(range(1, 21))
    # The size is uniform above a least one that is itself uniform, so large crops are commoner than small ones.
    assert (heights >= 10).double().mean() > 0.5 > (heights >= 18).double().mean()


def test_cut_mix_takes_the_same_box_of_the_same_other_pair_in_both():
    n = 400
    x = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 3, 16, 24).clone()
    before = x.clone()
    mixed, mixed_adv = cut_mix(x, -x, torch.Generator().manual_seed(0))
    assert torch.equal(x, before)  # not in place
    assert torch.equal(mixed_adv, -mixed)
    changed = mixed[:, 0] != x[:, 0]
    assert all(len(set(m[c].tolist())) <= 1 for m, c in zip(mixed[:, 0], changed, strict=True))
    rows, columns = changed.any(2), changed.any(1)
    assert torch.equal(changed, rows[:, :, None] & columns[:, None, :])
    shares = changed.double().mean((1, 2))
    assert shares.max() > 0.7
    assert 0.25 < shares.mean() < 0.42  # uniform would be 0.5, less what is cut off at the border
    assert len({tuple(m.flatten().tolist()) for m in changed}) > 0.5 * n  # a box for each pair, not for the batch


# --- the loss ---------------------------------------------------------------------------------------------------------


def by_hand(method, denoiser, f, x, x_adv, rng):
    """The loss of the paper, written out pair by pair."""
    copies = [(x, x_adv)]
    if method.copies > 0:
        copies.append(crop_and_pad(x, x_adv, rng))
    if method.copies > 1:
        copies.append(cut_mix(x, x_adv, rng))
    errors, benign, adversarial = [], [], []
    for a, b in copies:
        for i in range(len(x)):
            clean, attacked = a[i : i + 1], b[i : i + 1]
            x_hat = denoiser(attacked)
            errors.append((x_hat - clean).abs().mean())
            label, label_adv = f(clean).argmax(1), f(attacked).argmax(1)
            if label == f(x[i : i + 1]).argmax(1):
                benign.append(F.cross_entropy(f(x_hat), label))
            if label_adv == f(x_adv[i : i + 1]).argmax(1):
                adversarial.append(F.cross_entropy(f(attacked - x_hat + clean), label_adv))
    parts = [torch.stack(values).mean() for values in (errors, benign, adversarial)]
    counts = (len(benign), len(adversarial))
    return method.mae * parts[0] + method.gamma * parts[1] + method.lam * parts[2], counts


@pytest.mark.parametrize(
    "method",
    [
        CDDRED(gamma=0.3, lam=0.7),
        CDDRED(gamma=0.3, lam=0.7, copies=1),
        CDDRED(mae=0, lam=0, copies=0),
        CDDRED(gamma=0, lam=0),
    ],
    ids=["cdd-red", "one copy", "ds", "do"],
)
def test_the_loss_is_that_of_the_paper(method):
    x, x_adv = batch()
    denoiser, f = Crooked(0.7), Sensitive().double()
    step = Step(run=Run(), columns={COLUMN: x_adv - x})
    trainee = _Trainee(denoiser, f, method).double()
    got = _Reversal(method)(trainee, x.double(), torch.zeros(12, dtype=torch.int64), step)
    x_adv = (x.double() + (x_adv - x).double()).clamp(0, 1)
    wanted, counts = by_hand(method, denoiser, f, x.double(), x_adv, step.rng("cdd-red"))
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    if method.copies:
        total = 12 * (1 + method.copies)
        assert 12 < counts[0] < total  # some labels changed, else the mask is not tested
        assert 12 < counts[1] < total


def test_the_gradient_goes_to_the_denoiser_alone():
    x, x_adv = batch()
    denoiser, f = Crooked(0.7), classifier()
    trainee = _Trainee(denoiser, f, CDDRED()).train()
    assert denoiser.training
    assert not any(m.training for m in trainee.classifier.modules())
    loss = _Reversal(CDDRED())(trainee, x, torch.zeros(12).long(), Step(columns={COLUMN: x_adv - x}))
    loss.backward()
    assert denoiser.factor.grad
    assert all(p.grad is None for p in (*f.parameters(), *trainee.classifier.parameters()))
    assert all(p.requires_grad for p in f.parameters())


def test_without_weights_on_predictions_the_classifier_does_not_matter():
    pairs = attacked_pairs(images(), [classifier()], SMALL["attacks"], run=Run())
    plain = CDDRED(**SMALL, gamma=0, lam=0)
    a, b = (learn_denoiser(plain, pairs, classifier(seed), run=Run()).denoiser.state_dict() for seed in (1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    c = learn_denoiser(CDDRED(**SMALL), pairs, classifier(1), run=Run()).denoiser.state_dict()
    assert not all(torch.equal(a[name], c[name]) for name in a)


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_every_image_under_every_attack_on_every_victim():
    data, victims = images(10), [classifier(1), classifier(2)]
    attacks = ("fgsm", "i-fgsm(steps=2, random_start=true)")
    pairs = attacked_pairs(data, victims, attacks, run=Run())
    delta = pairs.columns[COLUMN]
    assert len(pairs) == 40
    assert torch.equal(pairs.x, data.x.repeat(4, 1, 1, 1))
    assert torch.equal(pairs.y, data.y.repeat(4))
    assert delta.float().abs().amax() == pytest.approx(8 / 255, rel=1e-3)
    x = to_float(data.x)
    for place, victim in ((0, victims[0]), (2, victims[1])):
        here = slice(10 * place, 10 * place + 10)
        x_adv = PGD(steps=1, random_start=False, eps=8 / 255)(victim, x, data.y, run=Run())
        assert torch.allclose(x + delta[here].float(), x_adv, atol=2e-5)


@pytest.mark.parametrize("what", ["victim", "attack"])
def test_pairs_need_victims_and_attacks(what):
    victims, attacks = ([], ["fgsm"]) if what == "victim" else ([classifier()], [])
    with pytest.raises(UserError, match=f"at least one {what} is needed"):
        attacked_pairs(images(), victims, attacks, run=Run())
    with pytest.raises(UserError, match="no images to attack"):
        attacked_pairs(images().select(slice(0, 0)), [classifier()], ["fgsm"], run=Run())


# --- what is measured -------------------------------------------------------------------------------------------------


def test_before_it_has_learned_the_guard_changes_nothing():
    model = classifier()
    x, x_adv = batch()
    guarded = CDDRED(depth=4, width=8).untrained(model)
    assert torch.equal(guarded(x), model(x))
    x_hat, delta = guarded.estimate(x_adv)
    assert torch.equal(x_hat, x_adv)
    assert not delta.any()
    found = recovery(guarded.denoiser, model, x, x_adv, run=Run(batch_size=5))
    assert found.rmse == found.rmse_before == pytest.approx(float((x - x_adv).square().mean().sqrt()), rel=1e-5)
    same = model(x).argmax(1) == model(x_adv).argmax(1)
    assert torch.equal(found.adversarial, same)
    assert torch.equal(found.benign, same)
    assert found.to_json()["angle"] is None


def test_a_perfect_recovery_scores_perfectly():
    x, x_adv = batch()

    class Oracle(nn.Module):
        def forward(self, z):
            return x[[int((z_i == x_adv).flatten(1).all(1).nonzero()) for z_i in z]]

    found = recovery(Oracle(), classifier(), x, x_adv, run=Run(batch_size=5))
    assert found.rmse == 0
    assert found.pa_benign == found.pa_adv == 1
    assert found.angle.max() < 0.1
    assert found.logit_angle.max() < 0.1


def test_angles_are_measured_between_the_perturbations():
    x = torch.zeros(1, 1, 1, 2)
    x_adv = torch.tensor([[[[1.0, 0.0]]]])

    class Turned(nn.Module):
        def forward(self, z):
            return z - torch.tensor([[[[1.0, math.sqrt(3)]]]])

    f = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(f[1].weight)
    found = recovery(Turned(), f, x, x_adv, run=Run())
    assert float(found.angle) == pytest.approx(60, abs=1e-3)
    assert float(found.logit_angle) == pytest.approx(60, abs=1e-3)
    assert found.rmse == pytest.approx(math.sqrt(3 / 2), rel=1e-5)
    assert not found.pa_adv


def test_images_and_copies_must_match():
    x, _ = batch()
    with pytest.raises(UserError, match="recovery: clean and attacked images"):
        recovery(nn.Identity(), classifier(), x, x[:3], run=Run())


# --- as a guard -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    model = load_model("zoo:digits-convnet")
    spec = {"depth": 4, "width": 16, "epochs": 8, "batch_size": 32, "lr": 1e-2}
    method = CDDRED(**spec, attacks=("i-fgsm(eps=0.2, random_start=true)",))
    weights = copy.deepcopy(model.state_dict())
    guarded = method.train(model, data.train.select(slice(0, 400)), run=Run())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    return data.test.select(slice(0, 200)), model, guarded


def test_it_recovers_images_predictions_and_perturbations(digits):
    test, model, guarded = digits
    x = to_float(test.x)
    x_adv = IFGSM(eps=0.2, random_start=True)(model, x, test.y, run=Run(seed=1))
    found = recovery(guarded.denoiser, model, x, x_adv, run=Run())
    untouched = recovery(nn.Identity(), model, x, x_adv, run=Run())
    assert found.rmse < 0.9 * found.rmse_before
    assert found.pa_benign > untouched.pa_benign + 0.3
    assert found.pa_adv > untouched.pa_adv + 0.2
    assert float(found.angle.nanmean()) < 60
    assert "attacked images" in found.sentence


def test_clean_images_keep_their_labels_and_whoever_knows_the_guard_gets_through(digits):
    test, model, guarded = digits
    assert (predict(guarded, test, run=Run()).argmax(1) == test.y).double().mean() > 0.9
    x, attack = to_float(test.x), PGD(eps=0.2, steps=10)
    assert guarded.adaptive() is guarded
    knowing = attack.run(informed(guarded), x, test.y, run=Run()).robust_accuracy
    x_adv = attack(model, x, test.y, run=Run())
    unaware = float((predict(guarded, test.but(x=x_adv), run=Run()).argmax(1) == test.y).double().mean())
    assert knowing < unaware - 0.2


def test_what_was_learned_is_kept_and_read_back(digits, tmp_path):
    test, model, guarded = digits
    path = tmp_path / "guard.safetensors"
    save_guard(guarded, path)
    again = CDDRED(depth=4, width=16, weights=str(path))(model)
    x = to_float(test.x[:20])
    for name, tensor in learned(guarded).items():
        assert torch.equal(learned(again)[name], tensor), name
    with torch.no_grad():  # memory layouts differ, and with them the last bits
        assert torch.allclose(again(x), guarded(x), atol=1e-4)
        assert torch.allclose(again.estimate(x)[0], guarded.estimate(x)[0], atol=1e-5)
    with pytest.raises(UserError, match="this is not what cdd-red"):
        CDDRED(depth=5, width=16, weights=str(path))(model)


def test_training_resumes_where_it_stopped(tmp_path, monkeypatch):
    data, model, method = images(), classifier(), CDDRED(**SMALL)
    whole = method.train(model, data, run=Run(out=tmp_path / "whole"))
    seen, end_epoch = [], Loop._end_epoch

    def stop_after_the_first(self, *arguments):
        end_epoch(self, *arguments)
        seen.append(self.state.epoch)
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_end_epoch", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        method.train(model, data, run=Run(out=tmp_path / "parts"))
    parts = method.train(model, data, run=Run(out=tmp_path / "parts"))
    assert seen == [1, 2]
    for name, tensor in learned(whole).items():
        assert torch.equal(tensor, learned(parts)[name]), name


def test_victims_are_attacked_beside_the_model():
    data, model, other = images(), classifier(1), classifier(2)
    alone, both = (train_denoiser(CDDRED(**SMALL), data, v, model, run=Run()) for v in ([model], [model, other]))
    assert not torch.equal(learned(alone)["denoiser.net.0.weight"], learned(both)["denoiser.net.0.weight"])
    named = CDDRED(**{**SMALL, "epochs": 1}, victims=("zoo:digits-convnet",))
    digits = load_data("digits").train.select(slice(0, 20))
    assert learned(named.train(load_model("zoo:digits-convnet"), digits, run=Run()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attacks": ()}, "attacks must name at least one attack"),
        ({"attacks": ("fgms",)}, "fgsm"),
        ({"mae": 0, "gamma": 0, "lam": 0}, "one of mae, gamma and lam must be above 0"),
        ({"copies": 3}, "copies must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        CDDRED(**fields)


def test_what_does_not_fit_is_said():
    method = CDDRED(**SMALL)
    grey = images().but(x=images().x[:, :1])
    with pytest.raises(UserError, match="takes 3 channels, but noise has 1"):
        method.train(classifier(), grey, run=Run())
    with pytest.raises(UserError, match="must have a column 'perturbation'"):
        learn_denoiser(method, images(), classifier(), run=Run())
    with pytest.raises(UserError, match="image_shape"):
        method.untrained(nn.Sequential(nn.Flatten(), nn.Linear(297, 3)))
    assert method.untrained(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())).denoiser.net[0].in_channels == 2
