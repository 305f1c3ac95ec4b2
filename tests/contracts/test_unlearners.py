"""Laws that every unlearner keeps: what it was given stays as it was, and equal runs give equal models."""

import copy

import pytest
import torch

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.methods import Method, Unlearner
from holdfast.run import Run

catalog.load_all()
UNLEARNERS = sorted(
    (m for m in Method.registry.values() if issubclass(m, Unlearner) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)


@pytest.fixture
def model(touchy):
    return touchy


@pytest.fixture
def images(few_images):
    return few_images.select(slice(0, 12), "forget"), few_images.select(slice(12, 72), "retain")


@pytest.fixture(params=UNLEARNERS, ids=lambda m: m.id)
def method(request):
    """The unlearner, short, and strong enough to change a model that knows nothing."""
    fields = {"epochs": 1, "batch_size": 20, "alpha": 0.5, "samples": 20}
    return request.param(**{name: fields[name] for name in fields if hasattr(request.param, name)})


def test_the_given_model_is_left_as_it_was(method, model, images):
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    places = [p.data_ptr() for p in model.parameters()]
    method(model, *images, run=Run())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.data_ptr() for p in model.parameters()] == places
    assert (model.head.weight.grad == 2).all()
    assert model.conv.weight.grad is None


def test_the_new_model_shares_nothing_with_the_given_one(method, model, images):
    unlearned = method(model, *images, run=Run())
    assert type(unlearned) is type(model)
    mine = {t.data_ptr() for t in model.state_dict().values()}
    assert not mine & {t.data_ptr() for t in unlearned.state_dict().values()}


def test_the_new_model_is_ready_to_use(method, model, images):
    unlearned = method(model, *images, run=Run())
    assert not any(m.training for m in unlearned.modules())
    assert {n: v.shape for n, v in unlearned.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }
    assert torch.isfinite(unlearned(images[1].x.float() / 255)).all()


def test_something_was_learnt(method, model, images):
    unlearned = method(model, *images, run=Run())
    assert not torch.equal(unlearned.head.weight, model.head.weight)
    # What the user froze stays frozen.
    assert [p.requires_grad for p in unlearned.parameters()] == [p.requires_grad for p in model.parameters()]


def test_equal_runs_give_equal_models_whatever_happened_before(method, model, images):
    a = method(model, *images, run=Run(seed=3))
    torch.default_generator.manual_seed(123)
    torch.rand(5)
    b = method(model, *images, run=Run(seed=3))
    c = method(model, *images, run=Run(seed=4))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)


def test_the_global_generator_is_left_alone(method, model, images):
    state = torch.get_rng_state()
    method(model, *images, run=Run())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_images_are_left_as_they_were(method, model, images):
    before = [part.fingerprint() for part in images]
    method(model, *images, run=Run())
    assert [part.fingerprint() for part in images] == before


def test_nothing_to_retain_is_refused_in_one_sentence(method, model, images):
    with pytest.raises(UserError) as caught:
        method(model, images[0], images[1].select(slice(0, 0)), run=Run())
    assert "\n" not in str(caught.value)
