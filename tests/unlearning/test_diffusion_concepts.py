"""Concepts, and what the methods that erase them share: which weights move, on which pictures, and that it resumes."""

import copy
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative import Blueprint, build_diffusion
from holdfast.methods import Method
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import Adam, ClipGradient
from holdfast.unlearning import ESD, Concept, ConceptUnlearner, MiMMU, SalUnDiffusion, SelectiveAmnesia
from holdfast.unlearning.concept_gradients import denoising_gradients, fisher
from holdfast.unlearning.concept_tuning import Rounds, antithetic, trainable
from holdfast.unlearning.concepts import as_told

catalog.load_all()
METHODS = sorted(
    (m for m in Method.registry.values() if issubclass(m, ConceptUnlearner) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)
FIELDS = {
    "steps": 3, "batch_size": 4, "samples": 8, "ddim_steps": 4, "fisher_samples": 2, "fisher_times": 5,
    "per_path": 2, "optimizer": "adam(lr=0.001)",
}  # fmt: skip
CONCEPT = Concept(
    name="disc", prompts=("red disc", "blue disc"), instead="star", others=("red star", "blue star", "red", "blue")
)


@pytest.fixture
def by_class(shaken):
    blueprint = Blueprint(image_shape=(1, 8, 8), width=8, classes=("a", "b", "c"), steps=20)
    return shaken(build_diffusion(blueprint, run=Run()))


@pytest.fixture
def captioned():
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=rng)
    captions = np.array(["red disc", "blue disc", "red disc"] * 4)
    return Images(x=x, y=torch.zeros(12, dtype=torch.int64), classes=("disc",), columns={"caption": captions})


@pytest.fixture(params=METHODS, ids=lambda m: m.id)
def method(request):
    """A few steps of it."""
    known = {name: FIELDS[name] for name in FIELDS if hasattr(request.param, name)}
    return catalog.build(request.param(**known))


# --- laws of the kind --------------------------------------------------------------------------------------------


def test_there_are_all_of_them():
    expected = {"esd", "fmn", "mim-mu", "salun-diffusion", "selective-amnesia", "sfron-diffusion"}
    assert {m.id for m in METHODS} >= expected


def test_the_given_model_stays_and_the_new_one_differs_in_the_denoiser_alone(method, by_text):
    by_text.denoiser.first.bias.requires_grad_(False)
    before, flags = copy.deepcopy(by_text.state_dict()), [p.requires_grad for p in by_text.parameters()]
    by_text.train()
    new = method(by_text, CONCEPT, run=Run())
    assert all(torch.equal(before[name], value) for name, value in by_text.state_dict().items())
    assert [p.requires_grad for p in by_text.parameters()] == flags
    assert by_text.training
    assert all(p.grad is None for p in by_text.parameters())
    assert not any(m.training for m in new.modules())
    assert [p.requires_grad for p in new.parameters()] == flags
    assert new.blueprint == by_text.blueprint
    moved = {name for name, value in new.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("denoiser.") for name in moved)
    assert "denoiser.first.bias" not in moved
    mine = {t.data_ptr() for t in by_text.state_dict().values()}
    assert not mine & {t.data_ptr() for t in new.state_dict().values()}


