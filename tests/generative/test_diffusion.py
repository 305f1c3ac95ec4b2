"""The model as a whole: what it is told, what it learns by, and how it is kept."""

import dataclasses
import json

import pytest
import torch

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.generative import (
    DDPMDDIMCFG,
    VAE,
    Blueprint,
    Diffusion,
    NoisePrediction,
    NoiseSchedule,
    UNet,
    VAELoss,
    build_diffusion,
    contexts,
    ddpm_ddim_cfg,
    load_diffusion,
    sample,
    save_diffusion,
    train_vae,
)
from holdfast.generative.noise_prediction import drawn, dropped
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import ClipGradient, Step

SMALL = {"width": 8, "steps": 50, "batch_size": 32}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_texts_are_told_as_tokens_or_as_vectors(by_text):
    x, t = noise(2, 3, 8, 8), torch.tensor([3, 9])
    tokens = by_text.context(["red disc", "blue star"])
    with torch.no_grad():
        torch.testing.assert_close(by_text(x, t, by_text.text(tokens)), by_text(x, t, tokens))
    assert torch.equal(by_text.context(["", ""]), by_text.nothing(2))


def test_classes_are_told_by_name_or_label(by_class):
    assert by_class.context(["c", "", "a"]).tolist() == [2, 4, 0]
    assert by_class.context(torch.tensor([2, 4, 0])).tolist() == [2, 4, 0]
    assert by_class.nothing(2).tolist() == [4, 4]


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_the_errors_are_those_of_what_is_predicted(by_class, predicts):
    by_class.predicts = predicts
    x0, e, t = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1), torch.tensor([1, 7, 20])
    context = torch.tensor([0, 1, 2])
    signal, spread = (by_class.schedule.abar[t] ** 0.5).float(), ((1 - by_class.schedule.abar[t]) ** 0.5).float()
    a, b = signal.view(-1, 1, 1, 1), spread.view(-1, 1, 1, 1)
    target = {"eps": e, "x0": x0, "v": a * e - b * x0}[predicts]
    with torch.no_grad():
        expected = (by_class(a * x0 + b * e, t, context) - target).square().mean((1, 2, 3))
        torch.testing.assert_close(by_class.errors(x0, t, e, context), expected)


def test_the_objective_is_the_mean_of_the_errors_at_its_own_draws(by_class):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    context = torch.tensor([0, 1, 2, 3, 0, 1])
    step = Step(model=by_class, columns={"context": context}, index=4)
    with torch.no_grad():
        loss = NoisePrediction(drop=0.5)(by_class, x, context, step)
        t, e = drawn(x, by_class, step.rng("noise"))
        told = dropped(by_class, context, 0.5, step.rng("drop"))
        torch.testing.assert_close(loss, by_class.errors(2 * x - 1, t, e, told).mean())
    assert not torch.equal(told, context)


def test_each_image_is_left_untold_by_itself(by_text):
    context = by_text.context(["red disc", "blue star"] * 2000)
    told = dropped(by_text, context, 0.25, torch.Generator().manual_seed(0))
    lost = (told == by_text.nothing(1)).all(1)
    assert 0.22 < lost.float().mean() < 0.28
    assert torch.equal(told[~lost], context[~lost])
    assert torch.equal(dropped(by_text, context, 0.0, torch.Generator()), context)
    assert torch.equal(dropped(by_text, context, 1.0, torch.Generator()), by_text.nothing(4000))


def test_all_times_are_drawn_and_no_other(by_class):
    t, e = drawn(torch.zeros(4000, 1, 2, 2), by_class, torch.Generator().manual_seed(0))
    assert t.unique().tolist() == list(range(1, 21))
    assert abs(float(e.std()) - 1) < 0.02


def test_training_lowers_the_loss_below_that_of_knowing_nothing(digits):
    model = DDPMDDIMCFG(updates=120, ema=0.9, **SMALL)(digits.train, run=Run())
    x0, t, e = 2 * digits.test.x - 1, torch.full((len(digits.test),), 25), noise(len(digits.test), 1, 8, 8)
    with torch.no_grad():
        errors = model.errors(x0, t, e, digits.test.y)
    assert errors.mean() < 0.5  # answering nothing gives 1
    assert not model.training
    assert model.conditioning == "class"
    assert model.classes == digits.train.classes


def test_bf16_is_not_used_in_training_whatever_the_run_says(digits):
    few = digits.train.select(slice(0, 64))
    method = DDPMDDIMCFG(updates=2, **SMALL)
    half, whole = (method(few, run=Run(precision=p)) for p in ("bf16", "fp32"))
    assert weights_hash(half) == weights_hash(whole)


def test_a_stopped_training_goes_on_to_the_same_bits(captioned, tmp_path, monkeypatch):
    method = DDPMDDIMCFG(updates=6, batch_size=8, width=8, steps=20, cross_attention=(1,))
    whole = method(captioned, run=Run())

    class ClipsAndStops(ClipGradient):
        def on_epoch(self, state):
            if state.epoch == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ddpm_ddim_cfg, "ClipGradient", ClipsAndStops)
        with pytest.raises(KeyboardInterrupt):
            method(captioned, run=Run(out=tmp_path))
    resumed = method(captioned, run=Run(out=tmp_path))
    assert weights_hash(resumed) == weights_hash(whole)


