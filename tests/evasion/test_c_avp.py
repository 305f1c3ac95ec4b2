"""Prompts for each class, and one for all."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data import Images, load_data, to_float
from holdfast.errors import UserError
from holdfast.evasion import CAVP, PGD, UAVP, DeepFool, prompts
from holdfast.evasion.adaptive import informed
from holdfast.evasion.ascend import ascend
from holdfast.evasion.c_avp import class_margins, own_odds
from holdfast.evasion.guard import save_guard
from holdfast.models import Queryable, check_model, frozen, load_model, predict
from holdfast.run import Run
from holdfast.training import Step

SMALL = {"epochs": 1, "batch_size": 32, "steps": 2, "eps": 0.1, "transforms": ()}


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet").eval()


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def x(digits):
    return to_float(digits.test.x[:24])


def with_prompts(guard, model, seed=0, size=0.5):
    """The guarded model with random prompts."""
    guarded = guard.untrained(model)
    with torch.no_grad():
        guarded.prompts.copy_(size * torch.randn(guarded.prompts.shape, generator=torch.Generator().manual_seed(seed)))
    return guarded


# --- The guarded model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [CAVP(), UAVP()], ids=str)
def test_prompts_of_zeros_change_neither_confidences_nor_answers(guard, model, digits):
    plain, behind = (predict(net, digits.test, run=Run()) for net in (model, guard.untrained(model)))
    assert torch.equal(plain.argmax(1), behind.argmax(1))
    assert torch.allclose(plain.softmax(1), behind.softmax(1), atol=1e-5)


def test_a_prompt_covers_the_border_and_nothing_else(model, x):
    guarded = with_prompts(CAVP(pad=2), model)
    which = torch.arange(24) % 10
    seen = guarded.prompted(x, which)
    assert torch.equal(seen[:, :, 2:6, 2:6], x[:, :, 2:6, 2:6])
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    expected = torch.where(inside, x, (x + guarded.prompts[which]).clamp(0, 1))
    assert torch.equal(seen, expected)
    assert (seen != x)[:, :, ~inside].float().mean() > 0.3


@pytest.mark.parametrize(
    ("pad", "side", "inside"),
    [(None, 32, 16), (8, 32, 16), (None, 8, 4), (None, 3, 1), (3, 28, 22), (4, 8, 0), (4, 7, 0)],
)
def test_the_border_leaves_the_centre_free(pad, side, inside):
    border = prompts._border(side, side + 8, pad)
    assert border.shape == (side, side + 8)
    assert int((border[:, (side + 8) // 2] == 0).sum()) == inside
    assert int((border == 0).sum()) == inside * (inside + 8 if inside else 0)
    assert torch.equal(border, border.flip(0))
    assert torch.equal(border, border.flip(1))


def test_the_answer_is_the_class_whose_own_prompt_makes_the_model_surest_of_it(model, x):
    guarded = with_prompts(CAVP(), model)
    with torch.no_grad():
        own = []
        for k in range(10):
            seen = x.clone()
            ring = torch.ones(8, 8, dtype=torch.bool)
            ring[2:6, 2:6] = False
            seen[:, :, ring] = (x + guarded.prompts[k])[:, :, ring].clamp(0, 1)
            own.append(model(seen).softmax(1)[:, k])
        confidences = torch.stack(own, 1)
        scores = guarded(x)
    assert torch.equal(scores.argmax(1), confidences.argmax(1))
    assert torch.allclose(scores.exp(), confidences, atol=1e-5)
    assert not torch.equal(scores.argmax(1), model(x).argmax(1))


def test_of_two_classes_that_are_certain_the_surer_one_is_the_answer():
    logits = torch.zeros(1, 3, 3)
    for k, height in enumerate((30.0, 45.0, 60.0)):
        logits[0, k, k] = height
    assert (logits.softmax(2).diagonal(dim1=1, dim2=2) == 1).all()  # in float32 they all are
    for answer in (CAVP().answer(logits), own_odds(logits)):
        assert answer.argmax(1).item() == 2
        assert (answer.diff() > 0).all()


def test_one_prompt_for_all_gives_the_models_own_logits_under_it(model, x):
    guarded = with_prompts(UAVP(), model)
    assert guarded.prompts.shape == (1, 1, 8, 8)
    with torch.no_grad():
        seen = guarded.prompted(x, torch.zeros(24, dtype=torch.int64))
        assert torch.allclose(guarded(x), model(seen), atol=1e-6)


def test_a_batch_in_parts_gives_the_same_logits_and_gradients(model, x, monkeypatch):
    guarded = with_prompts(CAVP(), model)
    x = x[:6]
    weights = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    found = []
    for rows in (1024, 25):
        monkeypatch.setattr(prompts, "_ROWS", rows)
        sizes = []
        # Before the pass, since what is computed again may stop as soon as nothing more is needed.
        handle = guarded.model.register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        at = x.clone().requires_grad_()
        scores = guarded(at)
        gradients = torch.autograd.grad((weights * scores).sum(), (at, guarded.prompts))
        handle.remove()
        # DeepFool takes the gradients of several classes at once.
        far = DeepFool(steps=1).run(guarded, x, scores.argmax(1), run=Run()).distance
        found.append((scores, *gradients, far))
        assert max(sizes) <= rows
        assert sum(sizes) == 60 * (2 if rows == 25 else 1)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    check_model(guarded, x)


def test_training_mode_never_reaches_the_network(model):
    guarded = CAVP().untrained(model)
    guarded.train()
    assert guarded.training
    assert not any(module.training for module in guarded.model.modules())
    given = copy.deepcopy(model).train()
    behind = CAVP().untrained(given)
    behind.eval()
    assert not any(module.training for module in behind.modules())
    assert given.training


# --- The loss --------------------------------------------------------------------------------------------------------


def plain_margins(f, y, tau):
    """The three terms as the paper writes them, one image and one class at a time."""
    n, k = len(y), f.shape[1]
    c1 = c2 = c3 = 0.0
    for j in range(k):
        mine = [i for i in range(n) if y[i] == j]
        foreign = [i for i in range(n) if y[i] != j]
        rest = [c for c in range(k) if c != j]
        if mine:
            c1 += sum(max(max(float(f[i, c, c]) for c in rest) - float(f[i, j, j]), -tau) for i in mine) / len(mine)
            c3 += sum(max(max(float(f[i, c, j]) for c in rest) - float(f[i, j, j]), -tau) for i in mine) / len(mine)
        if foreign:
            c2 += sum(max(float(f[i, j, j]) - max(float(f[i, j, c]) for c in rest), -tau) for i in foreign) / len(
                foreign
            )
    return [c1, c2, c3]


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0, 0, 2], [1, 1, 3, 3, 3, 1, 1], [2] * 7], ids=str)
def test_the_margins_are_the_papers_also_where_classes_are_absent(labels):
    generator = torch.Generator().manual_seed(4)
    f = (2 * torch.randn(7, 4, 4, generator=generator)).softmax(2)
    y = torch.tensor(labels)
    assert class_margins(f, y, 0.1).tolist() == pytest.approx(plain_margins(f, y, 0.1), abs=1e-5)


class Recorded:
    """Stands for the network under each prompt: fixed logits."""

    def __init__(self, each, y):
        self.each, self.y = each, y

    def __call__(self, x, which=None):
        return self.each.flatten(1) if which is None else self.each[torch.arange(len(which)), which]


def test_the_loss_sums_the_means_of_the_classes():
    generator = torch.Generator().manual_seed(5)
    each, attacked = torch.randn(6, 3, 3, generator=generator), torch.randn(6, 3, generator=generator)
    y, x = torch.tensor([0, 0, 0, 0, 2, 2]), torch.zeros(6, 1, 4, 4)
    lesson = Recorded(each, y)
    entropy = sum(
        F.cross_entropy(each[y == j, j], y[y == j]) + F.cross_entropy(attacked[y == j], y[y == j]) for j in (0, 2)
    )
    step = Step()
    assert torch.allclose(CAVP(beta=0).loss(lesson, x, y, attacked, step), entropy)
    expected = entropy + 3 * sum(plain_margins(each.softmax(2), y, 0.1))
    assert torch.allclose(CAVP().loss(lesson, x, y, attacked, step), expected, atol=1e-5)
    assert torch.equal(step.logits, own_odds(each))
    one = Recorded(each[:, :1], y)
    universal = F.cross_entropy(each[:, 0], y) + F.cross_entropy(attacked, y)
    assert torch.allclose(UAVP().loss(lambda x: one(x), x, y, attacked, step), universal)


# --- Training --------------------------------------------------------------------------------------------------------


def test_only_the_border_of_the_prompts_is_trained(model, digits):
    given = copy.deepcopy(model).train()
    before = copy.deepcopy(given.state_dict())
    guarded = CAVP(**SMALL).train(given, digits.train.select(slice(0, 96)), run=Run())
    for name, tensor in before.items():
        assert torch.equal(given.state_dict()[name], tensor), name
        assert torch.equal(guarded.model.state_dict()[name], tensor), name
    assert all(module.training for module in given.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in given.parameters())
    assert not any(module.training for module in guarded.modules())
    assert (guarded.prompts[:, :, 2:6, 2:6] == 0).all()
    assert (guarded.prompts.detach().flatten(1).abs().amax(1) > 1e-3).all()


def test_images_are_attacked_under_their_own_prompt_alone(model, digits):
    seen = []

    def count(module, inputs, output):
        seen.append(len(output))

    given = copy.deepcopy(model)
    given.register_forward_hook(count)  # hooks are copied with the model
    train = digits.train.select(slice(0, 32))
    for guard, rows in ((CAVP(**SMALL), 10), (CAVP(**SMALL, beta=0), 1), (UAVP(**SMALL), 1)):
        seen.clear()
        guard.train(given, train, run=Run())
        # Of each image two steps of attack, the point reached, and the clean ones; two images are looked at beforehand.
        checked = 2 * guard.count(10) + 2
        assert sum(seen) == 32 * (2 + 1 + rows) + checked


def test_the_loss_is_that_of_the_point_an_attack_from_the_prompted_image_reaches(model, digits):
    """One batch, one step without momentum: the prompt moves against the gradient of the loss written out here."""
    train = digits.train.select(slice(0, 32))
    guard = UAVP(**{**SMALL, "steps": 3}, lr=0.5, momentum=0)
    guarded = guard.train(model, train, run=Run(seed=3))
    prompt = torch.zeros(1, 1, 8, 8, requires_grad=True)
    ring = torch.ones(8, 8)
    ring[2:6, 2:6] = 0
    order = torch.randperm(32, generator=Run(seed=3).child("u-avp").rng("order", 0))
    x, y = to_float(train.x[order]), train.y[order]
    rng = Step(run=Run(seed=3).child("u-avp")).rng("u-avp")
    with frozen(model):
        reached = ascend(model, x, y, eps=0.1, step=0.025, steps=3, generator=rng)
        prompted = (x + ring * prompt).clamp(0, 1)
        loss = F.cross_entropy(model(prompted), y) + F.cross_entropy(model(prompted + (reached - x)), y)
        (gradient,) = torch.autograd.grad(loss, prompt)
    # The rate is that of the middle of the only step.
    assert torch.allclose(guarded.prompts, -0.5 * 0.5 * gradient, atol=1e-5)


def test_attacks_start_from_the_image_under_its_own_prompt_as_it_is_now(model, digits):
    x, y = to_float(digits.train.x[:20]), digits.train.y[:20]
    guard = CAVP(**SMALL, beta=0)
    model = copy.deepcopy(model).requires_grad_(False)
    guarded = with_prompts(guard, model)
    lesson, step = prompts._Lesson(guarded), Step()
    (found,) = torch.autograd.grad(prompts._Prompting(guard)(lesson, x, y, step), guarded.prompts)
    start = guarded.prompted(x, y)
    reached = ascend(model, start.detach(), y, eps=0.1, step=0.025, steps=2, generator=step.rng("c-avp"))
    assert (reached - start).abs().max() <= 0.1 + 1e-6
    assert 0 <= reached.min() <= reached.max() <= 1
    loss = 0
    for j in y.unique():
        rows = y == j
        for seen in (start, start + (reached - start).detach()):
            loss = loss + F.cross_entropy(model(seen[rows]), y[rows])
    (expected,) = torch.autograd.grad(loss, guarded.prompts)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_same_run_learns_the_same_prompts_and_another_seed_does_not(model, digits):
    train = digits.train.select(slice(0, 64))
    first, again, other = (CAVP(**SMALL).train(model, train, run=Run(seed=s)).prompts for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_without_some_classes_train(model, digits):
    one = digits.train.select(digits.train.y == 3).select(slice(0, 40))
    guarded = CAVP(**SMALL).train(model, one, run=Run())
    assert guarded.prompts.isfinite().all()


def test_what_is_learned_withstands_what_fools_the_bare_network(model, digits):
    eps, run = 0.15, Run()
    x, y = to_float(digits.test.x[:100]), digits.test.y[:100]
    with frozen(model):
        fooling = ascend(model, x, y, eps=eps, step=eps / 4, steps=10, generator=run.rng("attack"))
    fields = {**SMALL, "epochs": 4, "eps": eps}
    guarded = CAVP(**fields).train(model, digits.train.select(slice(0, 256)), run=run)
    with torch.no_grad():
        without, behind = (float((net(fooling).argmax(1) == y).float().mean()) for net in (model, guarded))
        clean = float((guarded(x).argmax(1) == y).float().mean())
    assert behind > without + 0.15
    assert clean > 0.85
    # Who knows the prompts climbs the odds, whose labels are the guarded model's, and gets further than up the
    # confidences.
    pgd = PGD(eps=eps, steps=10, step=eps / 4)
    assert torch.equal(guarded.adaptive()(x).argmax(1), guarded(x).argmax(1))
    left = [float((~pgd.run(net, x, y, run=run).success).float().mean()) for net in (guarded, informed(guarded))]
    assert left[1] < left[0] - 0.05


def test_a_stopped_training_goes_on(model, digits, tmp_path):
    train = digits.train.select(slice(0, 64))
    whole = CAVP(**SMALL).train(model, train, run=Run(out=tmp_path)).prompts
    assert (tmp_path / "c-avp" / "checkpoint.pt").is_file()
    assert torch.equal(CAVP(**SMALL).train(model, train, run=Run(out=tmp_path)).prompts, whole)
    with pytest.raises(UserError, match="holds a training with objective prompts of c-avp"):
        CAVP(**SMALL, tau=0.2).train(model, train, run=Run(out=tmp_path))


# --- Keeping it, and mistakes ----------------------------------------------------------------------------------------


def test_prompts_are_read_back_also_for_a_model_that_says_nothing_of_itself(model, x, tmp_path):
    path = str(tmp_path / "guard.safetensors")
    guarded = with_prompts(CAVP(), model)
    save_guard(guarded, path)
    with torch.no_grad():
        assert torch.equal(CAVP(weights=path)(model)(x), guarded(x))
        assert torch.equal(CAVP(weights=path)(nn.Sequential(model))(x), guarded(x))
    with pytest.raises(UserError, match=r"prompts should be \(1, 1, 8, 8\), and is \(10, 1, 8, 8\)"):
        UAVP(weights=path)(model)


def test_a_model_that_says_nothing_of_itself_can_be_trained_for(model, digits):
    guarded = UAVP(**SMALL).train(nn.Sequential(model), digits.train.select(slice(0, 32)), run=Run())
    assert guarded.prompts.shape == (1, 1, 8, 8)
    with pytest.raises(UserError, match="c-avp: the model does not say which images it takes"):
        CAVP().untrained(nn.Sequential(model))


def test_a_model_that_only_answers_is_guarded_but_not_learned_from(model, x, digits, tmp_path):
    path = str(tmp_path / "guard.safetensors")
    save_guard(with_prompts(CAVP(), model), path)
    asked = Queryable(model, num_classes=10)
    with torch.no_grad():
        assert torch.allclose(CAVP(weights=path)(asked)(x), CAVP(weights=path)(model)(x), atol=1e-5)
    with pytest.raises(UserError, match="c-avp: prompts are learned from gradients"):
        CAVP().train(asked, digits.train, run=Run())


def test_mistakes_are_said_in_one_sentence(model, digits):
    with pytest.raises(UserError, match="there are no images to learn prompts from"):
        CAVP().train(model, digits.train.select(slice(0, 0)), run=Run())
    with pytest.raises(UserError, match="the prompts are for images of shape 1x8x8, got 3x8x8"):
        CAVP().untrained(model)(torch.rand(2, 3, 8, 8))
    with pytest.raises(UserError, match="c-avp: pad must be a whole number of at least 1 or none, got 0"):
        CAVP(pad=0)
    with pytest.raises(UserError, match="Did you mean 'flip'"):
        CAVP(transforms=("flop",))
    with pytest.raises(UserError, match="at least 2 classes"):
        CAVP().count(1)
    many = Images(x=digits.train.x[:4], y=digits.train.y[:4], classes=tuple(map(str, range(11))), name="many")
    with pytest.raises(UserError, match="c-avp: the model gives 10 logits, but many has 11 classes"):
        CAVP().train(model, many, run=Run())
    other = CAVP().untrained(model)
    other.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(UserError, match="the model gives 5 logits, and there are 10 prompts"):
        other(torch.rand(2, 1, 8, 8))


def test_the_command_line_trains_a_guard_and_puts_it_to_use(tmp_path):
    words = ["--model", "zoo:digits-convnet", "--data", "digits", "--device", "cpu", "--json"]
    spec = "c-avp(epochs=1, batch_size=64, steps=1, transforms=[])"
    made = CliRunner().invoke(app, ["harden", spec, *words, "-n", "64", "--out", str(tmp_path)])
    assert made.exit_code == 0, made.output
    guard = json.loads(made.stdout)["guard"]
    used = CliRunner().invoke(app, ["attack", "fgsm(eps=0.1)", *words, "-n", "20", "--guard", guard, "--adaptive"])
    assert used.exit_code == 0, used.output
    assert 0 <= json.loads(used.stdout)["robust_accuracy"]["value"] <= 1
