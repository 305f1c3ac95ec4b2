"""The engine: what it promises about rows, verdicts, memory and progress."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from holdfast.evasion import PGD, Square
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import loss_for
from holdfast.evasion.oracle import consult
from holdfast.run import Run


class Net(nn.Module):
    """A random network in float64, so that results are equal to the bit whatever the batch size."""

    def __init__(self, watch=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(48, 32, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(32, 4, generator=generator, dtype=torch.float64))
        self.watch = watch

    def __deepcopy__(self, memo):
        return Net(self.watch)

    def forward(self, x):
        if self.watch is not None:
            self.watch(x)
        return ((x.flatten(1).double() - 0.5) @ self.first).relu() @ self.second


def images(n):
    x = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, Net()(x).argmax(1)


ATTACK = PGD(eps=0.03, steps=6, step=0.01, restarts=2)


def test_fooled_samples_leave_the_batch_at_once():
    rows = []
    x, y = images(60)
    attack = PGD(eps=0.03, steps=6, step=0.01)
    outcome = attack.run(Net(lambda x: rows.append(len(x) * x.requires_grad)), x, y, run=Run())
    assert sum(rows) == outcome.gradients.sum()
    assert 60 < sum(rows) < 330
    assert (outcome.gradients[~outcome.success] == 6).all()


def test_the_model_sees_full_batches_until_the_work_runs_out():
    rows = []
    x, y = images(60)
    ATTACK.run(Net(lambda x: rows.append(len(x)) if x.requires_grad else None), x, y, run=Run(batch_size=16))
    full = [n == 16 for n in rows]
    assert sum(full) > 8
    assert full == sorted(full, reverse=True), "batches shrink only at the end"


def test_a_suspect_that_the_model_denies_searches_on():
    class TwoFaced(Net):
        """Says class 1 while gradients are recorded, and class 0 when it matters."""

        def forward(self, x):
            bias = torch.tensor([0, 99, 0, 0] if x.requires_grad else [99, 0, 0, 0])
            return Net.forward(self, x) + bias

        def __deepcopy__(self, memo):
            return self

    x, _ = images(7)
    outcome = PGD(eps=0.03, steps=5, restarts=2).run(TwoFaced(), x, torch.zeros(7, dtype=torch.int64), run=Run())
    assert not outcome.success.any()
    assert outcome.queries.tolist() == [10] * 7
    assert (outcome.x_adv != x).flatten(1).any(1).all()


def test_a_denied_success_does_not_keep_the_item_from_a_real_one():
    class Wary(Net):
        """While gradients are recorded, calls everything an error in its first three passes."""

        passes = 0

        def forward(self, x):
            logits = Net.forward(self, x)
            if x.requires_grad:
                Wary.passes += 1
                if Wary.passes <= 3:
                    return torch.cat([logits, logits.detach().amax(1, keepdim=True) + 1], 1)
            return torch.cat([logits, torch.full_like(logits[:, :1], -99)], 1)

        def __deepcopy__(self, memo):
            return self

    x, y = images(20)
    outcome = PGD(eps=0.05, steps=8, step=0.01).run(Wary(), x, y, run=Run())
    honest = PGD(eps=0.05, steps=8, step=0.01).run(Net(), x, y, run=Run())
    assert honest.success.sum() > 10
    assert outcome.success.sum() >= honest.success.sum() - 1
    wrong = torch.cat([Net()(outcome.x_adv), torch.full((20, 1), -99.0)], 1).argmax(1) != y
    assert torch.equal(outcome.success, wrong)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), RuntimeError("can't allocate memory: x")])
@pytest.mark.parametrize("attack", [ATTACK, Square(eps=0.05, queries=15)], ids=str)
def test_when_memory_runs_out_the_batch_is_halved_and_the_result_is_the_same(attack, error):
    sizes = []

    def limited(x):
        sizes.append(len(x))
        if len(x) > 10:
            raise error

    x, y = images(40)
    outcome = attack.run(Net(limited), x, y, run=Run())
    expected = attack.run(Net(), x, y, run=Run())
    assert torch.equal(outcome.x_adv, expected.x_adv)
    assert torch.equal(outcome.queries, expected.queries)
    assert 0 < sum(size > 10 for size in sizes) < 5


def test_other_errors_and_hopeless_shortage_come_through():
    def broken(x):
        if x.requires_grad:
            raise RuntimeError("a defect of the model")

    def hopeless(x):
        if x.requires_grad:
            raise torch.OutOfMemoryError

    x, y = images(10)
    with pytest.raises(RuntimeError, match="a defect of the model"):
        ATTACK.run(Net(broken), x, y, run=Run())
    with pytest.raises(torch.OutOfMemoryError):
        ATTACK.run(Net(hopeless), x, y, run=Run())


def test_the_earliest_round_decides_even_when_a_later_one_is_quicker():
    x, y = images(150)
    attack = PGD(eps=0.04, steps=2, step=0.002, restarts=4)
    together = attack.run(Net(), x, y, run=Run(batch_size=240))
    for size in (1, 7):
        apart = attack.run(Net(), x, y, run=Run(batch_size=size))
        for name in ("x_adv", "success", "queries", "logits"):
            assert torch.equal(getattr(apart, name), getattr(together, name)), (size, name)
    once = PGD(eps=0.04, steps=2, step=0.002).run(Net(), x, y, run=Run())
    assert torch.equal(together.x_adv[once.success], once.x_adv[once.success])
    assert together.success.sum() > once.success.sum()


def test_bf16_gradients_find_what_float32_gradients_find():
    class Single(Net):
        def forward(self, x):
            return ((x.flatten(1) - 0.5) @ self.first.float()).relu() @ self.second.float()

        def __deepcopy__(self, memo):
            return self

    x, y = images(200)
    attack = PGD(eps=0.02, steps=10)
    exact = attack.run(Single(), x, y, run=Run())
    rough = attack.run(Single(), x, y, run=Run(precision="bf16"))
    assert not torch.equal(exact.x_adv, rough.x_adv)
    assert abs(exact.robust_accuracy - rough.robust_accuracy) <= 0.02
    assert torch.equal(rough.success, Single()(rough.x_adv).argmax(1) != y)


class Exact:
    """Stands for an oracle: answers with the logits it is given, and remembers what it passed again in float32."""

    def __init__(self, exact, rough):
        self.exact, self.rough, self.passed = exact, rough, []

    def screen(self, points):
        return self.rough

    def logits(self, points):
        rows = points[:, 0, 0, 0].long()
        self.passed += rows.tolist()
        return self.exact[rows]


class Trial(Search):
    def __init__(self):
        super().__init__(steps=1, aim="any", loss=loss_for("any", "margin"), gradients=0)

    def begin(self, fresh):
        pass

    def step(self, oracle, state):
        pass


def considered(exact, rough, best_loss, **options):
    """Logits of class 0 against class 1, the label being 0: the margin is minus the first number."""
    both = [torch.stack([torch.tensor(of), torch.zeros(len(of))], 1) for of in (exact, rough)]
    points = torch.arange(len(exact)).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    none = torch.zeros(len(exact), dtype=torch.int64)
    state = {"y": none, "target": none, "best": torch.full_like(points, -1), "best_loss": torch.tensor(best_loss)}
    state["fooled"] = torch.ones(len(exact), dtype=torch.bool)
    oracle = Exact(*both)
    return Trial().consider(oracle, state, points, **options), state, oracle.passed


def test_only_what_bf16_does_not_find_clearly_worse_is_passed_again_and_float32_alone_decides():
    nan, inf = float("nan"), float("inf")
    # Clearly worse; only looks better; is better; within the blur; looks fooled; a success unseen; NaN; the first.
    exact = [1.5, 1.2, 0.8, 0.9995, 0.5, -1.0, 0.7, 5.0]
    rough = [1.5, 0.9, 0.9, 1.0005, -0.1, 3.0, nan, 5.0]
    better, state, passed = considered(exact, rough, [-1.0] * 7 + [-inf])
    assert passed == [1, 2, 3, 4, 6, 7]
    assert better.tolist() == [False, False, True, True, True, False, True, True]
    assert torch.equal(state["best_loss"], -torch.tensor([1.0, 1.0, 0.8, 0.9995, 0.5, 1.0, 0.7, 5.0]))
    assert state["best"][:, 0, 0, 0].tolist() == [-1, -1, 2, 3, 4, -1, 6, 7]
    assert not state["fooled"].any(), "bf16 alone sees no success"
    _, state, _ = considered([-0.5], [0.1], [-1.0])
    assert state["fooled"].all()
    assert state["best_loss"].item() == inf


def test_a_tie_is_kept_where_ties_are_and_passed_again_to_be_sure():
    for ties in (False, True):
        better, _, passed = considered([1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], ties=ties)
        assert passed == [0, 1]
        assert better.tolist() == [ties, ties]


def test_nothing_is_screened_in_float32_nor_where_asking_twice_would_change_the_answers():
    class Unique(Net):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of me")

    class Mixing(Net):
        mixes_samples = "the test says so"

        def __deepcopy__(self, memo):
            return self

    x, _ = images(8)
    for model, precision, screens in (
        (Net(), "bf16", True), (Net(), "fp32", False), (Unique(), "bf16", False), (Mixing(), "bf16", False),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with consult(model, x, Run(device="cpu", precision=precision)) as oracle:
                assert (oracle.screen(x) is not None) == screens, type(model)


def test_progress_covers_the_work_and_tells_the_robust_accuracy(monkeypatch):
    class Recorder:
        def __init__(self, total):
            self.total, self.done, self.notes = total, 0, []

        def advance(self, steps, note=""):
            self.done += steps
            self.notes += [note] if note else []

    tickers = []

    @contextlib.contextmanager
    def track(self, total, label):
        tickers.append(Recorder(total))
        yield tickers[-1]

    monkeypatch.setattr(Run, "track", track)
    x, y = images(60)
    y[:6] = (y[:6] + 1) % 4
    outcome = PGD(eps=0.03, steps=6, step=0.01).run(Net(), x, y, run=Run(batch_size=8))
    (ticker,) = tickers
    assert ticker.done == ticker.total == 54 * 6
    shares = [float(note.removeprefix("robust ").removesuffix("%")) for note in ticker.notes]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 90.0
    assert outcome.robust_accuracy * 100 <= shares[-1] < 90


def test_with_nothing_left_to_attack_nothing_happens():
    x, y = images(9)
    outcome = ATTACK.run(Net(), x, (y + 1) % 4, run=Run())
    assert torch.equal(outcome.x_adv, x)
    assert outcome.robust_accuracy == outcome.clean_accuracy == 0
    assert not outcome.queries.any()


def test_a_search_that_replaces_a_tensor_of_the_state_is_stopped():
    class Careless(Search):
        def begin(self, fresh):
            pass

        def step(self, oracle, state):
            state["best"] = state["best"] + 1

    class Attack(PGD):
        def search(self, aim, seed):
            return Careless(steps=1, aim=aim, loss=None, gradients=0)

    x, y = images(4)
    with pytest.raises(TypeError, match="does not support item assignment"):
        Attack().run(Net(), x, y, run=Run())
