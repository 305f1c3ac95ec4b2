import itertools

import pytest
import torch
from torch import nn

from holdfast.evasion import Square
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.patches import squares
from holdfast.evasion.square import RandomSearch
from holdfast.models import build_model
from holdfast.run import Run


class Watched(nn.Module):
    """Counts the rows it is shown and keeps its logits; copies share the record."""

    def __init__(self, model, record):
        super().__init__()
        self.model, self.record = model, record

    def __deepcopy__(self, memo):
        return Watched(self.model, self.record)

    def forward(self, x):
        logits = self.model(x)
        self.record.append((x.detach().clone(), logits.detach().clone()))
        return logits


@pytest.fixture(scope="module")
def setting():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x[:, :, :4].round_()  # some pixels sit at the edge of the box
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_every_changed_pixel_sits_on_the_surface_of_ball_and_box(setting):
    model, x, y = setting
    for queries in (1, 40):
        x_adv = Square(eps=0.05, queries=queries)(model, x, y, run=Run())
        low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
        assert ((x_adv == low) | (x_adv == high)).all()


def test_the_start_is_vertical_stripes(setting):
    model, x, y = setting
    interior = 0.25 + 0.5 * x
    with torch.no_grad():
        y = model(interior).argmax(1)
    x_adv = Square(eps=0.05, queries=1)(model, interior, y, run=Run())
    signs = (x_adv - interior).sign()
    assert (signs == signs[:, :, :1]).all()
    assert (signs.mean((2, 3)).abs() < 1).any(), "columns differ"
    assert signs.mean().abs() < 0.2


def test_the_counter_equals_the_rows_the_model_saw(setting):
    model, x, y = setting
    seen = {}
    for queries in (20, 50):
        record = []
        outcome = Square(eps=0.03, queries=queries).run(Watched(model, record), x, y, run=Run())
        seen[queries] = sum(len(rows) for rows, _ in record), int(outcome.queries.sum())
        assert outcome.success.any()
        assert not outcome.success.all()
        assert (outcome.queries[~outcome.success] == queries).all()
        assert not outcome.gradients.any()
    # What does not depend on the budget, the checks at the door and the verdicts, cancels.
    assert seen[50][0] - seen[20][0] == seen[50][1] - seen[20][1]


def test_accepted_losses_strictly_decrease(setting):
    model, x, y = setting
    record = []
    outcome = Square(eps=0.01, queries=200).run(Watched(model, record), x[:1], y[:1], run=Run())
    queried = [(rows[0], logits[0]) for rows, logits in record if len(rows) == 1]
    # The search's own queries come last, but for the verdict on the best point.
    *search, (final, _) = queried[-int(outcome.queries) - 1 :]
    assert len(search) > 100
    best, margin, accepted = None, float("inf"), 0
    for point, logits in search:
        others = logits.clone()
        others[y[0]] = -float("inf")
        now = float(logits[y[0]] - others.max())
        if best is not None:
            changed = (point != best).any(0)
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert changed.any(), "a proposal that changes nothing wastes a query"
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert max(height, width) <= 11
        if now < margin:
            best, margin, accepted = point, now, accepted + 1
    assert accepted > 5
    assert torch.equal(final, best)


def test_squares_have_the_side_and_the_corner_asked_for():
    mask = squares(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 1]), 4, 5)
    assert mask.shape == (2, 1, 4, 5)
    assert mask[0, 0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert mask[1, 0].nonzero().tolist() == [[2, 3]]


def test_sides_follow_the_schedule():
    attack = Square()
    # sqrt(0.8 * 32 * 32) = 28.6; halving the area divides the side by the root of two.
    assert [attack.side(i, 32, 32) for i in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 9999)] == [
        29, 29, 20, 14, 10, 7, 5, 4, 3, 1,
    ]  # fmt: skip
    assert attack.side(0, 4, 100) == 3, "a square is smaller than the image"
    assert attack.side(0, 1, 1) == 1
    quick = Square(queries=1000, rescale=True)
    assert [quick.side(i, 32, 32) for i in (1, 2, 50, 51)] == [29, 20, 10, 7]


