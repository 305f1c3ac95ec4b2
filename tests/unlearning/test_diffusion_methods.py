"""What each method that erases concepts computes: identities of its losses, and what a training by it changes."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative import Diffusion, NoiseSchedule, plugged, watch_attention
from holdfast.generative.noise_prediction import drawn
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import Adam, AdamW, Step
from holdfast.unlearning import (
    ESD,
    P4D,
    Concept,
    ForgetMeNot,
    MiMMU,
    SalUnDiffusion,
    SelectiveAmnesia,
    SFRonDiffusion,
    UnlearnDiffAtk,
)
from holdfast.unlearning.concept_tuning import trainable
from holdfast.unlearning.concepts import as_told
from holdfast.unlearning.esd import _Away
from holdfast.unlearning.fmn import _Resteer, attention_on, places_of
from holdfast.unlearning.mim_mu import _Untold, against_the_concept
from holdfast.unlearning.salun_diffusion import _Instead
from holdfast.unlearning.selective_amnesia import _Amnesia
from holdfast.unlearning.sfron_diffusion import _UpAndDown, adaptive_errors

PROMPTS = ("red disc", "blue disc")
OTHERS = ("red star", "blue star", "red", "blue")
FAST = Adam(lr=3e-3)


@pytest.fixture
def model(by_text):
    return by_text


@pytest.fixture
def pictures():
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=rng)
    captions = np.array(PROMPTS * 8)
    return Images(x=x, y=torch.zeros(16, dtype=torch.int64), classes=("disc",), columns={"caption": captions})


@pytest.fixture
def concept(pictures):
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=rng)
    kept = pictures.but(x=x, columns={"caption": np.array(OTHERS * 4)})
    return Concept(name="disc", prompts=PROMPTS, instead="star", images=pictures, retained=kept)


def batch(model, images, seed=0):
    """A batch of images, a step, and the noisy images, times and noise that an objective draws in it."""
    told = as_told(model, images)
    step = Step(run=Run(seed=seed), model=model)
    x = told.x.float() / 255
    t, noise = drawn(2 * x - 1, model, step.rng("noise"))
    return x, told.y, step, model.schedule.diffuse(2 * x - 1, t, noise), t, noise


def predictions(model, prompts, n=24, seed=5):
    """What a model predicts of fixed noisy images when told each text, and when told nothing."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 8, 8, generator=rng)
    t = torch.randint(1, 21, (n,), generator=rng)
    with torch.no_grad():
        told = [model(x, t, model.context([prompt]).expand(n, -1)) for prompt in prompts]
        return torch.stack(told), model(x, t, model.nothing(n))


def gap(a, b):
    return float((a - b).square().mean())


# --- ESD ---------------------------------------------------------------------------------------------------------


def states(model, prompts=PROMPTS):
    rng = torch.Generator().manual_seed(2)
    x_t, t, y = torch.randn(6, 3, 8, 8, generator=rng), torch.randint(1, 21, (6,), generator=rng), torch.arange(6) % 2
    return y, x_t, t, Step(model=model, columns={"x_t": x_t, "t": t})


def test_esd_with_eta_0_has_nothing_to_learn_and_with_1_predicts_what_it_predicts_untold(model):
    y, x_t, t, step = states(model)
    told = model.context(PROMPTS)
    zero = _Away(ESD(eta=0), copy.deepcopy(model), told, told)
    assert zero(model, x_t, y, step) == 0
    one = _Away(ESD(eta=1), copy.deepcopy(model), told, told)
    with torch.no_grad():
        torch.testing.assert_close(one.target(x_t, t, told[y], told[y]), model(x_t, t, model.nothing(6)))
        expected = (model(x_t, t, told[y]) - model(x_t, t, model.nothing(6))).square().mean()
    torch.testing.assert_close(one(model, x_t, y, step).detach(), expected)


def test_esd_may_take_a_concept_out_of_another_text(model):
    y, x_t, t, _ = states(model)
    erased, told = model.context(["disc", "disc"]), model.context(["red disc"] * 2)
    with torch.no_grad():
        target = _Away(ESD(eta=2), model, erased, told).target(x_t, t, erased[y], told[y])
        pull = model(x_t, t, erased[y]) - model(x_t, t, model.nothing(6))
        torch.testing.assert_close(target, model(x_t, t, told[y]) - 2 * pull)


