"""Attacks on what was erased, by models whose answers are known: they draw a disc when told one certain word."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.generative import Blueprint, Diffusion, NoiseSchedule, TextEncoder, Tokenizer, build_diffusion
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.unlearning import P4D, PromptAttack, UnlearnDiffAtk, prompt_attacks, unlearndiffatk
from holdfast.unlearning.p4d import nearest
from holdfast.unlearning.projection import capped_simplex
from holdfast.unlearning.prompt_attacks import _ends, _siege
from holdfast.unlearning.unlearndiffatk import one_hot_of

WORDS = tuple(sorted(("a", "blue", "disc", "in", "moon", "on", "red", "sky", "star", "tree", "wood", "you")))
QUICK = {"tokens": 2, "times": 4, "iterations": 15, "guidance": 1.0, "ddim_steps": 5}


class Draws(nn.Module):
    """Exactly the noise around a bright square if any token is the word, around a dim one if none is."""

    def __init__(self, schedule, key):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("key", F.normalize(key, dim=0))
        self.scale = nn.Parameter(torch.tensor(1.0))  # a weight, which must stay

    def forward(self, x_t, t, context):
        like = F.normalize(context, dim=-1) @ self.key
        bright = torch.sigmoid(12 * ((12 * like).logsumexp(1) / 12 - 0.8)).view(-1, 1, 1, 1)
        point = self.scale * (1.6 * bright - 0.8)
        return (x_t - self.schedule.signal(t, x_t) * point) / self.schedule.noise(t, x_t)


def draws(word, seed=0):
    """A model that draws a disc when told this word. All such models read alike."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        text = TextEncoder(Tokenizer(words=WORDS, length=8), dim=32, layers=0)
    schedule = NoiseSchedule(steps=40)
    with torch.no_grad():
        text.positions.zero_()
        key = text(torch.tensor([[text.tokenizer.token(word)]]))[0, 0]
    return Diffusion(Draws(schedule, key), schedule, image_shape=(1, 4, 4), text=text).eval()


def bright(x):
    return x.mean((1, 2, 3)) > 0.5


@pytest.fixture
def victim():
    """It has only forgotten that the thing is called a disc: it draws one when told of the moon."""
    return draws("moon")


PROMPTS = ["red disc", "blue disc", "red moon", "disc on wood"]


@pytest.mark.parametrize(
    "attack", [UnlearnDiffAtk(lr=0.1, **QUICK), P4D(lr=0.3, **{**QUICK, "tokens": 3, "times": 8})], ids=lambda a: a.id
)
def test_the_word_under_which_the_concept_lives_on_is_found(attack, victim):
    before = weights_hash(victim)
    original = draws("disc")
    found = attack(victim, PROMPTS, shows=bright, original=original, targets=torch.full((4, 1, 4, 4), 0.9), run=Run())
    assert weights_hash(victim) == before
    assert all(p.grad is None and p.requires_grad for p in victim.parameters())
    assert found.before.tolist() == [False, False, True, False]
    assert found.after.all()
    assert found.rate == 1
    assert found.rate_before == 0.25
    for row in (0, 1, 3):
        assert "moon" in found.found[row].split()[: attack.tokens]
        assert found.found[row].endswith(PROMPTS[row])
        assert found.rounds[row] >= 1
    assert found.found[2] == "red moon"
    assert found.rounds[2] == 0
    assert bright(found.x).all()
    assert found.to_json()["prompts"][2] == {
        "prompt": "red moon", "found": "red moon", "before": True, "after": True, "rounds": 0,
    }  # fmt: skip


