"""Laws that every attack keeps, whatever the model and the images."""

import dataclasses
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.evasion import Evasion
from holdfast.evasion.balls import SLACK, distance
from holdfast.methods import Attack, Method
from holdfast.run import Run

catalog.load_all()
ATTACKS = sorted(
    (m for m in Method.registry.values() if issubclass(m, Attack) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)


def small(attack, **more):
    """An attack of the class with a budget for tests: a wide ball and few steps."""
    wanted = {"eps": 0.1, "steps": 4, "queries": 25, "epochs": 2, "pairs": 2}
    wanted |= {"first_batches": 2, "batches": 1, "batch_size": 8, "trials": 3, **more}
    names = {f.name for f in dataclasses.fields(attack)}
    if getattr(attack, "neighbours", 0):
        wanted["neighbours"] = 2
    if attack.id == "boundary":  # a walk of tiny steps
        wanted["queries"] = 200
    return attack(**{name: value for name, value in wanted.items() if name in names})


def variants(attack):
    """The attack in each of its norms, and with everything on that can be switched on."""
    return [*in_each_norm(attack), *with_extras(attack)]


def with_extras(attack):
    extras = {"restarts": 3, "targets": 2, "momentum": 0.75, "loss": "margin"}
    more = {f.name: extras[f.name] for f in dataclasses.fields(attack) if f.name in extras}
    return [small(attack, **more)] if more else []


def in_each_norm(attack):
    norm = typing.get_type_hints(attack).get("norm")
    if norm is None or "norm" not in {f.name for f in dataclasses.fields(attack)}:
        return [small(attack)]
    return [small(attack, norm=name, eps=0.1 if name == "linf" else 0.8) for name in typing.get_args(norm)]


VARIANTS = [variant for attack in ATTACKS for variant in variants(attack)]


class Net(nn.Module):
    """A small network with batch norm and dropout that computes in float64.

    Rounding of float32 differs between batch sizes; that of float64 does too, but far below what float32 images show.
    """

    def __init__(self, channels=3, seed=0, classes=4, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, stride=2, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(32, classes),
            )
            for module in self.body:
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean, std=0.1)
                    nn.init.uniform_(module.weight, 0.5, 2)
        self.dtype = dtype
        self.to(dtype)

    def forward(self, x):
        return self.body(x.to(self.dtype) - 0.5)


