import math

import pytest
import torch
from torch import nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.evasion.class_tree import CIFAR10_TREE, tree_distances
from holdfast.evasion.mad_competition import MADCompetition, Votes, dominance, perron
from holdfast.run import Run

CLASSES = tuple(CIFAR10_TREE)


def test_distances_on_the_tree_by_hand():
    far = tree_distances(CLASSES, CIFAR10_TREE)
    at = dict(zip(CLASSES, range(10), strict=True))
    by_hand = {
        # nodes at depth 1 weigh 1, then 1/2, 1/4, 1/8
        ("cat", "dog"): 2 / 8,
        ("cat", "deer"): 2 * (1 / 4 + 1 / 8),
        ("cat", "bird"): 1 / 2 + 1 / 4 + 1 / 8 + 1 / 2,
        ("bird", "frog"): 1,
        ("truck", "automobile"): 2 / 4,
        ("truck", "ship"): 2 * (1 / 2 + 1 / 4),
        ("truck", "frog"): 1 + 1 / 2 + 1 / 4 + 1 + 1 / 2,
        ("cat", "ship"): 1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 + 1 / 2 + 1 / 4,
    }
    for (a, b), distance in by_hand.items():
        assert far[at[a], at[b]] == distance, (a, b)
    assert torch.equal(far, far.T)
    assert ((far == 0) == torch.eye(10, dtype=torch.bool)).all()
    assert tree_distances(CLASSES, CIFAR10_TREE, weighting="equal")[at["cat"], at["frog"]] == 3 + 1


def test_of_several_paths_the_nearest_or_the_mean_counts():
    tree = {"a": ["r/x/a"], "b": ["r/x/b", "r/y/z/b"]}
    near, far = 2 / 2, 1 + 1 / 2 + 1 + 1 / 2 + 1 / 4
    assert tree_distances(("a", "b"), tree)[0, 1] == near
    assert tree_distances(("a", "b"), tree, across="mean")[1, 0] == (near + far) / 2


def test_without_a_tree_all_classes_are_equally_far():
    assert torch.equal(tree_distances(("a", "b", "c")), 1 - torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": ["r/a"]}, "must have a list of paths for 'b', got None"),
        ({"a": ["r/a"], "b": "r/b"}, "must have a list of paths for 'b', got 'r/b'"),
        ({"a": ["r/x"], "b": ["r/x"]}, "two classes have the same path"),
    ],
)
def test_a_tree_that_does_not_tell_the_classes_apart_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        tree_distances(("a", "b"), tree)


def test_strengths_come_back_from_their_ratios():
    strength = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    assert torch.allclose(perron(strength[:, None] / strength[None]), strength, atol=1e-12)