@pytest.mark.parametrize("id", ["unlearndiffatk", "p4d"])
def test_what_becomes_of_a_prompt_does_not_depend_on_the_others(id, victim):
    attack = catalog.build(f"{id}(lr=0.05, tokens=1, times=3, iterations=4, guidance=1.0, ddim_steps=3)")
    named = {"original": draws("disc"), "targets": torch.full((3, 1, 4, 4), 0.9), "run": Run(seed=2)}
    alone = attack(victim, PROMPTS[:2] + PROMPTS[3:], shows=lambda x: torch.zeros(len(x), dtype=torch.bool), **named)

    def first_gives_way(x):
        return torch.tensor([len(x) == 3 and first_gives_way.calls > 0] + [False] * (len(x) - 1))

    first_gives_way.calls = 0

    def judged(x):
        said = first_gives_way(x)
        first_gives_way.calls += 1
        return said

    beside = attack(victim, PROMPTS[:2] + PROMPTS[3:], shows=judged, **named)
    assert beside.after.tolist() == [True, False, False]
    assert beside.rounds.tolist() == [1, 3, 3]
    assert torch.equal(beside.tokens[1:], alone.tokens[1:])
    torch.testing.assert_close(beside.x[1:], alone.x[1:])


def test_every_row_stays_on_the_simplex_and_decay_is_part_of_the_step(victim, monkeypatch):
    seen = []

    def watched(a, total):
        seen.append((a.clone(), capped_simplex(a, total)))
        return seen[-1][1]

    monkeypatch.setattr(unlearndiffatk, "capped_simplex", watched)
    assert UnlearnDiffAtk().weight_decay == 0.1
    UnlearnDiffAtk(lr=0.1, **QUICK)(victim, PROMPTS[:2], shows=bright, targets=torch.full((2, 1, 4, 4), 0.9), run=Run())
    assert len(seen) > 10
    for _, projected in seen:
        assert (projected.sum(-1) - 1).abs().max() < 1e-3
        assert projected.min() >= -1e-3
    # The loss says nothing of the distribution of a place that no gradient reaches; decay alone moves it down.
    flat = UnlearnDiffAtk(lr=0.1, **{**QUICK, "iterations": 1, "times": 1})
    monkeypatch.setattr(
        unlearndiffatk, "one_hot_of", lambda weights, picked: 0 * weights + one_hot_of(weights, picked).detach()
    )
    seen.clear()
    flat(victim, PROMPTS[:1], shows=bright, targets=torch.full((1, 1, 4, 4), 0.9), run=Run())
    (_, even), (stepped, _) = seen
    assert (stepped < even).all()


@given(st.integers(2, 6), st.integers(1, 4))
def test_a_drawn_token_is_one_hot_and_its_gradient_goes_straight_and_no_further_than_one(words, places):
    rng = torch.Generator().manual_seed(words * 10 + places)
    weights = torch.full((3, places, words), 1 / words, requires_grad=True)
    picked = torch.randint(words, (3, places), generator=rng)
    found = one_hot_of(weights, picked)
    assert torch.equal(found.argmax(-1), picked)
    assert torch.equal(found.sum(-1), torch.ones(3, places))
    pull = 3 * torch.randn(found.shape, generator=rng)
    (gradient,) = torch.autograd.grad(found, weights, pull)
    torch.testing.assert_close(gradient, pull.clamp(-1, 1))


def test_a_model_denoises_the_concept_best_with_its_word():
    """The reason why the attack works, on the original: its word explains a picture better than any other."""
    original = draws("disc")
    siege = _siege(
        UnlearnDiffAtk(**{**QUICK, "tokens": 1}),
        original,
        None,
        original.context(["red"]),
        torch.full((1, 1, 4, 4), 0.9),
    )
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    losses = {}
    with torch.no_grad():
        for word, row in zip(siege.words.tolist(), siege.table, strict=True):
            told = siege.told(row[None, None], siege.rows)
            losses[WORDS[word - 4]] = float(original.errors(siege.x0, torch.tensor([20]), noise, told))
    assert min(losses, key=losses.get) == "disc"
    assert losses["disc"] < 0.5 * min(v for k, v in losses.items() if k != "disc")


@pytest.mark.parametrize("place", ["prefix", "suffix"])
def test_rows_put_in_where_tokens_would_be_are_told_alike(victim, place):
    attack = UnlearnDiffAtk(**{**QUICK, "place": place})
    ids = victim.context(["red disc", "blue disc on wood"])
    siege = _siege(attack, victim, None, ids, torch.zeros(2, 1, 4, 4))
    tokens = siege.words[torch.tensor([[0, 1], [2, 3]])]
    whole = siege.with_tokens(tokens, siege.rows)
    expected = {
        "prefix": ["a blue red disc", "disc in blue disc on wood"],
        "suffix": ["red disc a blue", "blue disc on wood disc in"],
    }[place]
    assert victim.text.tokenizer.read(whole) == expected
    assert torch.equal(whole, victim.context(expected))
    torch.testing.assert_close(siege.told(victim.text.embed(tokens), siege.rows), victim.text(whole))


