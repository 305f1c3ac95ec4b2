"""DDPM, DDIM and guidance against what must come out."""

import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.generative import DDIM, DDPM, Denoiser, guided, sample, sample_path
from holdfast.generative.ddim import ddim_step
from holdfast.generative.ddpm import ddpm_step
from holdfast.models import weights_hash
from holdfast.run import Run


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("course", ["linear", "cosine", "sigmoid", "quadratic"])
def test_ddim_with_all_steps_and_eta_1_is_ddpm_with_the_small_variance(exact, course):
    model = exact(sd=0.2, course=course, steps=200)
    denoise, run = Denoiser(model=model), Run(seed=3)
    x = noise(5, 1, 4, 4)
    ours = list(DDIM(steps=200, eta=1.0).path(denoise, x, run=run))
    theirs = list(DDPM(variance="small").path(denoise, x, run=run))
    assert len(ours) == len(theirs) == 200
    for (t, a), (s, b) in zip(ours, theirs, strict=True):
        assert t == s
        assert (a - b).abs().max() <= 1e-5


def test_the_step_of_ddpm_is_the_posterior_by_bayes_rule(exact):
    """Mean and small variance of x_{t-1} given x_t and x_0, from the joint normal distribution of the two."""
    schedule = exact(steps=50).schedule
    x0, x_t = 0.3, -0.7
    for t in (2, 10, 50):
        before, now = float(schedule.abar[t - 1]), float(schedule.abar[t])
        # x_t = root(alpha) x_{t-1} + root(1 - alpha) e, and x_{t-1} ~ N(root(before) x0, 1 - before)
        alpha, prior = now / before, 1 - before
        gain = math.sqrt(alpha) * prior / (alpha * prior + 1 - alpha)
        mean = math.sqrt(before) * x0 + gain * (x_t - math.sqrt(alpha * before) * x0)
        variance = prior - gain * math.sqrt(alpha) * prior
        zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
        images = (torch.full((1, 1), v, dtype=torch.float64) for v in (x0, x_t))
        a, b = images
        assert float(ddpm_step(schedule, a, b, t, fresh=zero)) == pytest.approx(mean)
        assert float(ddpm_step(schedule, a, b, t, fresh=one)) == pytest.approx(mean + math.sqrt(variance))
        large = ddpm_step(schedule, a, b, t, variance="large", fresh=one)
        assert float(large) == pytest.approx(mean + math.sqrt(schedule.beta(t)))


def test_the_last_step_adds_no_noise(exact):
    model = exact(steps=10)
    x = noise(2, 1, 4, 4)
    one = ddpm_step(model.schedule, x, x, 1, variance="large", fresh=noise(2, 1, 4, 4, seed=5))
    torch.testing.assert_close(one, x, atol=1e-12, rtol=0)  # abar_0 is 1: all weight is on the image found


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_of_a_single_image_every_path_ends_in_it(exact, steps, spacing):
    model = exact(sd=0.0, steps=100)
    end = DDIM(steps=steps, spacing=spacing)(Denoiser(model=model), noise(4, 1, 4, 4), run=Run())
    assert (end - model.denoiser.point).abs().max() <= 1e-9
    drawn = DDPM()(Denoiser(model=model), noise(4, 1, 4, 4), run=Run())
    assert (drawn - model.denoiser.point).abs().max() <= 1e-9


def test_from_any_time_on_it_ends_in_the_single_image(exact):
    model = exact(sd=0.0, steps=100)
    for t in (1, 7, 60, 99):
        x_t = model.schedule.diffuse(model.denoiser.point, t, noise(3, 1, 4, 4))
        found = Denoiser(model=model)(x_t, t)
        end = ddim_step(model.schedule, found, t, 0)
        assert (end - model.denoiser.point).abs().max() <= 1e-9


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [("ddpm", 0.02), ("ddim(steps=200, eta=0.5)", 0.02), ("ddim(steps=200)", 0.02)]
)
def test_samples_of_normal_data_have_their_mean_and_spread(exact, sampler, tolerance):
    model = exact(sd=0.15, steps=200, shape=(1, 2, 2), double=False)
    x = 2 * sample(model, 4000, sampler=sampler, run=Run(batch_size=4000)) - 1
    assert (x.mean(0) - model.denoiser.point[0]).abs().max() < tolerance
    assert (x.std(0) - 0.15).abs().max() < tolerance


def test_a_step_takes_one_call_of_the_network(exact):
    model = exact(steps=100)
    sample(model, 3, sampler="ddim(steps=20)", run=Run())
    assert model.denoiser.calls == 20
    sample(model, 3, sampler="ddpm", run=Run())
    assert model.denoiser.calls == 120


def test_inverted_and_sampled_again_an_image_is_itself(exact):
    model = exact(sd=0.3, steps=1000)
    denoise, run = Denoiser(model=model), Run()
    x = model.denoiser.point + 0.3 * noise(6, 1, 4, 4, seed=4)
    x = x.clamp(-0.95, 0.95)  # where nothing is clipped on the way
    errors = []
    for steps in (50, 200):
        method = DDIM(steps=steps)
        start = method.invert(denoise, x)
        again = method(denoise, start, run=run)
        errors.append(float((again - x).square().mean().sqrt()))
    assert errors[1] <= 0.05
    assert errors[1] < errors[0]
    assert 0.8 < float(start.std()) < 1.2, "what it was taken back to is as large as noise"