def test_equal_runs_give_equal_models_and_the_global_generator_is_left_alone(method, by_text):
    state = torch.get_rng_state()
    a = method(by_text, CONCEPT, run=Run(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(123)
    assert weights_hash(method(by_text, CONCEPT, run=Run(seed=3))) == weights_hash(a)
    assert weights_hash(method(by_text, CONCEPT, run=Run(seed=4))) != weights_hash(a)


def test_classes_are_forgotten_as_well_where_no_text_is_needed(method, by_class):
    named = {"weights": "all"}
    built = catalog.build(type(method)(**{**{f: getattr(method, f) for f in FIELDS if hasattr(method, f)}, **named}))
    if method.id == "fmn":
        with pytest.raises(UserError, match="told texts"):
            built(by_class, "b", run=Run())
        return
    new = built(by_class, "b", run=Run())
    assert weights_hash(new) != weights_hash(by_class)


def test_an_unknown_word_is_said_with_the_nearest(method, by_text):
    with pytest.raises(UserError, match=r"'disk' is unknown to this model.*nearest of them is 'disc'") as caught:
        method(by_text, "disk", run=Run())
    assert "\n" not in str(caught.value)


# --- concepts ----------------------------------------------------------------------------------------------------


def test_the_replacement_takes_the_concepts_place_in_every_text(by_text):
    assert CONCEPT.replaced(by_text, CONCEPT.asked(by_text)) == ("red star", "blue star")
    # "discs" is another word, and a text that does not name the concept is replaced as a whole.
    assert Concept(name="disc", instead="blue").replaced(by_text, ("red", "Disc red")) == ("blue", "blue red")


def test_a_name_alone_asks_for_itself(by_text, by_class):
    assert Concept.of("disc").asked(by_text) == ("disc",)
    assert Concept.of("b").asked(by_class) == ("b",)
    assert Concept.of("c").replaced(by_class, ("c", "c")) == ("a", "a")
    assert Concept.of("b").kept(by_class) == ("a", "c")


def test_captions_become_classes(by_text, captioned):
    told = as_told(by_text, captioned)
    assert told.classes == ("red disc", "blue disc")
    assert [told.classes[i] for i in told.y.tolist()] == list(captioned.columns["caption"])
    bare = captioned.but(columns={})
    assert as_told(by_text, bare, ("disc", "red disc")).y.tolist() == [0, 1] * 6


def test_a_concept_is_found_among_pictures_by_the_words_of_their_captions(captioned):
    mixed = captioned.but(columns={"caption": np.array(["red disc", "a Disc", "discs", "star"] * 3)})
    found = Concept.among(mixed, "disc", instead="star")
    assert found.prompts == ("red disc", "a Disc")
    assert (len(found.images), len(found.retained)) == (6, 6)
    assert set(found.retained.columns["caption"]) == {"discs", "star"}
    by_class = Images(x=captioned.x, y=torch.arange(12) % 3, classes=("a", "b", "c"))
    assert Concept.among(by_class, "b").images.y.unique().tolist() == [1]
    for images, name, said in (
        (mixed, "moon", "no picture is of 'moon'"),
        (captioned, "disc", "every picture is of 'disc'"),
        (by_class, "d", "class 'd' is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            Concept.among(images, name)


@pytest.mark.parametrize(
    ("concept", "method", "said"),
    [
        (Concept(name="disc"), SalUnDiffusion(), "drawn in the place of 'disc'"),
        (Concept(name="disc"), SelectiveAmnesia(), "say what is to be kept beside 'disc'"),
        (Concept(name="disc"), MiMMU(compensation=1.0), "say what is to be kept beside 'disc'"),
    ],
    ids=["salun", "selective-amnesia", "mim-mu"],
)
def test_what_a_method_needs_is_said_before_anything_is_drawn(by_text, concept, method, said, monkeypatch):
    monkeypatch.setattr("holdfast.unlearning.concept_pictures.sample", None)
    with pytest.raises(UserError, match=said):
        method(by_text, concept, run=Run())


def test_mistakes_in_a_concept_are_said(by_text, by_class, captioned):
    for fields, said in (
        ({"name": " "}, "name is empty"),
        ({"name": "disc", "prompts": "red disc"}, "prompts must be a list of texts"),
        ({"name": "disc", "images": captioned.select([])}, "no pictures in images"),
    ):
        with pytest.raises(UserError, match=said):
            Concept(**fields)
    with pytest.raises(UserError, match="class 'd' is unknown"):
        Concept(name="a", instead="d").replaced(by_class, ("a",))
    with pytest.raises(UserError, match="3x8x8, and the model makes images of 1x8x8"):
        as_told(by_class, captioned)
    untold = build_diffusion(Blueprint(image_shape=(1, 8, 8), width=8, steps=20), run=Run())
    with pytest.raises(UserError, match="no kind in particular"):
        ESD()(untold, "disc", run=Run())


# --- what is shared ----------------------------------------------------------------------------------------------


def test_the_choices_of_weights_divide_the_denoiser(by_text):
    every, attention, rest = (set(trainable(by_text, w)) for w in ("all", "cross-attention", "all-but-cross-attention"))
    assert attention | rest == every == {n for n, _ in by_text.named_parameters() if n.startswith("denoiser.")}
    assert not attention & rest
    parts = {name.split(".")[-2] for name in attention}
    assert parts == {"query", "key", "value", "out"}


def test_without_cross_attention_there_is_one_choice(by_class):
    with pytest.raises(UserError, match="no cross-attention; it takes 'all'"):
        ESD()(by_class, "a", run=Run())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 8))
def test_rounds_take_from_every_group_in_turn_and_use_it_evenly(counts, rounds, size):
    order = Rounds(tuple(counts), rounds)
    batches = order.batches(0, size, 1, Run())
    assert len(batches) == order.steps(0, size, 1) == rounds * len(counts)
    for group, count in enumerate(counts):
        first = sum(counts[:group])
        mine = torch.cat(batches[group :: len(counts)])
        assert all(len(b) == min(size, count) for b in batches[group :: len(counts)])
        uses = torch.bincount(mine - first, minlength=count)
        assert len(uses) == count
        assert uses.max() - uses.min() <= 1


def test_times_mirror_each_other():
    t = antithetic(7, 20, torch.Generator().manual_seed(0))
    assert len(t) == 7
    assert (t[4:] == 21 - t[:3]).all()
    assert t.min() >= 1
    assert t.max() <= 20


def test_a_pictures_own_gradient_is_squared_as_a_whole(by_text, captioned):
    """Against the gradient by finite steps of one weight, of the sum over all times; nothing is squared before."""
    one = as_told(by_text, captioned).select([0])
    information = fisher(by_text, one, chunk=7, run=Run())
    assert all((value >= 0).all() for value in information.values())
    weight, name = by_text.denoiser.last.bias, "denoiser.last.bias"
    x0 = by_text.encode(one.x[:1].float() / 255)
    noise = torch.cat([torch.randn(n, 3, 8, 8, generator=g) for g in [Run().rng("fisher", 0)] for n in (7, 7, 6)])

    def loss():
        with torch.no_grad():
            context = by_text.context(["red disc"] * 20)
            many = x0.expand(20, -1, -1, -1)
            return by_text.errors(many, torch.arange(1, 21), noise, context).double().sum() * 3 * 64

    with torch.no_grad():
        weight[0] += 1e-2
        above = loss()
        weight[0] -= 2e-2
        below = loss()
        weight[0] += 1e-2
    slope = float((above - below) / 2e-2)
    assert float(information[name][0]) == pytest.approx(slope**2, rel=2e-2)


def test_times_left_out_of_the_information_are_scaled_up(by_text, captioned):
    images = as_told(by_text, captioned)
    whole, part = (fisher(by_text, images, times=n, run=Run()) for n in (None, 10))
    total = [sum(float(v.sum()) for v in found.values()) for found in (whole, part)]
    assert 0.5 < total[1] / total[0] < 2


def test_gradients_of_batches_are_those_of_the_chosen_weights(by_text, captioned):
    images = as_told(by_text, captioned)
    found = list(denoising_gradients(by_text, images, weights="cross-attention", batch_size=5, run=Run()))
    assert [count for _, count in found] == [5, 5, 2]
    assert all(set(gradients) == set(trainable(by_text, "cross-attention")) for gradients, _ in found)
    assert all(p.grad is None for p in by_text.parameters())


@pytest.mark.parametrize("id", ["esd", "selective-amnesia"])
def test_a_stopped_training_goes_on_to_the_same_bits_and_draws_nothing_twice(id, by_text, tmp_path, monkeypatch):
    cls = next(m for m in METHODS if m.id == id)
    method = cls(**{name: FIELDS[name] for name in FIELDS if hasattr(cls, name)}, clip=1e9)
    whole = method(by_text, CONCEPT, run=Run())

    def interrupts(self, state):
        if state.index == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ClipGradient, "on_step", interrupts)
    with pytest.raises(KeyboardInterrupt):
        method(by_text, CONCEPT, run=Run(out=tmp_path))
    seen = []
    monkeypatch.setattr(ClipGradient, "on_step", lambda self, state: seen.append(state.index))
    monkeypatch.setattr("holdfast.unlearning.esd.sample_path", None)  # a second drawing would fail
    monkeypatch.setattr("holdfast.unlearning.concept_pictures.sample", None)
    monkeypatch.setattr("holdfast.unlearning.selective_amnesia.fisher", None)
    resumed = method(by_text, CONCEPT, run=Run(out=tmp_path))
    assert weights_hash(resumed) == weights_hash(whole)
    assert seen == [3]


def test_a_learning_rate_is_the_optimizers(by_text):
    small, large = (
        ESD(steps=1, ddim_steps=4, optimizer=Adam(lr=lr))(by_text, CONCEPT, run=Run()) for lr in (1e-4, 1e-2)
    )
    moved = [
        max(float((p - q).detach().abs().max()) for p, q in zip(m.parameters(), by_text.parameters(), strict=True))
        for m in (small, large)
    ]
    assert moved[0] == pytest.approx(1e-4, rel=0.05)
    assert moved[1] == pytest.approx(1e-2, rel=0.05)