def test_dominance_smooths_both_counts():
    rights = torch.tensor([[0.0, 9.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(dominance(rights), torch.tensor([[1.0, 10.0], [0.1, 1.0]], dtype=torch.float64))


class Table(nn.Module):
    """A model that reads, from the first pixel of an image, which row of its table is the answer."""

    def __init__(self, label, confidence, classes=10):
        super().__init__()
        rest = (1 - confidence) / (classes - 1)
        p = rest[:, None].repeat(1, classes).scatter(1, label[:, None], confidence[:, None])
        self.logits = nn.Parameter(p.log())

    def forward(self, x):
        return self.logits[(x[:, 0, 0, 0] * 1000).round().long()]


def pool_of(n=400, seed=0):
    """A pool whose labels are all 0, and the true ones."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.arange(n) / 1000).view(n, 1, 1, 1).expand(n, 1, 2, 2).clone()
    truth = torch.randint(10, (n,), generator=generator)
    return Images(x=x, y=torch.zeros(n, dtype=torch.int64), classes=CLASSES, name="pool"), truth


def model_of(truth, accuracy, seed):
    generator = torch.Generator().manual_seed(seed)
    other = (truth + torch.randint(1, 10, truth.shape, generator=generator)) % 10
    label = torch.where(torch.rand(len(truth), generator=generator) < accuracy, truth, other)
    return Table(label, 0.5 + 0.5 * torch.rand(len(truth), generator=generator))


class Oracle:
    def __init__(self, truth):
        self.truth, self.asked = truth, []

    def __call__(self, index):
        self.asked += index.tolist()
        return self.truth[index]


ACCURACIES = {"good": 0.95, "fair": 0.8, "poor": 0.55, "bad": 0.3}


def compete(competition=None, names=tuple(ACCURACIES), **more):
    pool, truth = pool_of()
    oracle = Oracle(truth)
    models = {name: model_of(truth, ACCURACIES[name], seed) for seed, name in enumerate(ACCURACIES) if name in names}
    attack = competition or MADCompetition(images=15)
    return attack(models, pool, oracle, run=Run(), tree=CIFAR10_TREE, **more), oracle, truth


def test_few_labels_rank_the_models():
    result, oracle, _ = compete(MADCompetition(images=30, repeats=9, count="chosen"))
    assert result.ranking == list(ACCURACIES)
    assert len(oracle.asked) == len(set(oracle.asked)) == len(result.labels) <= 6 * 30
    assert float(result.scores.sum()) == pytest.approx(1)
    for i, name in enumerate(result.names):
        low, high = result.intervals[name]
        assert low <= float(result.scores[i]) <= high
    assert result.intervals["good"][0] > result.intervals["bad"][1]
    assert "good" in result.sentence
    assert f"by {len(result.labels)} labels" in result.sentence


def test_the_images_of_a_bout_are_those_of_confident_disagreement():
    result, _, _ = compete()
    far = tree_distances(CLASSES, CIFAR10_TREE)
    for (a, b), bout in result.bouts.items():
        first, second = result.votes[a], result.votes[b]
        rows = bout.images
        assert (first.label[rows] != second.label[rows]).all()
        assert (first.confidence[rows] >= bout.threshold).all()
        assert (second.confidence[rows] >= bout.threshold).all()
        apart = far[first.label[rows], second.label[rows]]
        assert torch.equal(apart, apart.sort(descending=True).values)
        pairs = [frozenset(p) for p in zip(first.label[rows].tolist(), second.label[rows].tolist(), strict=True)]
        assert len(set(pairs)) == len(pairs)
        counts = torch.bincount(torch.cat([first.label[rows], second.label[rows]]), minlength=10)
        assert counts.max() <= 3


def test_accuracies_gap_and_failures_are_counted_from_the_labels():
    result, _, truth = compete()
    bout = result.bouts["good", "bad"]
    right = (result.votes["good"].label[bout.images] == truth[bout.images]).double().mean()
    assert result.accuracy[0, 3] == right
    assert result.accuracy[3, 0] < right
    assert math.isnan(result.accuracy[1, 1])
    assert result.failures("good") == sorted(
        i for i in result.labels if int(result.votes["good"].label[i]) != int(truth[i])
    )
    above = [abs(float(result.accuracy[i, j] - result.accuracy[j, i])) for i in range(4) for j in range(i)]
    assert result.gap == pytest.approx(sum(above) / 6)
    values = result.to_json()
    assert values["ranking"] == result.ranking
    assert values["bouts"][0]["models"] == ["good", "fair"]


def test_the_confidence_asked_for_falls_until_enough_qualify_and_is_recorded():
    label = torch.tensor([0, 1, 2, 3, 4, 5])
    first = Votes(label, torch.tensor([0.9, 0.86, 0.72, 0.9, 0.9, 0.9]))
    second = Votes((label + 1) % 10, torch.tensor([0.9, 0.9, 0.9, 0.71, 0.3, 0.9]))
    flat = tree_distances(CLASSES)

    def choose(images):
        bout = MADCompetition(images=images, count="chosen").choose(first, second, flat)
        return bout.images.tolist(), bout.threshold

    # All are equally far apart: the surest come first.
    assert choose(3) == ([0, 5, 1], 0.8)
    assert choose(5) == ([0, 5, 1, 2, 3], 0.7)
    assert choose(6) == ([0, 5, 1, 2, 3, 4], 0.3)
    assert choose(7) == ([0, 5, 1, 2, 3, 4], 0.0)


def test_classes_count_for_images_looked_at_or_for_images_chosen():
    """Class 0 against 1 comes up four times; then 0 and 1 are spent if what was turned down counts."""
    first = Votes(torch.tensor([0, 0, 0, 0, 0, 2]), torch.linspace(0.99, 0.9, 6))
    second = Votes(torch.tensor([1, 1, 1, 1, 3, 3]), torch.linspace(0.99, 0.9, 6))
    flat = tree_distances(CLASSES)
    examined = MADCompetition(images=6).choose(first, second, flat)
    chosen = MADCompetition(images=6, count="chosen").choose(first, second, flat)
    assert examined.images.tolist() == [0, 5]
    assert chosen.images.tolist() == [0, 4, 5]


def test_a_model_that_joins_needs_labels_for_its_own_bouts_only():
    early, first, _ = compete(names=("good", "poor", "bad"))
    joined, later, _ = compete(names=("fair",), known=early)
    whole, _, _ = compete()
    assert not set(first.asked) & set(later.asked)
    assert set(first.asked) | set(later.asked) == set(whole.labels)
    assert joined.ranking == whole.ranking
    for name in ACCURACIES:
        mine, theirs = joined.scores[joined.names.index(name)], whole.scores[whole.names.index(name)]
        assert float(mine) == pytest.approx(float(theirs))


def test_the_labels_of_the_pool_are_not_read():
    pool, truth = pool_of()
    models = {name: model_of(truth, accuracy, seed) for seed, (name, accuracy) in enumerate(ACCURACIES.items())}
    results = [
        MADCompetition()(models, split, Oracle(truth), run=Run(), tree=CIFAR10_TREE)
        for split in (pool, pool.but(y=truth))
    ]
    assert all(
        torch.equal(a.images, b.images)
        for a, b in zip(results[0].bouts.values(), results[1].bouts.values(), strict=True)
    )


def test_models_that_always_agree_share_the_score():
    pool, truth = pool_of()
    model = model_of(truth, 0.7, 0)
    result = MADCompetition()({"a": model, "b": model}, pool, Oracle(truth), run=Run())
    assert result.scores.tolist() == [0.5, 0.5]
    assert not result.labels


def test_wrong_input_is_refused_in_one_sentence():
    pool, truth = pool_of()
    model = model_of(truth, 0.7, 0)
    with pytest.raises(UserError, match="at least two models"):
        MADCompetition()({"a": model}, pool, Oracle(truth), run=Run())
    early, _, _ = compete(names=("good", "bad"))
    with pytest.raises(UserError, match="the name 'good' is taken"):
        compete(names=("good",), known=early)
    with pytest.raises(UserError, match="the earlier competition was on other images"):
        MADCompetition()({"a": model}, pool.select(slice(5, None)), Oracle(truth), run=Run(), known=early)
    two = {"a": model, "b": model_of(truth, 0.2, 1)}
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.9"):
        MADCompetition()(two, pool, lambda index: index + 10, run=Run())
    with pytest.raises(UserError, match="a tensor of as many int64 is needed"):
        MADCompetition()(two, pool, lambda index: index.float(), run=Run())