def test_guidance_1_is_the_model_itself_to_the_last_bit(by_class):
    x, t, context = noise(6, 1, 8, 8, dtype=torch.float32), torch.arange(1, 7), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.no_grad():
        assert torch.equal(guided(by_class, x, t, context, 1.0), by_class(x, t, context))
        assert torch.equal(guided(by_class, x, t, context, 0.0), by_class(x, t, by_class.nothing(6)))
        assert not torch.equal(by_class(x, t, context), by_class(x, t, by_class.nothing(6)))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_guidance_moves_along_the_line_from_nothing_to_the_context(by_class, scale):
    x, t, context = noise(4, 1, 8, 8, dtype=torch.float32), torch.tensor([1, 5, 9, 20]), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        told, untold = by_class(x, t, context), by_class(x, t, by_class.nothing(4))
        torch.testing.assert_close(guided(by_class, x, t, context, scale), untold + scale * (told - untold))


def test_guidance_costs_one_pass_of_the_doubled_batch(by_class):
    sizes = []
    handle = by_class.denoiser.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    sample(by_class, 5, of=["a"], guidance=2.0, interval=(6, 14), sampler="ddim(steps=20)", run=Run())
    handle.remove()
    assert sizes == [5] * 6 + [10] * 9 + [5] * 5


def test_an_interval_of_all_times_is_none(by_class):
    def made(**how):
        return sample(by_class, of=["a", "b"], guidance=3.0, sampler="ddim(steps=5)", run=Run(), **how)

    assert torch.equal(made(), made(interval=(1, 20)))
    assert not torch.equal(made(), made(interval=(1, 10)))


def test_the_noise_of_v_and_of_eps_is_guided_alike(by_class):
    """Guiding the velocity and reading off the noise is guiding the noise."""
    by_class.predicts = "v"
    x, t, context = noise(3, 1, 8, 8, dtype=torch.float32), torch.tensor([2, 8, 19]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        of_v = by_class.schedule.estimate(guided(by_class, x, t, context, 2.5), x, t, "v").noise
        told, untold = by_class.noise(x, t, context), by_class.noise(x, t, by_class.nothing(3))
    torch.testing.assert_close(of_v, untold + 2.5 * (told - untold), atol=1e-5, rtol=1e-4)


def test_images_do_not_depend_on_how_many_go_through_at_once(by_class):
    def made(size):
        run = Run(batch_size=size, seed=1)
        return sample(by_class, of=["a", "b", "c", "d", "a"], sampler="ddim(steps=6, eta=0.7)", guidance=2, run=run)

    torch.testing.assert_close(made(2), made(512), atol=1e-5, rtol=1e-5)
    assert torch.equal(made(512), made(512))
    other = sample(by_class, of=["a"] * 5, sampler="ddim(steps=6)", run=Run(seed=2))
    assert not torch.allclose(made(512), other)


def test_images_are_in_the_box_and_the_model_is_as_before(by_class):
    by_class.train()
    before, state = weights_hash(by_class), torch.get_rng_state()
    x = sample(by_class, 3, of="c", guidance=4, run=Run(), sampler="ddim(steps=3)")
    assert x.shape == (3, 1, 8, 8)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert by_class.training
    assert all(p.requires_grad for p in by_class.denoiser.parameters())
    assert weights_hash(by_class) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_path_shows_every_state_and_lets_the_model_learn_in_between(by_class):
    run = Run()
    path = sample_path(by_class, 2, of=["a"], sampler="ddim(steps=4)", run=run)
    seen = []
    for t, x_t in path:
        seen.append(t)
        by_class.train()
        by_class(x_t, torch.full((2,), max(t, 1)), torch.tensor([0, 1])).sum().backward()
        assert by_class.training
    assert seen == [20, 15, 10, 5, 0]
    end = by_class.decode(x_t)
    torch.testing.assert_close(end, sample(by_class, 2, of=["a"], sampler="ddim(steps=4)", run=run))


def test_mistakes_are_said(by_class, exact):
    for words, said in (
        ({"of": ["a", "e"]}, "class 'e' is unknown"),
        ({"of": torch.tensor([7])}, "labels must lie in 0..3"),
        ({"n": 3, "of": ["a", "b"]}, "3 images are wanted, but 2"),
        ({}, "n must be at least 1"),
        ({"n": 2, "guidance": 2.0}, "guidance needs something to show"),
        ({"n": 2, "sampler": "ddim(steps=21)"}, "1 to 20 steps"),
        ({"n": 2, "sampler": "pgd"}, "of kind attack, but a method of kind sampler is needed"),
    ):
        with pytest.raises(UserError, match=said):
            sample(by_class, run=Run(), **words)
    with pytest.raises(UserError, match="no kind in particular"):
        sample(exact(double=False), of=["a"], run=Run())