def test_more_queries_never_find_less(setting):
    model, x, y = setting
    found = [Square(eps=0.03, queries=q).run(model, x, y, run=Run()).success for q in (1, 10, 60, 200)]
    for fewer, more in itertools.pairwise(found):
        assert (more | ~fewer).all()
    assert found[0].sum() < found[-1].sum()


def test_a_softmax_at_the_end_of_the_model_does_not_blunt_the_attack(setting):
    model, x, y = setting
    plain = Square(eps=0.03, queries=60).run(model, x, y, run=Run())
    soft = Square(eps=0.03, queries=60).run(nn.Sequential(model, nn.Softmax(1)), x, y, run=Run())
    assert (soft.success == plain.success).float().mean() > 0.9
    assert torch.allclose(soft.logits.sum(1), torch.ones(24), atol=1e-5), "outcomes carry the model's own outputs"


ROUGH = Run(device="cpu", precision="bf16")


def test_screening_in_bf16_finds_as_much_at_a_fraction_of_the_passes_in_float32(setting, monkeypatch):
    model, x, y = setting
    passed, logits = [0], Oracle.logits

    def counting(self, x):
        passed[0] += len(x)
        return logits(self, x)

    monkeypatch.setattr(Oracle, "logits", counting)
    attack = Square(eps=0.03, queries=150)
    exact = attack.run(model, x, y, run=Run(device="cpu"))
    assert passed[0] == exact.queries.sum()
    passed[0] = 0
    rough = attack.run(model, x, y, run=ROUGH)
    assert passed[0] < 0.5 * rough.queries.sum()
    assert (rough.success == exact.success).float().mean() > 0.9
    assert (rough.queries[~rough.success] == 150).all(), "a proposal is one query, passed again or not"
    with torch.no_grad():
        assert torch.equal(rough.success, model(rough.x_adv).argmax(1) != y)


def test_what_is_kept_in_bf16_is_kept_at_its_loss_in_float32(setting, monkeypatch):
    model, x, y = setting
    step, seen = RandomSearch.step, []

    def watched(self, oracle, state):
        before = state["best_loss"].clone()
        step(self, oracle, state)
        best, loss = state["best_loss"], self.loss(oracle.logits(state["best"]), state["y"], state["target"])
        assert (best >= before).all()
        open_ = best.isfinite()
        assert torch.allclose(best[open_], loss[open_], rtol=1e-5, atol=1e-5)
        assert torch.equal(state["fooled"], best.isinf() & (loss >= 0))
        seen.append(int((best > before).sum()))

    monkeypatch.setattr(RandomSearch, "step", watched)
    Square(eps=0.03, queries=60).run(model, x, y, run=ROUGH)
    assert sum(seen) > 3 * len(x), "beside the starts, too"


def test_screening_does_not_make_a_sample_depend_on_its_batch(setting):
    model, x, y = setting
    together = Square(eps=0.03, queries=60).run(model, x, y, run=ROUGH)
    apart = Square(eps=0.03, queries=60).run(model, x.flip(0), y.flip(0), run=ROUGH.but(batch_size=5))
    assert torch.equal(apart.x_adv.flip(0), together.x_adv)
    assert torch.equal(apart.queries.flip(0), together.queries)


def test_float32_never_looks_at_bf16(setting, monkeypatch):
    model, x, y = setting
    expected = Square(eps=0.03, queries=30).run(model, x, y, run=Run(device="cpu"))
    monkeypatch.setattr("holdfast.evasion.oracle.round_for_inference", None)
    again = Square(eps=0.03, queries=30).run(model, x, y, run=Run(device="cpu"))
    assert torch.equal(again.x_adv, expected.x_adv)