def test_esd_takes_its_noisy_images_from_the_originals_drawings(model):
    """Those at the last time are the noise that a drawing begins with; nearer to the image there is ever less noise."""
    method = ESD(steps=8, batch_size=8, per_path=4, ddim_steps=4)
    images = method._on_the_way(model, PROMPTS, Run())
    assert len(images) == 64
    t = images.columns["t"]
    assert sorted(set(t.tolist())) == [5, 10, 15, 20]
    assert torch.bincount(t)[[5, 10, 15, 20]].tolist() == [16] * 4
    start = torch.randn(16, 3, 8, 8, generator=Run().rng("start"))
    assert torch.equal(images.columns["x_t"][t == 20], start)
    one_each = ESD(steps=8, batch_size=8, ddim_steps=4)._on_the_way(model, PROMPTS, Run())
    assert len(one_each) == 64
    assert torch.bincount(one_each.columns["t"])[[5, 10, 15, 20]].max() < 64


def test_esd_brings_the_concept_to_what_is_predicted_untold(model):
    told, nothing = predictions(model, PROMPTS)
    method = ESD(steps=40, batch_size=16, per_path=5, ddim_steps=5, optimizer=FAST)
    after, _ = predictions(method(model, Concept(name="disc", prompts=PROMPTS), run=Run()), PROMPTS)
    assert gap(after, nothing) < 0.6 * gap(told, nothing)


# --- MiM-MU ------------------------------------------------------------------------------------------------------


def test_the_loss_of_mim_mu_is_the_integrand_of_the_mutual_information(model, pictures):
    x, y, step, x_t, t, _ = batch(model, pictures)
    context = model.context(PROMPTS)
    loss = _Untold(MiMMU(), copy.deepcopy(model), context)(model, x, y, step)
    with torch.no_grad():
        expected = (model(x_t, t, context[y]) - model(x_t, t, model.nothing(16))).square().mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert expected > 0


def test_an_empty_text_has_no_information_to_eliminate(model, pictures):
    x, y, step, *_ = batch(model, pictures)
    loss = _Untold(MiMMU(), copy.deepcopy(model), model.context(["", ""]))(model, x, y, step)
    assert loss == 0
    gradients = torch.autograd.grad(loss, list(trainable(model, "all").values()), allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


class Mixture(nn.Module):
    """The exact noise of a mixture of two normal distributions in one dimension, or of one of them when told."""

    means, sd = (-1.0, 1.0), 0.5

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def log_densities(self, x, t):
        signal, noise = self.schedule.signal(t, x), self.schedule.noise(t, x)
        var = signal**2 * self.sd**2 + noise**2
        parts = [-((x - signal * m) ** 2) / (2 * var) - 0.5 * (2 * math.pi * var).log() for m in self.means]
        return torch.stack(parts, -1)

    def forward(self, x_t, t, context):
        with torch.enable_grad():
            x = x_t.detach().double().requires_grad_()
            parts = self.log_densities(x, t)
            untold = parts.logsumexp(-1) - math.log(2)
            column = context.view(-1, *[1] * (x.ndim - 1))
            density = torch.where(column == 2, untold, torch.where(column == 1, parts[..., 1], parts[..., 0]))
            (score,) = torch.autograd.grad(density.sum(), x)
        return (-self.schedule.noise(t, x) * score).to(x_t)


def test_a_step_of_the_jacobian_free_loss_makes_the_concept_less_likely():
    schedule = NoiseSchedule(steps=100)
    exact = Diffusion(Mixture(schedule), schedule, image_shape=(1, 1, 1), classes=("low", "high")).eval()
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(500, 1, 1, 1, dtype=torch.float64, generator=rng).requires_grad_()
    t = torch.randint(20, 80, (500,), generator=rng)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=rng)
    context = torch.ones(500, dtype=torch.int64)

    def log_ratio(x):
        parts = exact.denoiser.log_densities(schedule.diffuse(x, t, noise), t)
        return (parts[..., 1] - parts.logsumexp(-1) + math.log(2)).flatten()

    loss = against_the_concept(exact, x0, t, noise, context)
    (gradient,) = torch.autograd.grad(loss, x0)
    with torch.no_grad():
        before, after = log_ratio(x0), log_ratio(x0 - 0.05 * len(x0) * gradient)
    assert (after <= before).all()
    assert after.mean() < before.mean() - 0.01


