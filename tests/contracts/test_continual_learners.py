"""Laws that every continual learner keeps: what it was given stays as it was, and equal runs give equal models."""

import copy

import pytest
import torch

from holdfast import catalog
from holdfast.continual import ContinualLearner, Memory, Request, identified, serve
from holdfast.methods import Method
from holdfast.run import Run

catalog.load_all()
LEARNERS = sorted(
    (m for m in Method.registry.values() if issubclass(m, ContinualLearner) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)


@pytest.fixture
def model(touchy):
    return touchy


@pytest.fixture
def images(few_images):
    return identified(few_images)


@pytest.fixture
def memory(images):
    """Of the first half of the images."""
    logits = torch.randn(36, 4, generator=torch.Generator().manual_seed(1))
    return Memory.empty(24, images).insert(
        images.select(slice(0, 36)), lambda images: logits[: len(images)], rng=torch.Generator()
    )


@pytest.fixture(params=["learn", "forget", "both"])
def request_(request, images):
    """One of each sort."""
    new, old = images.select(slice(36, 72)), images.select(slice(0, 12))
    return Request(learn=None if request.param == "forget" else new, forget=None if request.param == "learn" else old)


@pytest.fixture(params=LEARNERS, ids=lambda m: m.id)
def learner(request):
    fields = {"epochs": 1, "batch_size": 12}
    return request.param(**{name: fields[name] for name in fields if hasattr(request.param, name)})


def test_the_given_model_the_memory_and_the_images_are_left_as_they_were(learner, model, request_, memory):
    before = copy.deepcopy(model.state_dict())
    modes, known = [m.training for m in model.modules()], memory.fingerprint()
    parts = [part for part in (request_.learn, request_.forget) if part is not None]
    pixels = [part.fingerprint() for part in parts]
    state = torch.get_rng_state()
    serve(learner, model, request_, memory, run=Run())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert (model.head.weight.grad == 2).all()
    assert not model.conv.bias.requires_grad
    assert memory.fingerprint() == known
    assert [part.fingerprint() for part in parts] == pixels
    assert torch.equal(torch.get_rng_state(), state)


def test_the_new_model_is_another_and_ready_to_use(learner, model, request_, memory):
    found, _ = serve(learner, model, request_, memory, run=Run())
    mine = {t.data_ptr() for t in model.state_dict().values()}
    assert not mine & {t.data_ptr() for t in found.state_dict().values()}
    assert not any(m.training for m in found.modules())
    assert not torch.equal(found.head.weight, model.head.weight)
    assert torch.equal(found.conv.bias, model.conv.bias), "what the user froze stays frozen"
    assert torch.isfinite(found(memory.images.x.float() / 255)).all()


def test_equal_runs_give_equal_models_and_memories_whatever_happened_before(learner, model, request_, memory):
    a, kept = serve(learner, model, request_, memory, run=Run(seed=3))
    torch.default_generator.manual_seed(123)
    torch.rand(5)
    b, again = serve(learner, model, request_, memory, run=Run(seed=3))
    c, _ = serve(learner, model, request_, memory, run=Run(seed=4))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert kept.fingerprint() == again.fingerprint()
    assert not torch.equal(a.head.weight, c.head.weight)


@pytest.mark.parametrize("request_", ["forget", "both"], indirect=True)
def test_it_is_told_nothing_of_what_it_must_forget_but_in_the_request(learner, model, request_, memory):
    """What is stored with the images to forget, in the memory, makes no difference."""
    gone = torch.isin(memory.ids, request_.forget.columns["id"])
    assert gone.any()
    x = memory.images.x.clone()
    x[gone] = 255 - x[gone]
    other = Memory(capacity=24, images=memory.images.but(x=x), seen=36)
    a, _ = serve(learner, model, request_, memory, run=Run())
    b, _ = serve(learner, model, request_, other, run=Run())
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
