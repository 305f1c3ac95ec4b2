import pytest
import torch
from torch import nn

from holdfast import catalog
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.models import build_model, extract, load_model, predict, save_weights, weights_hash
from holdfast.ood import FittedDetector, ModeEnsemble, Modes, fit_detectors, modes_of, score_detectors, spread
from holdfast.run import Run
from holdfast.training import SGD, fit

RULES = [("energy", "means"), ("msp", "means"), ("knn(k=5)", "means"), ("energy", "scores"), ("knn(k=5)", "scores")]
RULES += [("gradnorm", "scores"), ("odin", "scores"), ("gram", "scores")]


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def train(data):
    return data.train.select(slice(0, 400))


@pytest.fixture(scope="module")
def test(data):
    return data.test.select(slice(0, 60))


@pytest.fixture(scope="module")
def models(data):
    found = [load_model("zoo:digits-convnet")]
    for seed in (1, 2):
        made = build_model("convnet", num_classes=10, image_shape=(1, 8, 8), run=Run(seed=seed))
        found.append(fit(made, data.train, epochs=2, optimizer=SGD(lr=0.05), run=Run(seed=seed)).model)
    return found


def scores(method, model, train, test):
    fitted = fit_detectors([method], model, train, run=Run())
    (found,) = score_detectors(fitted, model, test, run=Run()).values()
    return found


def ensemble(detector, combine):
    return ModeEnsemble(detector=detector, combine=combine)


@pytest.mark.parametrize(("detector", "combine"), RULES)
def test_copies_of_one_network_and_a_single_one_give_its_own_scores(detector, combine, models, train, test):
    alone = scores(detector, models[0], train, test)
    method = ensemble(detector, combine)
    for model in (Modes([models[0]] * 3), Modes(models[:1]), models[0]):
        torch.testing.assert_close(scores(method, model, train, test), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("detector", "combine"), RULES[:6])
def test_the_order_of_modes_does_not_matter(detector, combine, models, train, test):
    method = ensemble(detector, combine)
    one, other = (scores(method, Modes(m), train, test) for m in (models, models[::-1]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, scores(detector, models[0], train, test), atol=1e-2, rtol=1e-2)


def test_logits_are_averaged_and_not_probabilities(models, train, test):
    mean = torch.stack([predict(m, test, run=Run()) for m in models]).mean(0)
    torch.testing.assert_close(predict(Modes(models), test, run=Run()), mean, atol=1e-5, rtol=1e-5)
    expected = -mean.double().logsumexp(1)
    torch.testing.assert_close(
        scores(ensemble("energy", "means"), Modes(models), train, test), expected, atol=1e-5, rtol=1e-5
    )
    # Any detector of logits follows the same rule on the modes themselves.
    torch.testing.assert_close(scores("energy", Modes(models), train, test), expected, atol=1e-5, rtol=1e-5)


def test_features_are_averaged_before_they_are_normalised(models, train, test):
    bank, queries = (
        nn.functional.normalize(
            torch.stack([extract(m, images, run=Run()).penultimate for m in models]).mean(0).double()
        )
        for images in (train, test)
    )
    expected = torch.cdist(queries, bank).sort(1).values[:, 4]
    found = scores(ensemble("knn(k=5)", "means"), Modes(models), train, test)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_scores_are_averaged_on_a_common_scale(models, train, test):
    alone = [(scores("knn(k=5)", m, train, train), scores("knn(k=5)", m, train, test)) for m in models]
    z = torch.stack([(s - own.mean()) / own.std(correction=0) for own, s in alone]).mean(0)
    found = scores(ensemble("knn(k=5)", "scores"), Modes(models), train, test)
    assert torch.corrcoef(torch.stack([z, found]))[0, 1] > 1 - 1e-6


def test_networks_of_other_widths_are_combined_where_that_has_a_meaning(models, train, test):
    narrow = build_model("mlp(hidden=[7])", num_classes=10, image_shape=(1, 8, 8), run=Run())
    modes = Modes([models[0], narrow])
    assert scores(ensemble("energy", "means"), modes, train, test).shape == (60,)
    assert scores(ensemble("knn(k=5)", "scores"), modes, train, test).shape == (60,)
    with pytest.raises(UserError, match="reads penultimate features"):
        scores(ensemble("knn(k=5)", "means"), modes, train, test)


def test_what_looks_inside_has_no_means(models, train):
    with pytest.raises(UserError, match="looks inside each network, where there are no means; take combine=scores"):
        fit_detectors([ensemble("odin", "means")], Modes(models), train, run=Run())
    with pytest.raises(UserError, match="last linear layer"):
        fit_detectors([ensemble("react", "means")], Modes(models), train, run=Run())


def test_another_number_of_networks_is_refused(models, train, test):
    fitted = fit_detectors([ensemble("energy", "scores")], Modes(models), train, run=Run())
    with pytest.raises(UserError, match="it was fitted to 3 networks, and this model has 2"):
        score_detectors(fitted, Modes(models[:2]), test, run=Run())


def test_an_ensemble_survives_saving(models, train, test, tmp_path):
    modes = Modes(models)
    (fitted,) = fit_detectors([ensemble("knn(k=5)", "scores")], modes, train, run=Run()).values()
    fitted.save(tmp_path / "e.safetensors")
    loaded = FittedDetector.load(tmp_path / "e.safetensors")
    both = [score_detectors({"it": d}, modes, test, run=Run())["it"] for d in (fitted, loaded)]
    assert torch.equal(*both)


def test_the_networks_are_copies_and_there_is_at_least_one(models):
    modes = Modes(models)
    assert modes.num_classes == 10
    assert [m is n for m, n in zip(modes_of(modes), models, strict=True)] == [False] * 3
    assert modes_of(models[0]) == [models[0]]
    with pytest.raises(UserError, match="at least one network"):
        Modes([])


def test_spread_tells_what_a_single_seed_hides():
    found = spread([0.4658, 0.5849, 0.5953, 0.6601, 0.8470])  # RankFeat's FPR95 of five modes, Table of the paper
    assert found.low == 0.4658
    assert found.range == pytest.approx(0.3812)
    assert found.mean == pytest.approx(0.63062)
    assert found.std == pytest.approx(0.1404, abs=1e-3)
    assert spread([0.5]).std == 0
    with pytest.raises(UserError, match="no values"):
        spread([])


def test_weights_of_other_trainings_make_one_model(tmp_path):
    nets = [build_model("mlp", num_classes=4, image_shape=(1, 8, 8), run=Run(seed=seed)) for seed in range(3)]
    for seed in (1, 2):
        save_weights(nets[seed], tmp_path / f"{seed}.safetensors")
    before = weights_hash(nets[0])
    method = catalog.build(f"modes(weights=['{tmp_path}/1.safetensors', '{tmp_path}/2.safetensors'])")
    together, x = method(nets[0]), torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(together.eval()(x), torch.stack([net.eval()(x) for net in nets]).mean(0))
    assert weights_hash(nets[0]) == before
    with pytest.raises(UserError, match="give the files"):
        catalog.build("modes")(nets[0])
    with pytest.raises(UserError):
        catalog.build("modes(weights=[missing.safetensors])")(nets[0])