@pytest.mark.parametrize("mode", ["score-match", "jacobian-free"])
def test_mim_mu_moves_cross_attention_alone(mode, model, concept):
    method = MiMMU(steps=3, mode=mode, optimizer=FAST)
    new = method(model, concept, run=Run())
    moved = {n for n, v in new.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
    assert moved <= set(trainable(model, "cross-attention"))
    assert moved


def test_mim_mu_lowers_the_information_in_the_concepts_texts(model, concept):
    told, nothing = predictions(model, PROMPTS)
    new = MiMMU(steps=40, batch_size=16, optimizer=FAST)(model, concept, run=Run())
    assert gap(predictions(new, PROMPTS)[0], nothing) < 0.6 * gap(told, nothing)


def denoising_error(model, images):
    told = as_told(model, images)
    rng = torch.Generator().manual_seed(4)
    x0 = 2 * told.x.float() / 255 - 1
    t, noise = torch.randint(1, 21, (len(x0),), generator=rng), torch.randn(x0.shape, generator=rng)
    with torch.no_grad():
        return float(model.errors(x0, t, noise, model.context(told.classes)[told.y]).mean())


def test_compensation_is_off_by_default_and_goes_on_learning_other_pictures_when_on(model, concept):
    assert MiMMU().compensation is None
    plain, held = (
        MiMMU(steps=15, batch_size=16, optimizer=FAST, compensation=w)(model, concept, run=Run()) for w in (None, 1.0)
    )
    assert denoising_error(held, concept.retained) < 0.98 * denoising_error(plain, concept.retained)


# --- Forget-Me-Not -----------------------------------------------------------------------------------------------


def test_the_words_of_the_concept_are_found_in_every_text(model):
    places = places_of(model, ["red disc", "disc", "star"], "disc")
    assert [row.nonzero().flatten().tolist() for row in places] == [[2], [1], []]
    both = places_of(model, ["red disc"], "red disc")
    assert both.nonzero()[:, 1].tolist() == [1, 2]


def test_the_loss_of_fmn_is_the_norm_of_the_attention_to_those_words(model, pictures):
    x, y, step, x_t, t, _ = batch(model, pictures)
    context, places = model.context(PROMPTS), places_of(model, PROMPTS, "disc")
    loss = _Resteer(ForgetMeNot(), context, places, pure=False)(model, x, y, step)
    with torch.no_grad(), watch_attention(model) as seen:
        model(x_t, t, context[y])
    assert len(seen) == 4
    squares = sum(float(w.probabilities[:, :, :, 2].square().sum()) for w in seen)  # "disc" is the second word
    assert float(loss.detach()) == pytest.approx(math.sqrt(squares), rel=1e-5)


def attention_mass(model, prompts=PROMPTS):
    rng = torch.Generator().manual_seed(9)
    x, t = torch.randn(16, 3, 8, 8, generator=rng), torch.randint(1, 21, (16,), generator=rng)
    y = torch.arange(16) % len(prompts)
    with torch.no_grad(), watch_attention(model) as seen:
        model(x, t, model.context(prompts)[y])
    return float(attention_on(seen, places_of(model, prompts, "disc")[y]).mean())


@pytest.mark.parametrize("given", [True, False], ids=["pictures", "noise"])
def test_fmn_halves_the_attention_to_the_concept(given, model, concept):
    what = concept if given else Concept(name="disc", prompts=PROMPTS)
    new = ForgetMeNot(steps=35, batch_size=8, optimizer=AdamW(lr=1e-2, weight_decay=0.01))(model, what, run=Run())
    assert attention_mass(new) < 0.5 * attention_mass(model)


def test_fmn_wants_the_word_in_a_text(model):
    with pytest.raises(UserError, match="'disc' stands in none of the texts"):
        ForgetMeNot()(model, Concept(name="disc", prompts=("red star",)), run=Run())


# --- SalUn -------------------------------------------------------------------------------------------------------


def test_the_target_of_salun_is_the_models_own_prediction_for_the_other_text(model, pictures):
    x, y, step, x_t, t, _ = batch(model, pictures)
    asked, instead = model.context(PROMPTS), model.context(["red star", "blue star"])
    objective = _Instead(SalUnDiffusion(), asked, instead)
    with torch.no_grad():
        expected = (model(x_t, t, asked[y]) - model(x_t, t, instead[y])).square().mean()
    torch.testing.assert_close(objective(model, x, y, step).detach(), expected)
    assert _Instead(SalUnDiffusion(), asked, asked)(model, x, y, step) == 0


def test_the_other_weights_stay_exactly_where_they_were(model, concept, pictures):
    method = SalUnDiffusion(steps=5, batch_size=8, optimizer=Adam(lr=1e-2, weight_decay=0.1), share=0.3)
    new = method(model, concept, run=Run())
    masks = method.salient(model, as_told(model, pictures), run=Run())
    total = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * total)
    assert total == sum(p.numel() for p in trainable(model, "all").values())
    before, after = dict(model.named_parameters()), dict(new.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], before[name][~mask])
    moved = sum(int((after[n] != before[n]).sum()) for n in masks)
    assert moved > 0.9 * round(0.3 * total)