def batch(n=12, seed=0, channels=3, height=9, width=7):
    """Images, and labels of which two thirds are the model's own predictions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, height, width, generator=generator)
    with torch.no_grad():
        y = Net(channels).eval()(x).argmax(1)
    y[::3] = torch.randint(4, y[::3].shape, generator=generator)
    return x, y


def judged(model, x):
    model.eval()
    with torch.no_grad():
        return model(x).argmax(1)


each_variant = pytest.mark.parametrize("attack", VARIANTS, ids=str)
each_own = pytest.mark.parametrize("attack", [v for v in VARIANTS if not v.joint], ids=str)
each_attack = pytest.mark.parametrize("attack", [small(a) for a in ATTACKS], ids=str)


def test_the_catalogue_has_the_attacks():
    assert {"fgsm", "pgd", "square"} <= {a.id for a in ATTACKS}


@each_variant
@settings(max_examples=8)
@given(
    n=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    scale=st.floats(0, 1),
    double=st.booleans(),
    last=st.booleans(),
    channels=st.sampled_from([1, 3]),
)
def test_results_stay_in_the_ball_and_the_box_and_look_like_the_input(attack, n, seed, scale, double, last, channels):
    x, y = batch(n, seed % 100, channels)
    x[0].round_()  # pixels at the very edge of the box
    x = x.double() if double else x
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    given_x = x.clone()
    attack = dataclasses.replace(attack, eps=attack.eps * scale)
    x_adv = attack(Net(channels), x, y, run=Run(seed=seed))
    assert torch.equal(x, given_x)
    assert (x_adv.dtype, x_adv.shape, x_adv.device, x_adv.stride()) == (x.dtype, x.shape, x.device, x.stride())
    assert not x_adv.requires_grad
    assert x_adv.data_ptr() != x.data_ptr()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    offset = (x_adv.double() - x.double()).flatten(1)
    norms = torch.linalg.vector_norm(offset, {"linf": torch.inf, "l2": 2, "l1": 1}[attack.norm], dim=1)
    assert norms.max() <= attack.eps + SLACK[attack.norm]


@each_variant
def test_a_radius_of_zero_returns_the_images_bit_for_bit(attack):
    x, y = batch()
    outcome = dataclasses.replace(attack, eps=0).run(Net(), x, y, run=Run())
    assert torch.equal(outcome.x_adv, x)
    assert torch.equal(outcome.success, ~outcome.correct)


@each_variant
def test_success_is_what_the_model_says_in_float32(attack):
    x, y = batch(24)
    for precision in ("fp32", "bf16"):
        model = Net(dtype=torch.float32)
        outcome = attack.run(model, x, y, run=Run(precision=precision))
        wrong = judged(model, outcome.x_adv) != y
        assert torch.equal(outcome.success, wrong)
        assert torch.equal(outcome.correct, judged(model, x) == y)
        assert (outcome.success & outcome.correct).any(), "the test needs an attack that succeeds"
        assert outcome.robust_accuracy == pytest.approx(1 - wrong.float().mean().item())
        assert torch.equal(outcome.distance, distance(outcome.x_adv, x, attack.norm))


@each_variant
def test_what_is_misclassified_already_is_returned_as_it_was(attack):
    x, y = batch(24)
    wrong = judged(Net(), x) != y
    outcome = attack.run(Net(), x, y, run=Run())
    assert 0 < wrong.sum() < 24
    assert torch.equal(outcome.x_adv[wrong], x[wrong])
    assert outcome.success[wrong].all()
    assert not outcome.queries[wrong].any()
    assert not outcome.gradients[wrong].any()


@each_variant
def test_a_given_target_is_what_success_means(attack):
    x, y = batch(24)
    target = (y + 1) % 4
    model = Net()
    already = judged(model, x) == target
    outcome = attack.run(model, x, y, run=Run(), target=target)
    assert torch.equal(outcome.success, judged(model, outcome.x_adv) == target)
    assert torch.equal(outcome.x_adv[already], x[already])
    assert torch.equal(attack(model, x, y, run=Run(), target=target), outcome.x_adv)


@pytest.mark.parametrize("attack", [small(a) for a in ATTACKS if not a.joint], ids=str)
def test_with_two_classes_the_other_one_as_target_is_the_untargeted_attack(attack):
    """Not of joint attacks: losses that lead each image the same way weigh the images of a crowd differently."""
    x, _ = batch(16)
    model = Net(classes=2)
    y = judged(model, x)
    untargeted = attack.run(model, x, y, run=Run())
    targeted = attack.run(model, x, y, run=Run(), target=1 - y)
    assert torch.equal(untargeted.success, targeted.success)


@each_variant
def test_the_model_is_left_as_it_was(attack):
    x, y = batch()
    model = Net().train()
    model.body[1].eval()
    model.body[3].weight.requires_grad_(False)
    model.body[0].weight.grad = torch.full_like(model.body[0].weight, 3.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    strides = [p.stride() for p in model.parameters()]
    attack(model, x, y, run=Run())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert strides == [p.stride() for p in model.parameters()]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["body.3.weight"]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["body.0.weight"]
    assert (model.body[0].weight.grad == 3).all()


@each_attack
def test_the_model_is_left_as_it_was_when_the_attack_fails(attack):
    model = Net().train()
    with pytest.raises(UserError):
        attack(model, torch.rand(2, 5, 9, 7), torch.zeros(2, dtype=torch.int64), run=Run())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@each_attack
def test_equal_runs_give_equal_results_and_leave_the_global_generator_alone(attack):
    x, y = batch()
    torch.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    first = attack.run(Net(), x, y, run=Run(seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.default_generator.manual_seed(2)
    second = attack.run(Net(), x, y, run=Run(seed=5))
    for name in ("x_adv", "success", "queries", "logits"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@each_variant
def test_a_result_does_not_depend_on_the_batch_size(attack):
    x, y = batch(8)
    whole = attack.run(Net(), x, y, run=Run())
    for size in (1, 3):
        parts = attack.run(Net(), x, y, run=Run(batch_size=size))
        for name in ("x_adv", "success", "queries"):
            assert torch.equal(getattr(parts, name), getattr(whole, name)), (size, name)


@each_own
def test_a_result_does_not_depend_on_the_order_or_the_company(attack):
    x, y = batch(17)
    whole = attack.run(Net(), x, y, run=Run())
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))[:11]
    some = attack.run(Net(), x[order], y[order], run=Run())
    for name in ("x_adv", "success", "queries"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[order]), name


@each_attack
def test_it_works_without_gradients_being_recorded(attack):
    x, y = batch()
    model = Net()
    expected = attack(model, x, y, run=Run())
    with torch.no_grad():
        assert torch.equal(attack(model, x, y, run=Run()), expected)
    with torch.inference_mode():
        assert torch.equal(attack(model, x.clone(), y.clone(), run=Run()), expected)


@each_attack
def test_autocast_of_the_caller_does_not_reach_the_attack(attack):
    x, y = batch()
    model = Net(dtype=torch.float32)
    expected = attack(model, x, y, run=Run())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attack(model, x, y, run=Run()), expected)


@each_attack
def test_a_model_without_parameters_can_be_attacked(attack):
    class Means(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2))], 1)

    x, _ = batch()
    y = judged(Means(), x)
    outcome = attack.run(Means(), x, y, run=Run())
    assert outcome.success.any() or attack.joint, "one pattern for all may fool nobody"
    assert torch.equal(outcome.success, judged(Means(), outcome.x_adv) != y)


@each_attack
def test_images_a_model_cannot_be_differentiated_by_are_attacked_all_the_same(attack):
    class Detached(Net):
        def forward(self, x):
            return super().forward(x.detach())

    x, y = batch()
    outcome = attack.run(Detached(), x, y, run=Run())
    assert torch.equal(outcome.success, judged(Detached(), outcome.x_adv) != y)


@each_attack
@pytest.mark.parametrize("n", [1, 2])
def test_a_single_image_will_do(attack, n):
    x, y = batch(n)
    assert attack(Net(), x, y, run=Run()).shape == x.shape


def nan(x, y):
    x[3, 1, 2, 2] = float("nan")
    return x, y


BAD = {
    "NaN": (nan, "the images hold NaN"),
    "too large": (lambda x, y: (x * 255, y), r"must lie in \[0, 1\], got .* to 2"),
    "negative": (lambda x, y: (x - 0.5, y), r"must lie in \[0, 1\], got -0\."),
    "bytes": (lambda x, y: ((x * 255).byte(), y), "must be float32 or float64 .*to_float"),
    "half": (lambda x, y: (x.half(), y), "must be float32 or float64"),
    "empty": (lambda x, y: (x[:0], y[:0]), "nothing to attack"),
    "flat": (lambda x, y: (x.flatten(1), y), r"shape \(N, C, H, W\), got shape \(12, 189\)"),
    "array": (lambda x, y: (x.numpy(), y), "must be one tensor .* got a ndarray"),
    "few labels": (lambda x, y: (x, y[:-1]), r"12 images need labels in a tensor of shape \(12,\), got shape \(11,\)"),
    "float labels": (lambda x, y: (x, y.float()), "labels must be int64, got torch.float32"),
    "class 4 of 4": (lambda x, y: (x, y.clone().fill_(4)), r"labels must lie in 0\.\.3"),
    "class -1": (lambda x, y: (x, y.clone().fill_(-1)), r"labels must lie in 0\.\.3"),
}


@each_attack
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_sentence(attack, change, message):
    x, y = change(*batch())
    with pytest.raises(UserError, match=f"^{attack.id}: .*{message}") as caught:
        attack(Net(), x, y, run=Run())
    assert "\n" not in str(caught.value)


@each_attack
def test_a_target_that_is_the_true_class_is_refused(attack):
    x, y = batch()
    with pytest.raises(UserError, match=f"^{attack.id}: the target of image 0 is its true class"):
        attack(Net(), x, y, run=Run(), target=y)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.id)
@pytest.mark.parametrize(
    ("value", "message"), [(8, "Did you mean 8/255"), (-0.1, "got -0.1"), (float("nan"), "got nan")]
)
def test_a_radius_in_the_wrong_unit_is_refused(attack, value, message):
    # In l_2 a radius of 8 may be meant.
    linf = next((v for v in in_each_norm(attack) if v.norm == "linf"), small(attack))
    if linf.norm != "linf" and value == 8:
        assert dataclasses.replace(linf, eps=value).eps == 8
        return
    with pytest.raises(UserError, match=f"^{attack.id}: eps must be a number .*{message}"):
        dataclasses.replace(linf, eps=value)


@each_variant
def test_the_spec_builds_the_attack_again(attack):
    assert catalog.build(str(attack)) == attack
    assert catalog.build(attack.id) == type(attack)()


def test_every_attack_reports_an_outcome():
    assert all(issubclass(attack, Evasion) for attack in ATTACKS)
