import copy
import time

import numpy as np
import pytest
import torch
from torch import nn

from holdfast import Run, UserError
from holdfast.data import Images
from holdfast.evasion import FGSM, PGD, Square
from holdfast.evasion.adaptive import Informed
from holdfast.evasion.campaign import campaign
from holdfast.models import (
    NonDeterministic,
    Normalize,
    QueriesSpent,
    Queryable,
    Transient,
    Unanswered,
    asked_afresh,
    build_model,
    check_model,
    extract,
    fast_twin,
    frozen,
    latency,
    only_answers,
    predict,
    queryables,
    weights_hash,
)

SHAPE = (3, 5, 4)


class Wide(nn.Module):
    """A network that computes in float64 behind float32."""

    def __init__(self, net):
        super().__init__()
        self.net = net.double()

    def forward(self, x):
        return self.net(x.double()).float()


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Wide(nn.Sequential(nn.Flatten(), nn.Linear(60, 4))).eval()


@pytest.fixture
def x():
    return torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(1))


class Asked:
    """Answers as a net does, and notes what it was sent."""

    def __init__(self, net):
        self.net, self.sent = net, []

    def __call__(self, images):
        self.sent.append(images)
        with torch.no_grad():
            return self.net(torch.as_tensor(images))

    @property
    def rows(self):
        return [len(images) for images in self.sent]


def labels_of(net):
    return lambda images: net(images).argmax(1)


def test_it_answers_as_the_callable_does_in_float32(net, x):
    model = Queryable(Asked(net))
    scores = model(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, net(x))
    assert model.num_classes == 4
    assert not scores.requires_grad


def test_it_has_no_weights_and_a_module_inside_stays_hidden(net):
    model = Queryable(net)
    assert not list(model.parameters())
    assert list(model.modules()) == [model]


@pytest.mark.parametrize("arrays", ["torch", "numpy"])
@pytest.mark.parametrize(("layout", "shape"), [("nchw", SHAPE), ("nhwc", (5, 4, 3)), ("flat", (60,))])
def test_images_are_sent_in_the_layout_and_type_asked_for(net, x, arrays, layout, shape):
    asked = []

    def answer(images):
        asked.append(images)
        return np.zeros((len(images), 2))

    Queryable(answer, layout=layout, arrays=arrays)(x)
    [images] = asked
    assert isinstance(images, torch.Tensor if arrays == "torch" else np.ndarray)
    assert tuple(images.shape) == (10, *shape)
    sent = torch.as_tensor(images)
    back = sent.permute(0, 3, 1, 2) if layout == "nhwc" else sent.view(x.shape)
    assert torch.equal(back, x)


def test_bytes_are_the_nearest_ones_and_floats_of_8_bits_are_the_same_bytes(net, x):
    as_bytes, as_floats = Asked(net), Asked(net)
    Queryable(as_bytes, pixels="uint8")(x)
    Queryable(as_floats, bits=8)(x)
    [sent] = as_bytes.sent
    assert sent.dtype == torch.uint8
    assert (sent / 255 - x).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(as_floats.sent[0], sent.float() / 255)


def test_few_bits_leave_few_values(net, x):
    asked = Asked(net)
    Queryable(asked, bits=2)(x)
    assert set(np.unique(asked.sent[0].numpy())) <= {np.float32(v) / np.float32(3) for v in range(4)}


def test_images_that_bytes_cannot_hold_are_refused(net, x):
    model = Queryable(net, pixels="uint8")
    for bad in (x * 2, x - 1, x * torch.nan):
        with pytest.raises(UserError, match=r"pixels must lie in \[0, 1\]"):
            model(bad)


def test_calls_are_no_larger_than_allowed_and_answers_keep_their_order(net, x):
    asked = Asked(net)
    scores = Queryable(asked, max_batch=4)(x)
    assert asked.rows == [4, 4, 2]
    assert torch.equal(scores, net(x))


def test_an_image_is_paid_for_once(net, x):
    asked = Asked(net)
    model = Queryable(asked)
    twice = torch.cat([x[:3], x[:3].flip(0)])
    assert torch.equal(model(twice), net(twice))
    assert torch.equal(model(x[2:5]), net(x[2:5]))
    assert asked.rows == [3, 2]
    assert (model.usage.queries, model.usage.calls, model.usage.hits) == (5, 2, 4)


