import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.evasion import PGD, Square, UniG
from holdfast.evasion.adaptive import informed
from holdfast.evasion.unig import feature_gradient
from holdfast.models import MixesSamples, NonDeterministic, build_model, check_model
from holdfast.run import Run

quiet = pytest.mark.filterwarnings("ignore::holdfast.models.MixesSamples", "ignore::holdfast.models.NonDeterministic")


def small_net(n=16):
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        yield


def test_the_gradient_is_that_of_autograd():
    head, features, y = nn.Linear(7, 5), torch.randn(6, 7), torch.randint(5, (6,))
    scales = 1 + 0.5 * torch.randn(6, 7)
    leaf = features.clone().requires_grad_()
    F.cross_entropy(head(scales * leaf), y).backward()
    assert torch.allclose(feature_gradient(scales, features, head, y), leaf.grad, atol=1e-7)


def test_a_step_brings_the_gradients_of_neighbours_together():
    head, features = nn.Linear(32, 10), torch.rand(24, 32)
    y = head(features).argmax(1)
    scales, losses = UniG(steps=6, lr=0.3).unify(features, head, y)
    assert losses[-1] < losses[0]
    assert 0.5 <= scales.min() <= scales.max() <= 1.5


def test_equal_samples_and_a_batch_of_one_give_finite_answers():
    model, x, _ = small_net()
    guarded = UniG()(model)
    assert guarded(x[:1].repeat(5, 1, 1, 1)).isfinite().all()
    assert guarded(x[:1]).shape == (1, 4)


def test_scales_that_cannot_move_leave_the_logits_bit_for_bit():
    model, x, _ = small_net()
    assert torch.equal(UniG(delta=0)(model)(x), model(x))


def test_nothing_is_carried_over_from_one_batch_to_the_next():
    model, x, _ = small_net()
    guarded, fresh = UniG()(model), UniG()(model)
    guarded(x)
    answers = []
    for net in (guarded, fresh):
        torch.default_generator.manual_seed(1)
        answers.append(net(x))
    assert torch.equal(*answers)


def test_answers_differ_from_call_to_call_and_labels_can_be_kept():
    model, x, y = small_net(200)
    guarded = UniG(delta=1)(model)
    assert not torch.equal(guarded(x), guarded(x))
    assert (guarded(x).argmax(1) != y).any()
    assert torch.equal(UniG(delta=1, keep_labels=True)(model)(x).argmax(1), y)


def test_a_single_image_is_answered_in_remembered_company():
    model, x, y = small_net()
    guarded = UniG()(model)
    seen = []
    guarded.model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    guarded.remember(x[1:9], y[1:9])
    assert guarded(x[:1]).shape == (1, 4)
    assert seen[0] == 6
    with pytest.raises(UserError, match="at least 5"):
        guarded.remember(x[:4], y[:4])


def test_it_works_where_the_caller_forbids_gradients():
    model, x, _ = small_net()
    guarded = UniG()(model)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert guarded(x).shape == (16, 4)


def test_a_model_without_a_linear_head_is_refused():
    with pytest.raises(UserError, match="straight from a linear layer"):
        UniG()(nn.Sequential(nn.Flatten(), nn.Linear(27, 3), nn.ReLU()))


def test_the_check_warns_of_a_declared_mixture_and_still_refuses_an_undeclared_one():
    model, x, _ = small_net()
    with pytest.warns(MixesSamples, match="unifies the gradients"), pytest.warns(NonDeterministic):
        check_model(UniG()(model), x)

    class Undeclared(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :3]
            return z - z.mean(0)

    with pytest.raises(UserError, match="depends on the other images"):
        check_model(Undeclared(), x)


@quiet
def test_it_can_be_attacked_with_and_without_knowledge():
    model, x, y = small_net(24)
    guarded = UniG()(model)
    assert Square(eps=0.1, queries=20).run(guarded, x, y, run=Run()).success.shape == (24,)
    # gradients pass through the guard, and those of the model behind it are the plain ones
    assert PGD(eps=0.1, steps=3).run(guarded, x, y, run=Run()).gradients.max() == 3
    a = PGD(eps=0.1, steps=3).run(informed(guarded), x, y, run=Run())
    assert a.success.float().mean() > 0.5