def test_captions_come_before_classes_unless_told_otherwise(captioned):
    def told(**how):
        return DDPMDDIMCFG(width=8, **how).untrained(captioned, run=Run())

    assert told().conditioning == "text"
    assert told(conditioning="class").classes == ("disc", "star")
    assert told(conditioning="none").nothing(2) is None
    assert told().text.tokenizer.words == ("blue", "disc", "red", "star")
    assert told(tokens=9).text.tokenizer.length == 9
    with pytest.raises(UserError, match="needs a column 'caption'"):
        DDPMDDIMCFG(conditioning="text").untrained(captioned.but(columns={}), run=Run())


def test_the_contexts_of_images_are_what_the_model_is_told(captioned, by_text, by_class):
    assert torch.equal(contexts(by_text, by_text_images(captioned))[0], by_text.context(["red disc"])[0])
    assert torch.equal(contexts(by_class, captioned), captioned.y)


def by_text_images(images):
    return images.but(columns={"caption": [c.removeprefix("a picture of a ") for c in images.columns["caption"]]})


@pytest.mark.parametrize("told", ["none", "class", "text"])
@pytest.mark.parametrize("latent", [None, 2])
def test_what_is_saved_is_what_is_loaded(captioned, tmp_path, told, latent):
    method = DDPMDDIMCFG(updates=2, batch_size=8, width=8, steps=20, conditioning=told, latent=latent)
    model = method(captioned, run=Run())
    save_diffusion(model, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]
    again = load_diffusion(tmp_path / "m")
    assert weights_hash(again) == weights_hash(model)
    of = {"none": None, "class": ["disc"], "text": ["a red disc"]}[told]
    first, second = (sample(m, 2, of=of, sampler="ddim(steps=4)", run=Run()) for m in (model, again))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    if latent:
        assert model.latent_shape == (4, 4, 4)
        assert model.autoencoder.scale != 1


def test_broken_files_are_named(by_class, tmp_path):
    with pytest.raises(UserError, match=r"model\.json: no such file"):
        load_diffusion(tmp_path)
    save_diffusion(by_class, tmp_path)
    path = tmp_path / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"width": "wide"}))
    with pytest.raises(UserError, match=r"model\.json: width is not as it should be"):
        load_diffusion(tmp_path)
    path.write_text(json.dumps(content | {"width": 16}))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_diffusion(tmp_path)
    loose = Diffusion(UNet(channels=1, width=8), NoiseSchedule(), image_shape=(1, 8, 8))
    with pytest.raises(UserError, match="parts from elsewhere"):
        save_diffusion(loose, tmp_path)


def test_first_weights_belong_to_the_seed_and_leave_the_global_generator_alone():
    blueprint = Blueprint(image_shape=(1, 8, 8), width=8)
    state = torch.get_rng_state()
    one, same, other = (weights_hash(build_diffusion(blueprint, run=Run(seed=s))) for s in (0, 0, 1))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_the_average_s_schedule_is_the_model_s(digits):
    method = DDPMDDIMCFG(updates=8, ema=0.5, **SMALL)
    model = method(digits.train.select(slice(0, 64)), run=Run())
    assert torch.equal(model.schedule.abar, NoiseSchedule(steps=50).abar)


def test_an_autoencoder_learns_to_give_images_back(digits):
    few = digits.train.select(slice(0, 256))
    vae = train_vae(few, factor=2, latent=4, epochs=12, batch_size=32, run=Run())
    x = 2 * digits.test.x - 1
    with torch.no_grad():
        z = vae.encode(x)
        error = (vae.decode(z) - x).abs().mean()
        latents = vae.encode(2 * few.x - 1)
    assert z.shape == (len(x), 4, 4, 4)
    assert error < 0.7 * (x - x.mean(0)).abs().mean()
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_the_loss_of_an_autoencoder_is_l1_and_the_divergence_from_the_prior():
    vae = VAE(channels=1, factor=2, width=8)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        plain, weighted = (float(VAELoss(kl=k)(vae, x, y, Step(model=vae))) for k in (0.0, 0.5))
        mean, log_variance = vae.posterior(2 * x - 1)
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_variance / 2).exp()), prior).mean()
    assert weighted - plain == pytest.approx(0.5 * float(kl), rel=1e-4)


def test_latents_are_not_clipped_and_pixels_are(captioned, by_text):
    latent = DDPMDDIMCFG(width=8, steps=20, latent=2).untrained(captioned, run=Run())
    assert by_text.clips
    assert not latent.clips
    assert all(not p.requires_grad for p in latent.autoencoder.parameters())
    assert {n for n, _ in latent.denoising_parameters()} == {n for n, p in latent.named_parameters() if p.requires_grad}


def test_mistakes_are_said(digits, by_class):
    few = digits.train.select(slice(0, 8))
    odd = few.but(x=few.x[..., :7])
    for method, images, said in (
        (DDPMDDIMCFG(zero_terminal=True), few, "must predict v or x0"),
        (DDPMDDIMCFG(latent=2), odd, "images of 8x7 cannot shrink by 2"),
    ):
        with pytest.raises(UserError, match=said):
            method(images, run=Run())
    for objective in (NoisePrediction(), VAELoss()):
        with pytest.raises(UserError, match="it trains a"):
            objective(torch.nn.Identity(), few.x, few.y, Step(model=torch.nn.Identity()))
    with pytest.raises(UserError, match="classes or texts, not both"):
        Diffusion(by_class.denoiser, NoiseSchedule(), image_shape=(1, 8, 8), classes=("a",), text=object())


def test_its_spec_builds_it_again():
    method = DDPMDDIMCFG(updates=7, multipliers=(1, 2, 2), cross_attention=(1, 2), schedule="cosine", latent=4)
    assert catalog.build(str(method)) == method
    assert dataclasses.replace(method, latent=None).latent is None