def test_images_that_differ_only_below_the_bits_sent_are_one(net, x):
    asked = Asked(net)
    model = Queryable(asked, pixels="uint8")
    coarse = (x * 255).round() / 255
    model(coarse)
    model(coarse * 0.9999)
    assert asked.rows == [10]


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(net, x):
    asked = Asked(net)
    model = Queryable(asked, memory=3 * (4 * 4 + 200))  # three answers of four scores
    model(x[:4])
    model(x[1:4])
    assert asked.rows == [4]
    model(x[:1])
    assert asked.rows == [4, 1]
    Queryable(asked, memory=0)(x[:2])
    Queryable(asked, memory=0)(x[:2])
    assert asked.rows == [4, 1, 2, 2]


def test_asked_afresh_every_image_is_sent_even_twice_in_a_batch(net, x):
    asked = Asked(net)
    model = Queryable(asked)
    model(x)
    with asked_afresh(nn.Sequential(model)):
        model(torch.cat([x[:2], x[:2]]))
    model(x[:2])
    assert asked.rows == [10, 4]


def test_labels_become_one_hot_scores(net, x):
    expected = net(x).argmax(1)
    for answer in (labels_of(net), lambda i: labels_of(net)(i)[:, None], lambda i: labels_of(net)(i).tolist()):
        model = Queryable(answer, num_classes=4)
        assert torch.equal(model(x), nn.functional.one_hot(expected, 4).float())
        assert model.labels_only


def test_the_budget_is_never_exceeded_and_says_so(net, x):
    asked = Asked(net)
    model = Queryable(asked, max_queries=7, max_batch=3, name="it")
    with pytest.raises(
        QueriesSpent, match=r"^it: the budget of 7 queries is spent \(6 sent, 3 more needed at once\)\.$"
    ):
        model(x)
    assert sum(asked.rows) == 6
    assert torch.equal(model(x[:6]), net(x[:6]))  # these are known
    model.limit(max_queries=20)
    model(x)
    assert sum(asked.rows) == 10


def test_attempts_that_fail_count_too(net, x):
    def answer(images):
        raise ConnectionResetError

    model = Queryable(answer, max_queries=25, retries=9, backoff=0)
    with pytest.raises(QueriesSpent):
        model(x)
    assert (model.usage.queries, model.usage.calls) == (20, 2)


@pytest.mark.parametrize("failure", [Transient("busy"), ConnectionResetError("gone"), TimeoutError()])
def test_a_failure_in_passing_is_tried_again(net, x, failure):
    failures = [failure, failure]
    asked = Asked(net)

    def answer(images):
        if failures:
            raise failures.pop()
        return asked(images)

    model = Queryable(answer, backoff=0)
    assert torch.equal(model(x), net(x))
    assert model.usage.calls == 3