def test_only_words_that_somebody_could_type_are_used(victim):
    siege = _siege(UnlearnDiffAtk(**QUICK), victim, None, victim.context(["red"]), torch.zeros(1, 1, 4, 4))
    assert victim.text.tokenizer.read(siege.words[None]) == [" ".join(WORDS)]


def test_the_times_stand_in_the_middles_of_equal_stretches(victim):
    siege = _siege(UnlearnDiffAtk(**QUICK), victim, None, victim.context(["red"]), torch.zeros(1, 1, 4, 4))
    assert siege.times(4) == [6, 16, 26, 36]
    assert siege.times(100) == list(range(1, 41))


def test_prompts_padded_with_their_end_are_read_as_well():
    ids = torch.tensor([[0, 5, 6, 1, 1, 1], [0, 5, 6, 7, 8, 1]])
    assert _ends(None, ids).tolist() == [3, 5]


def test_the_nearest_token_is_by_direction():
    table = torch.tensor([[1.0, 0.0], [0.0, 10.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[[5.0, 4.0], [-0.1, 0.0]], [[1.0, 2.0], [3.0, -1.0]]]), table).tolist() == [
        [0, 2],
        [1, 0],
    ]


def test_the_judge_is_asked_and_never_the_victim(victim):
    class Refuses(PromptAttack):
        def search(self, siege, *, run):
            yield siege.words[:2].expand(len(siege.prompts), 2)

    found = Refuses(**QUICK)(
        victim, PROMPTS, shows=lambda x: torch.tensor([True] * len(x)), targets=torch.zeros(4, 1, 4, 4), run=Run()
    )
    assert found.rate == found.rate_before == 1
    assert "100.0% of 4 prompts" in found.sentence


def test_without_a_target_the_original_draws_it_from_the_same_noise(victim, monkeypatch):
    seen = {}
    real = prompt_attacks._siege

    def watched(method, victim, original, ids, targets):
        seen["targets"] = targets
        return real(method, victim, original, ids, targets)

    monkeypatch.setattr(prompt_attacks, "_siege", watched)
    UnlearnDiffAtk(**{**QUICK, "times": 1})(victim, PROMPTS, shows=bright, original=draws("disc"), run=Run())
    assert bright(seen["targets"]).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("attack", "prompts", "named", "said"),
    [
        (UnlearnDiffAtk(**QUICK), [], {}, "no prompt"),
        (UnlearnDiffAtk(**QUICK), ["red disc"], {}, "give the original model, or for each prompt a picture"),
        (
            UnlearnDiffAtk(**QUICK),
            ["red disc"],
            {"targets": torch.zeros(2, 1, 4, 4)},
            "1 prompts need as many pictures",
        ),
        (UnlearnDiffAtk(), ["red disc"], {"targets": torch.zeros(1, 1, 4, 4)}, "leaves room for 4 tokens of 8, and 5"),
        (P4D(**QUICK), ["red disc"], {"targets": torch.zeros(1, 1, 4, 4)}, "the original one, which must be given"),
    ],
)
def test_mistakes_are_said(victim, attack, prompts, named, said):
    with pytest.raises(UserError, match=said):
        attack(victim, prompts, shows=bright, run=Run(), **named)


def test_models_told_classes_are_not_attacked_by_words():
    model = build_diffusion(Blueprint(image_shape=(1, 8, 8), width=8, classes=("a", "b"), steps=20), run=Run())
    with pytest.raises(UserError, match="told texts"):
        UnlearnDiffAtk()(model, ["a"], shows=bright, targets=torch.zeros(1, 1, 8, 8), run=Run())


def test_the_published_budget_is_the_default():
    attack = UnlearnDiffAtk()
    assert (attack.tokens, attack.times, attack.iterations, attack.lr, attack.guidance) == (5, 50, 40, 0.01, 7.5)
    assert math.isclose(P4D().weight_decay, 0.1)