def test_salun_draws_the_other_thing(model, concept):
    told, _ = predictions(model, PROMPTS)
    other, _ = predictions(model, ("red star", "blue star"))
    method = SalUnDiffusion(steps=40, batch_size=16, optimizer=FAST, alpha=0.0)
    new = method(model, concept, run=Run())
    assert gap(predictions(new, PROMPTS)[0], predictions(new, ("red star", "blue star"))[0]) < 0.6 * gap(told, other)


# --- SFR-on ------------------------------------------------------------------------------------------------------


def test_untempered_the_ascent_is_on_the_plain_mean_and_tempered_it_spares_what_is_forgotten():
    losses = torch.tensor([1.0, 4.0, 16.0], requires_grad=True)
    torch.testing.assert_close(adaptive_errors(losses, 0.0), -losses.mean())
    (gradient,) = torch.autograd.grad(adaptive_errors(losses, 0.5), losses)
    torch.testing.assert_close(gradient, -torch.tensor([4.0, 2.0, 1.0]) / 7)


def test_the_two_kinds_of_steps_of_sfron_are_sums_over_pixels(model, pictures):
    x, y, step, x_t, t, noise = batch(model, pictures)
    objective = _UpAndDown(SFRonDiffusion(drop=0.0, temper=0.0, ascent=10.0, steps=4), model.context(PROMPTS))
    with torch.no_grad():
        each = (model(x_t, t, model.context(PROMPTS)[y]) - noise).square().flatten(1).sum(1)
        for forgetting, index, expected in ((True, 0, -10), (False, 1, 1), (True, 4, -5), (False, 5, 1)):
            at = Step(model=model, index=index, columns={"forget": torch.full((16,), forgetting)})
            at.rng = step.rng
            torch.testing.assert_close(objective(model, x, y, at), expected * each.mean())


def test_sfron_unlearns_the_noise_of_the_concept_and_keeps_that_of_others(model, concept):
    new = SFRonDiffusion(steps=25, batch_size=16, optimizer=Adam(lr=1e-3))(model, concept, run=Run())
    risen = denoising_error(new, concept.images) - denoising_error(model, concept.images)
    assert risen > denoising_error(new, concept.retained) - denoising_error(model, concept.retained)


# --- Selective Amnesia -------------------------------------------------------------------------------------------

SA = {"batch_size": 16, "fisher_samples": 3, "fisher_times": 5, "ddim_steps": 4}


def test_the_penalty_is_nothing_at_the_start_and_quadratic_from_there(model, concept):
    original = copy.deepcopy(model)
    information = {name: torch.full_like(p, 2.0) for name, p in trainable(model, "all").items()}
    told = as_told(model, concept.retained)
    args = (model, told.x.float() / 255, told.y, Step(model=model))
    contexts = model.context(PROMPTS), model.context(told.classes)
    with torch.no_grad():
        free = _Amnesia(SelectiveAmnesia(penalty=3), original, *contexts, {})(*args)
        held = _Amnesia(SelectiveAmnesia(penalty=3), original, *contexts, information)
        torch.testing.assert_close(held(*args), free)
        original.denoiser.last.bias += 0.5  # a move of as much, seen from the model; predictions stay
        torch.testing.assert_close(held(*args), free + 3 * 2 * 3 * 0.25)


def test_noise_is_what_the_concept_is_to_look_like(model, concept):
    told = as_told(model, concept.retained)
    x = told.x.float() / 255
    objective = _Amnesia(SelectiveAmnesia(), model, model.context(PROMPTS), model.context(told.classes), {})
    noise, of = objective.surrogate(x.repeat(50, 1, 1, 1), Step(model=model))
    assert noise.shape[1:] == (3, 8, 8)
    assert 0 <= noise.min() < 0.01
    assert 0.99 < noise.max() <= 1
    assert noise.mean() == pytest.approx(0.5, abs=0.01)
    assert torch.bincount(of).tolist() == pytest.approx([400, 400], abs=80)


def test_a_heavy_penalty_freezes_what_matters(model, concept):
    def move(penalty):
        method = SelectiveAmnesia(steps=25, optimizer=Adam(lr=1e-3), penalty=penalty, **SA)
        new = method(model, concept, run=Run())
        pairs = zip(new.parameters(), model.parameters(), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs)

    assert move(1e9) < 0.25 * move(0.0)