def test_waits_double_and_are_at_least_what_the_other_side_asks_for(x, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def answer(images):
        raise Transient("busy", after=1.5 if len(waits) == 1 else 1e9 if len(waits) == 3 else 0)

    with pytest.raises(Unanswered, match=r"^it gave no answer in 5 attempts: busy\.$"):
        Queryable(answer, name="it", retries=4, backoff=0.5)(x)
    assert waits == [0.5, 1.5, 2, 60]


def test_the_rate_is_kept_on_average(net, x, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    asked = Asked(net)
    model = Queryable(asked, max_rate=2.5)
    model(x)
    assert asked.rows == [2] * 5
    assert now[0] == pytest.approx(100 + 8 / 2.5)  # the first call waits for nobody
    now[0] += 1000
    model(x + 1)
    assert now[0] == pytest.approx(1100 + 16 / 2.5), "idle time must not be saved up"


ANSWERS = {
    "few rows": (lambda i: torch.zeros(len(i) - 1, 4), r"must answer 10 images with scores of shape \(10, classes\)"),
    "maps": (lambda i: torch.zeros(len(i), 4, 1, 1), r"got shape \(10, 4, 1, 1\)"),
    "one number": (lambda i: 3.0, r"got shape \(\)"),
    "float labels": (lambda i: torch.zeros(len(i)), r"got shape \(10,\) of type float32"),
    "words": (lambda i: ["cat"] * len(i), "must answer 10 images .* got a list of type"),
    "nothing": (lambda i: None, "got a NoneType"),
    "ragged": (lambda i: [[1.0]] + [[1.0, 2.0]] * (len(i) - 1), "lists of different lengths"),
    "other classes": (lambda i: torch.zeros(len(i), 5), "must give 4 scores an image, got 5"),
    "NaN": (lambda i: torch.tensor([[0.0, float("nan"), 0, 0]] * len(i)), "NaN or infinite scores for 10 of 10"),
    "too large": (lambda i: np.full((len(i), 4), 1e300), "NaN or infinite"),
    "label 4": (lambda i: [4] * len(i), r"labels 4\.\.4, but labels are 0\.\.3"),
    "label -1": (lambda i: [-1] * len(i), r"labels -1\.\.-1"),
    "error": (lambda i: 1 / 0, r"fails on a batch of 10 images of shape 3x5x4: ZeroDivisionError: division by zero\.$"),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_wrong_answer_is_refused_in_one_sentence(x, answer, message):
    with pytest.raises(UserError, match=f"^it .*{message}") as caught:
        Queryable(answer, name="it", num_classes=4)(x)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, Unanswered)


def test_labels_need_the_number_of_classes(net, x):
    with pytest.raises(UserError, match="give num_classes"):
        Queryable(labels_of(net))(x)


SETTINGS = {
    "pixels": ("float", "'float32', 'uint8', got 'float'"),
    "layout": ("chw", "'nchw'"),
    "arrays": ("jax", "'torch'"),
    "bits": (0, "at least 1, got 0"),
    "max_batch": (0, "at least 1"),
    "max_queries": (-1, "at least 0"),
    "max_rate": (0, "positive"),
    "retries": (-1, "at least 0"),
    "num_classes": (0, "at least 1"),
}


@pytest.mark.parametrize(("setting", "value", "message"), [(k, *v) for k, v in SETTINGS.items()], ids=SETTINGS.keys())
def test_a_wrong_setting_is_refused(net, setting, value, message):
    with pytest.raises(UserError, match=f"^it: {setting} must be .*{message}"):
        Queryable(net, name="it", **{setting: value})


def test_images_of_another_shape_are_refused_where_the_shape_is_known(net, x):
    with pytest.raises(UserError, match="takes images of shape 3x5x5, got 3x5x4"):
        Queryable(net, image_shape=(3, 5, 5))(x)
    with pytest.raises(UserError, match=r"\(N, C, H, W\), at least one, got shape \(60,\)"):
        Queryable(net)(x[0].flatten())


def test_copies_share_the_budget(net):
    model = Queryable(net)
    assert copy.deepcopy(nn.Sequential(model))[0] is model
    assert fast_twin(model, torch.rand(2, *SHAPE)) is model


def test_its_hash_tells_callables_weights_and_settings_apart(net):
    other = copy.deepcopy(net)
    assert weights_hash(Queryable(net)) == weights_hash(Queryable(other))
    other.net[1].weight.data[0, 0] += 1
    models = [
        Queryable(net),
        Queryable(other),
        Queryable(net, pixels="uint8"),
        Queryable(net, layout="nhwc"),
        Queryable(net, identity="mine"),
        Queryable(lambda i: i.flatten(1)),
        Queryable(lambda i: 2 * i.flatten(1)),
    ]
    assert len({weights_hash(model) for model in models}) == len(models)
    used = Queryable(net)
    used(torch.rand(2, *SHAPE))
    assert weights_hash(used) == weights_hash(models[0])
    assert repr(used) == repr(models[0])


def test_the_check_of_a_model_asks_everything_once_and_then_never_again(net, x):
    asked = Asked(net)
    model = Queryable(asked)
    check_model(model, x)
    assert sum(asked.rows) == 8 + 8 + 8 + 1
    with frozen(model, check=x):
        pass
    assert sum(asked.rows) == 25


def test_known_answers_do_not_hide_a_model_that_mixes_samples_or_changes_its_mind(net, x):
    with pytest.raises(UserError, match="depends on the other images"):
        check_model(Queryable(lambda i: i.flatten(1) - i.flatten(1).mean(0)), x)
    noise = torch.Generator().manual_seed(0)
    with pytest.warns(NonDeterministic):
        check_model(Queryable(lambda i: i.flatten(1) + torch.rand(60, generator=noise)), x)


def test_what_computes_here_asks_here(net, x):
    images = Images(x=x, y=torch.zeros(10, dtype=torch.int64), classes=tuple("abcd"))
    expected = net(x)
    assert torch.equal(predict(Queryable(net), images, run=Run(batch_size=3)), expected)
    features = extract(Queryable(net), images, run=Run())
    assert torch.equal(features.logits, expected)
    assert features.penultimate is None
    assert latency(Queryable(net), SHAPE, Run(), repeats=3, batch=4).throughput > 0


def test_a_declaration_anywhere_in_a_model_is_seen(net):
    class Remote(nn.Module):
        gradients = False

    class Cam(nn.Module):
        gradients = None  # as explainers like to call what they recorded

    assert only_answers(nn.Sequential(Normalize(3), Queryable(net)))
    assert only_answers(Remote())
    assert not only_answers(nn.Sequential(Cam(), net))
    assert queryables(nn.Sequential(nn.Sequential(Queryable(net))))


@pytest.fixture
def task():
    """A small network, its images and its own predictions."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        net = Wide(build_model("mlp", num_classes=3, image_shape=(1, 6, 6))).eval()
    x = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def test_square_gets_as_far_with_answers_as_with_the_model(task):
    net, x, y = task
    attack = Square(eps=0.1, queries=60)
    direct = attack.run(net, x, y, run=Run())
    model = Queryable(Asked(net), max_batch=7)
    asked = attack.run(model, x, y, run=Run())
    assert direct.success.any()
    for name in ("x_adv", "success", "queries", "distance"):
        assert torch.equal(getattr(asked, name), getattr(direct, name)), name
    assert model.usage.queries <= 25 + len(x) + int(direct.queries.sum())


def test_square_works_on_probabilities(task):
    net, x, y = task
    attack = Square(eps=0.1, queries=60)
    outcome = attack.run(Queryable(lambda i: net(i).softmax(1)), x, y, run=Run())
    assert torch.equal(outcome.success, net(outcome.x_adv).argmax(1) != y)
    assert outcome.success.any()


def test_attacks_on_bytes_are_judged_by_what_the_bytes_say(task):
    net, x, _ = task
    x = (x * 255).round() / 255
    y = net(x).argmax(1)
    outcome = Square(eps=0.1, queries=60).run(Queryable(lambda i: net(i / 255), pixels="uint8"), x, y, run=Run())
    seen = (outcome.x_adv * 255).round() / 255
    assert torch.equal(outcome.success, net(seen).argmax(1) != y)


@pytest.mark.parametrize("attack", [PGD(), FGSM()], ids=str)
def test_gradient_attacks_are_refused_before_anything_is_asked(task, attack):
    net, x, y = task
    model = Queryable(net)
    sentence = f"^{attack.id} needs gradients, but this model only answers queries: use .* such as square"
    with pytest.raises(UserError, match=sentence):
        attack.run(nn.Sequential(Normalize(1), model), x, y, run=Run())
    assert model.usage.queries == 0


def test_with_a_stand_in_of_ones_own_gradient_attacks_work(task):
    net, x, y = task
    outcome = PGD(eps=0.2).run(Informed(Queryable(net), net), x, y, run=Run())
    assert outcome.success.any()


def digits_like(task):
    _, x, y = task
    return Images(x=x, y=y, classes=tuple("abc"))


def test_a_campaign_keeps_what_was_done_before_the_budget_was_spent(task, tmp_path, monkeypatch):
    import holdfast.evasion.campaign as module

    monkeypatch.setattr(module, "_ASKED_PART", 6)
    net, images, run = task[0], digits_like(task), Run(out=tmp_path)
    attack = Square(eps=0.1, queries=10)
    whole = campaign(attack, Queryable(net), images, run=Run())
    part = campaign(attack, Queryable(net, max_queries=150), images, run=run)
    assert 0 < part.left < 20
    assert len(part.outcome) == len(part.y) == len(part.index) == 20 - part.left
    assert part.left % 6 == 2
    assert f"the other {part.left} images" in part.sentence
    assert part.to_json()["left_by_the_budget"] == part.left
    more = campaign(attack, Queryable(net, max_queries=150), images, run=run)
    assert torch.equal(more.outcome.x_adv, whole.outcome.x_adv[: len(more.outcome)])
    assert more.left < part.left
    assert campaign(attack, Queryable(net), images, run=run).table().equals(whole.table())
    with pytest.raises(QueriesSpent, match="Not one of the 6 images of the first part is done"):
        campaign(attack, Queryable(net, max_queries=30), images, run=Run())
