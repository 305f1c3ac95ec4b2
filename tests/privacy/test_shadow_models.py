import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.models import build_model, predict, reinitialised
from holdfast.privacy import FitRecipe, balanced_halves, observe, train_shadows
from holdfast.privacy.fit_recipe import said_in_full, views_of
from holdfast.run import Run
from holdfast.training import SGD, Flip, Recipe, fit


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").train.select(slice(0, 60))


@pytest.fixture(scope="module")
def model(digits):
    return build_model("mlp", num_classes=10, image_shape=digits.shape, run=Run())


@dataclasses.dataclass(frozen=True)
class Counted:
    """A recipe that says how often it was followed, and gives up when told to."""

    epochs: int = 2
    log: list = dataclasses.field(default_factory=list, repr=False)
    fails_at: int = dataclasses.field(default=99, repr=False)

    def __call__(self, model, images, *, run):
        if len(self.log) == self.fails_at:
            raise KeyboardInterrupt
        self.log.append(len(images))
        return FitRecipe(epochs=self.epochs, batch_size=16)(model, images, run=run)


@given(st.integers(2, 40), st.integers(1, 10), st.integers(0, 99))
def test_every_image_is_in_half_of_the_models_and_every_model_sees_half(count, pairs, seed):
    members = balanced_halves(count, 2 * pairs, Run(seed=seed))
    assert (members.sum(0) == pairs).all()
    assert torch.equal(members[::2], ~members[1::2])
    assert (members[::2].sum(1) == count // 2).all()


def test_more_shadow_models_build_on_the_fewer():
    assert torch.equal(balanced_halves(30, 8, Run())[:4], balanced_halves(30, 4, Run()))
    assert not torch.equal(balanced_halves(30, 4, Run()), balanced_halves(30, 4, Run(seed=1)))
    first = balanced_halves(30, 4, Run())
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize(("count", "models"), [(10, 3), (10, 0), (10, True), (1, 2)])
def test_odd_numbers_of_models_and_tiny_pools_are_refused(count, models):
    with pytest.raises(UserError, match="shadow models"):
        balanced_halves(count, models, Run())


def test_what_is_kept_are_the_models_own_answers(model, digits):
    seen = []

    def recipe(network, images, *, run):
        trained = FitRecipe(epochs=2)(network, images, run=run)
        seen.append((trained, images))
        return trained

    shadows = train_shadows(model, digits, recipe, shadows=4, views=("identity", "flip"), run=Run())
    for k, (network, images) in enumerate(seen):
        assert torch.equal(images.x, digits.x[shadows.members[k]])
        for v, x in enumerate((digits.x, digits.x.flip(3))):
            p = predict(network, digits.but(x=x), run=Run()).double().softmax(1).gather(1, digits.y[:, None])[:, 0]
            assert torch.allclose(shadows.probabilities[k, v], p, atol=1e-6)
            assert torch.allclose(shadows.log_odds[k, v], (p / (1 - p)).log(), rtol=1e-3, atol=1e-3)


def test_the_given_model_is_left_alone_and_every_shadow_starts_anew(model, digits):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    starts = []

    def recipe(network, images, *, run):
        starts.append(network.fc.weight.detach().clone())
        return network

    train_shadows(model, digits, recipe, shadows=4, run=Run())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len({tuple(w.flatten().tolist()) for w in [*starts, model.fc.weight]}) == 5


def test_an_interrupted_run_goes_on_with_the_missing_models(model, digits, tmp_path):
    run = Run(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_shadows(model, digits, Counted(fails_at=3), shadows=4, run=run)
    assert len(list((tmp_path / "shadows").glob("*.safetensors"))) == 3
    log = []
    resumed = train_shadows(model, digits, Counted(log=log), shadows=4, run=run)
    assert len(log) == 1
    whole = train_shadows(model, digits, Counted(), shadows=4, run=Run(out=tmp_path / "whole"))
    assert torch.equal(resumed.log_odds, whole.log_odds)


def test_what_was_trained_is_not_trained_again(model, digits, tmp_path):
    run, log = Run(out=tmp_path), []
    first = train_shadows(model, digits, Counted(log=log), shadows=4, run=run)
    second = train_shadows(model, digits, Counted(log=log), shadows=6, run=run)
    assert len(log) == 6
    assert torch.equal(first.log_odds, second.log_odds[:4])


@pytest.mark.parametrize("change", ["recipe", "data", "labels", "architecture", "seed", "views"])
def test_whatever_a_shadow_depends_on_makes_another_of_it(change, model, digits, tmp_path):
    given = {"model": model, "pool": digits, "recipe": Counted(), "run": Run(out=tmp_path), "views": ("identity",)}
    train_shadows(**given, shadows=2)
    log = []
    given["recipe"] = Counted(log=log)
    other = {
        "recipe": {"recipe": Counted(epochs=3, log=log)},
        "data": {"pool": digits.but(x=digits.x.flip(2))},
        "labels": {"pool": digits.but(y=(digits.y + 1) % 10)},
        "architecture": {"model": build_model("mlp(hidden=[32])", num_classes=10, image_shape=digits.shape, run=Run())},
        "seed": {"run": Run(out=tmp_path, seed=1)},
        "views": {"views": ("flip",)},
    }[change]
    train_shadows(**{**given, **other}, shadows=2)
    assert len(log) == 2


def test_of_a_function_that_does_not_say_what_it_does_nothing_is_kept(model, digits, tmp_path):
    calls = []

    def recipe(network, images, *, run):
        calls.append(1)
        return network

    for _ in range(2):
        train_shadows(model, digits, recipe, shadows=2, run=Run(out=tmp_path))
    assert len(calls) == 4
    assert not (tmp_path / "shadows").exists()
    assert said_in_full(recipe) is None
    assert said_in_full(dataclasses.make_dataclass("R", [("f", object)])(recipe)) is None


def test_without_a_folder_shadows_go_to_the_cache(model, digits):
    log = []
    for _ in range(2):
        train_shadows(model, digits, Counted(epochs=1, log=log), shadows=2, run=Run(seed=77))
    assert len(log) == 2


def test_a_model_that_only_answers_has_no_architecture_to_copy(digits, monkeypatch):
    monkeypatch.setattr("holdfast.privacy.shadow_models.only_answers", lambda model: True)
    with pytest.raises(UserError, match="only answers queries"):
        train_shadows(nn.Linear(1, 1), digits, FitRecipe(epochs=1), shadows=2, run=Run())


def test_a_recipe_is_the_same_training_as_fit(model, digits):
    run = Run(seed=4)
    by_recipe = FitRecipe(epochs=2, batch_size=16, optimizer="sgd(lr=0.05)", transforms=["flip"])(
        reinitialised(model, run=run), digits, run=run
    )
    directly = fit(
        reinitialised(model, run=run), digits, epochs=2, batch_size=16, optimizer=SGD(lr=0.05), transforms=[Flip()],
        run=run,
    ).model  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(by_recipe.parameters(), directly.parameters(), strict=True))


def test_mirror_images_are_asked_for_where_training_mirrors():
    assert views_of(FitRecipe(epochs=1)) == ("identity",)
    assert views_of(FitRecipe(epochs=1, transforms=["crop", "flip"])) == ("identity", "flip")


def test_a_recipe_in_yaml_is_followed_or_refused():
    plain = Recipe(model="mlp", data="digits", epochs=3, optimizer="sgd(lr=0.5)", transforms=("flip",), ema=0.9)
    recipe = FitRecipe.of(plain)
    assert (recipe.epochs, recipe.optimizer, recipe.transforms, recipe.ema) == (3, SGD(lr=0.5), (Flip(),), 0.9)
    for change in ({"weights": "zoo:digits-convnet"}, {"transforms": ("long-tail",)}):
        with pytest.raises(UserError, match="shadow models start anew"):
            FitRecipe.of(plain.model_copy(update=change))


def test_a_misspelt_method_is_refused_before_any_training():
    with pytest.raises(UserError, match="Did you mean 'sgd'"):
        FitRecipe(epochs=1, optimizer="sdg")


def test_views_that_do_not_exist_are_refused(model, digits):
    with pytest.raises(UserError, match="Did you mean 'flip'"):
        observe(model, digits, views=("flipp",), run=Run())
    with pytest.raises(UserError, match="different ones"):
        observe(model, digits, views=(), run=Run())
    empty = Images(x=torch.zeros(0, 1, 8, 8), y=torch.zeros(0, dtype=torch.int64), classes=digits.classes)
    with pytest.raises(UserError, match="no images"):
        observe(model, empty, run=Run())


def test_answers_do_not_depend_on_the_size_of_batches(model, digits):
    a, b = (observe(model, digits, views=("identity", "flip"), run=Run(batch_size=size)) for size in (7, 60))
    assert torch.allclose(a, b, atol=1e-4)