def test_something_else_may_be_drawn_for_the_concept(model, concept):
    method = SelectiveAmnesia(steps=2, surrogate="instead", samples=8, penalty=0.0, **SA)
    assert method(model, concept, run=Run()) is not model
    with pytest.raises(UserError, match="drawn in the place of 'disc'"):
        method(model, Concept(name="disc", retained=concept.retained), run=Run())


# --- parts from other libraries ----------------------------------------------------------------------------------


class _Words:
    """A tokenizer in the manner of CLIP's: padded with the end."""

    model_max_length = 6
    words = ("<start>", "<end>", "red", "disc", "star")

    def __call__(self, texts, **named):
        rows = [[0, *(self.words.index(w) for w in text.split()), 1] for text in texts]
        return SimpleNamespace(input_ids=torch.tensor([(row + [1] * 6)[:6] for row in rows]))


class _Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 12), nn.Linear(12, 12)

    def get_input_embeddings(self):
        return self.table

    def forward(self, ids):
        return SimpleNamespace(last_hidden_state=self.mix(self.table(ids)))


class _Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 2
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(12, 8), nn.Linear(12, 8)

    def forward(self, x, context):
        q, k, v = (
            t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return ((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attn2, self.last = nn.Conv2d(4, 8, 1), _Attends(), nn.Conv2d(8, 4, 1)

    def forward(self, x, t, encoder_hidden_states):
        h = self.first(x) + t.view(-1, 1, 1, 1) / 100
        h = h + self.attn2(h.flatten(2).transpose(1, 2), encoder_hidden_states).transpose(1, 2).reshape(h.shape)
        return SimpleNamespace(sample=self.last(h))


class _Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=0.2)
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.down(x)))

    def decode(self, z):
        return SimpleNamespace(sample=self.up(z))


@pytest.fixture
def stable():
    torch.default_generator.manual_seed(0)
    scheduler = SimpleNamespace(alphas_cumprod=(1 - torch.linspace(1e-3, 0.3, 30)).cumprod(0))
    return plugged(_Net(), scheduler, tokenizer=_Words(), text_encoder=_Text(), vae=_Vae(), image_shape=(3, 16, 16))


@pytest.mark.parametrize(
    "method",
    [
        ESD(steps=3, batch_size=4, ddim_steps=3, optimizer=FAST),
        ForgetMeNot(steps=3, weights="cross-attention", optimizer=FAST),
        MiMMU(steps=3, samples=4, ddim_steps=3, optimizer=FAST),
        SalUnDiffusion(steps=3, samples=4, ddim_steps=3, optimizer=FAST),
        SelectiveAmnesia(steps=3, samples=4, optimizer=FAST, **{**SA, "batch_size": 4}),
        SFRonDiffusion(steps=3, samples=4, batch_size=4, ddim_steps=3, optimizer=FAST),
    ],
    ids=lambda m: m.id,
)
def test_parts_in_the_manner_of_diffusers_are_unlearnt_like_any_other(method, stable):
    before = copy.deepcopy(stable.state_dict())
    what = Concept(name="disc", prompts=("red disc", "disc"), instead="star", others=("red star", "star"))
    new = method(stable, what, run=Run())
    moved = {n for n, v in new.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert all(n.startswith("denoiser.unet.") for n in moved)
    if method.weights == "cross-attention":
        assert all(".attn2." in n for n in moved)
    assert all(torch.equal(before[n], v) for n, v in stable.state_dict().items())


@pytest.mark.parametrize("attack", [UnlearnDiffAtk, P4D], ids=lambda a: a.id)
def test_parts_in_the_manner_of_diffusers_are_attacked_like_any_other(attack, stable):
    before = weights_hash(stable)
    method = attack(tokens=2, times=2, iterations=2, ddim_steps=2)
    found = method(
        stable,
        ["red disc", "disc"],
        shows=lambda x: torch.zeros(len(x), dtype=torch.bool),
        original=copy.deepcopy(stable),
        run=Run(),
    )
    assert weights_hash(stable) == before
    assert found.tokens[:, 0].tolist() == [0, 0]
    assert found.tokens[0, 3:].tolist() == [2, 3, 1]
    assert found.tokens[1, 3:].tolist() == [3, 1, 1]
    assert found.x.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="leaves room for 2 tokens of 6, and 3"):
        attack(tokens=3)(stable, ["red disc"], shows=bool, original=stable, run=Run())
