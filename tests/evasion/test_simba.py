import pytest
import torch
from scipy.fft import idct

from holdfast.evasion import SimBA
from holdfast.evasion.simba import CoordinateTrial, cosines
from holdfast.models import build_model
from holdfast.run import Run


@pytest.fixture(scope="module")
def setting():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 10), run=Run(seed=3)).eval()
    x = 0.3 + 0.4 * torch.rand(8, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


class Traced(CoordinateTrial):
    """Writes down, after each step, the loss and the length of the point kept, and what was accepted."""

    def begin(self, fresh):
        super().begin(fresh)
        self.losses, self.lengths, self.moves, self.turns = [], [], [], []

    def step(self, oracle, state):
        before = state["offset"].clone()
        self.turns.append(state["settled"].clone())
        super().step(oracle, state)
        self.losses.append(state["best_loss"].clone())
        self.lengths.append((state["best"] - state["x0"]).flatten(1).norm(dim=1))
        self.moves.append((state["offset"] - before).flatten(1).norm(dim=1))


def traced(monkeypatch, attack, model, x, y):
    made = []

    def search(self, aim, seed):
        made.append(Traced(self, aim, seed))
        return made[0]

    monkeypatch.setattr(SimBA, "search", search)
    outcome = attack.run(model, x, y, run=Run())
    return outcome, made[0]


@pytest.mark.parametrize("basis", ["dct", "pixel"])
def test_the_loss_never_falls_and_the_length_is_at_most_the_root_of_the_accepted_steps(monkeypatch, setting, basis):
    model, x, y = setting
    # Steps too small to fool anybody, so that all items stay in their slots.
    attack = SimBA(eps=9.0, step=1e-3, queries=60, basis=basis)
    outcome, trace = traced(monkeypatch, attack, model, x, y)
    assert not outcome.success.any()
    losses, lengths, moves = (torch.stack(rows) for rows in (trace.losses, trace.lengths, trace.moves))
    assert (losses.diff(dim=0) >= 0).all()
    accepted = (moves > 0).cumsum(0)
    assert torch.allclose(moves[moves > 0], torch.tensor(1e-3), atol=1e-6)
    assert torch.allclose(lengths, 1e-3 * accepted.sqrt(), atol=1e-5), "orthonormal: the lengths add as squares"
    assert accepted[-1].min() > 15
    # A direction takes one query if the first try is accepted, two if not; the very first query is the image.
    assert torch.equal(trace.turns[0], trace.turns[1])
    taken = 1 + 2 * trace.turns[-1] - (moves[1:-1] > 0).sum(0)
    assert (taken <= 60).all()


def test_the_ball_bounds_the_length(setting):
    model, x, y = setting
    outcome = SimBA(eps=0.05, step=0.02, queries=200).run(model, x, y, run=Run())
    assert outcome.distance.max() <= 0.05 + 1e-5
    assert outcome.distance[~outcome.success].max() > 0.049


def test_cosines_are_the_orthonormal_transform():
    for size in (1, 2, 7, 32):
        waves = cosines(size).double()
        assert torch.allclose(waves @ waves.T, torch.eye(size).double(), atol=1e-6)
        expected = torch.from_numpy(idct(torch.eye(size).double().numpy(), norm="ortho", axis=1))
        assert torch.allclose(waves, expected, atol=1e-6)


@pytest.mark.parametrize(("basis", "frequencies", "count"), [("dct", None, 360), ("dct", 4, 48), ("pixel", 4, 360)])
def test_every_direction_comes_once_before_any_comes_again(basis, frequencies, count):
    trial = CoordinateTrial(SimBA(basis=basis, frequencies=frequencies), "any", 0)
    x0 = torch.zeros(2, 3, 12, 10)
    fresh = {
        "x0": x0,
        "key": torch.tensor([1, 2]),
        "step": torch.zeros(2, dtype=torch.int64),
        "fooled": torch.zeros(2, dtype=torch.bool),
    }
    trial.begin(fresh)
    assert torch.equal(fresh["order"].sort(dim=1).values.long(), torch.arange(count).expand(2, -1))
    assert not torch.equal(fresh["order"][0], fresh["order"][1])
    directions = torch.cat([trial.directions(torch.tensor([k]), x0[:1]) for k in range(count)]).flatten(1)
    assert torch.allclose(directions @ directions.T, torch.eye(count), atol=1e-5)


def test_it_goes_on_where_the_probability_is_one_to_rounding():
    class Sure(torch.nn.Module):
        """Margins of about 40: in float32 the softmax of class 0 is 1 and its logarithm 0."""

        def forward(self, x):
            mean = x.mean((1, 2, 3)) * 40
            return torch.stack([80 - mean, mean], 1)

    x = torch.full((2, 1, 4, 4), 0.5)
    outcome = SimBA(eps=3.0, step=0.2, queries=200).run(Sure(), x, torch.zeros(2, dtype=torch.int64), run=Run())
    assert not outcome.success.any()
    assert (outcome.logits[:, 1] > 25).all(), "it started at 20"
