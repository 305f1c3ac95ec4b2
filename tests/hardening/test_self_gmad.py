import pytest
import torch

from holdfast.compression import prunable
from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.hardening.gmad import Contest, levels_of, nearness, pairs_between, random_pairs, ranked
from holdfast.hardening.preferences import Pairs, fidelity, learn, pairs_of, preference
from holdfast.hardening.random_pairs import RandomPairs
from holdfast.hardening.self_gmad import SelfGMAD
from holdfast.models import build_model
from holdfast.run import Run


def net(seed=0):
    return build_model("convnet(width=4, blocks=2)", num_classes=1, image_shape=(3, 8, 8), run=Run(seed=seed))


def images(n=120, seed=0):
    """Noise of different strength on grey; the score says how little."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(n, generator=generator)
    x = 0.5 + 0.5 * strength.view(-1, 1, 1, 1) * (2 * torch.rand(n, 3, 8, 8, generator=generator) - 1)
    split = Images(x=x, y=torch.zeros(n, dtype=torch.int64), classes=("image",), name="noise")
    return split.with_column("score", 1 - strength)


def judge_of(split):
    score = torch.as_tensor(split.columns["score"])
    return lambda first, second: preference(score[first], score[second], 0.1)


SMALL = SelfGMAD(rounds=2, ratios=(0.3, 0.6), members=1, competitors=2, levels=3, epochs=3, lr=1e-3, similarity=1.0)


def test_the_fidelity_loss_is_zero_where_the_probabilities_agree_and_one_where_they_are_opposite():
    p = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert fidelity(p, p).abs().max() < 2e-4
    assert fidelity(torch.tensor(0.0), torch.tensor(1.0)) == pytest.approx(1, abs=1e-3)
    off = fidelity(p[:, None], p[None])
    assert (off - off.diagonal()[:, None] > -2e-4).all()
    estimate = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    fidelity(torch.tensor([1.0, 0.0, 0.2]), estimate).sum().backward()
    assert estimate.grad.isfinite().all()


def test_a_preference_is_the_chance_of_the_higher_rating():
    generator = torch.Generator().manual_seed(0)
    first, second = (m + 0.3 * torch.randn(200_000, generator=generator) for m in (0.7, 0.5))
    told = preference(torch.tensor(0.7), torch.tensor(0.5), 0.3)
    assert told == pytest.approx((first > second).double().mean().item(), abs=0.005)
    assert preference(torch.tensor(0.4), torch.tensor(0.4), 0.3) == 0.5


def test_levels_hold_equally_many_images_and_follow_the_score():
    scores = torch.randn(60, generator=torch.Generator().manual_seed(0)).exp()
    level = levels_of(scores, 6)
    assert torch.bincount(level).tolist() == [10] * 6
    assert (level[scores.argsort()].diff() >= 0).all()
    assert torch.equal(ranked(3 * scores + 1), ranked(scores))


def contests_between(defender, attacker, free=None, top=2, similarity=1.0, directions=None, fresh=None):
    free = torch.ones(len(defender), dtype=torch.bool) if free is None else free
    directions = torch.zeros(len(defender), 1) if directions is None else directions
    return pairs_between(
        defender,
        attacker,
        free,
        torch.ones(len(defender), dtype=torch.bool) if fresh is None else fresh,
        levels=4,
        top=top,
        attacks=False,
        directions=directions,
        similarity=similarity,
    )


def test_a_pair_lies_on_one_level_of_the_defender_and_differs_most_for_the_attacker():
    generator = torch.Generator().manual_seed(0)
    defender, attacker = torch.randn(2, 80, generator=generator)
    free = torch.ones(80, dtype=torch.bool)
    found = contests_between(defender, attacker, free)
    level = levels_of(defender, 4)
    assert len(found) == 8
    for contest in found:
        assert level[contest.better] == level[contest.worse] == contest.level
    first = next(c for c in found if c.level == 2)
    on_level = (level == 2).nonzero().flatten()
    assert attacker[first.better] == attacker[on_level].max()
    assert attacker[first.worse] == attacker[on_level].min()
    chosen = [i for c in found for i in (c.better, c.worse)]
    assert len(set(chosen)) == 16
    assert not free[chosen].any()
    assert free.sum() == 80 - 16
    assert all(c.discrepancy > 0.3 for c in found)


def test_a_rival_that_agrees_gives_no_discrepancy():
    scores = torch.randn(80, generator=torch.Generator().manual_seed(0))
    assert all(c.discrepancy == 0 for c in contests_between(scores, 2 * scores + 1))


def test_unpruned_variants_contradict_nobody():
    split = images()
    model = net()
    found = []

    class Watched(SelfGMAD):
        def pairs(self, *args, **kwargs):
            found.extend(super().pairs(*args, **kwargs))
            return found

    attack = Watched(rounds=1, ratios=(0.0, 0.0), members=2, competitors=1, levels=3, similarity=1.0)
    attack(model, split, judge_of(split), split, run=Run())
    assert len(found) == 6
    assert all(abs(c.discrepancy) < 1e-12 for c in found)


def test_images_like_a_chosen_one_are_left_out_while_there_are_others():
    group = torch.arange(40) // 5 % 2  # on each level of ten, five of either group
    attacker = (1.0 - 0.9 * group) * torch.linspace(-1, 1, 5).repeat(8)  # the first group has the extremes
    found = contests_between(torch.arange(40.0), attacker, directions=nearness(torch.eye(2)[group]), similarity=0.9)
    assert [int(group[c.better]) for c in found[:2]] == [0, 1], "the second pair is of the other group"
    assert len(found) == 8, "where nothing else is left, they are taken"
    plain = contests_between(torch.arange(40.0), attacker)
    assert [int(group[c.better]) for c in plain[:2]] == [0, 0]


def test_who_is_wrong_follows_from_the_votes():
    defends = Contest(better=0, worse=1, level=0, attacks=False, discrepancy=1.0)
    attacks = Contest(better=0, worse=1, level=0, attacks=True, discrepancy=1.0)
    # votes for `better` -> (the defender is wrong, the attacker is wrong)
    for p, (defender, attacker) in {0.9: (True, False), 0.5: (False, True), 0.1: (True, True)}.items():
        assert defends.wrong(p) == (defender, attacker)
        assert attacks.wrong(p) == (attacker, defender)


def test_random_pairs_lie_on_one_level_and_use_an_image_once():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    free = torch.ones(50, dtype=torch.bool)
    free[:10] = False
    found = random_pairs(scores, free, levels=5, top=2, rng=torch.Generator().manual_seed(0))
    chosen = [i for c in found for i in (c.better, c.worse)]
    assert len(set(chosen)) == len(chosen)
    assert min(chosen) >= 10
    level = levels_of(scores, 5)
    assert all(level[c.better] == level[c.worse] for c in found)


def test_learning_from_pairs_orders_the_images_and_keeps_pruned_weights_at_zero():
    split = images()
    model = net()
    score = torch.as_tensor(split.columns["score"]).double()
    masks = {name: torch.rand(w.shape) < 0.7 for name, w in prunable(model).items()}
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    learn(
        model,
        lambda epoch: pairs_of(split, score, 200, 0.1, torch.Generator().manual_seed(epoch)),
        epochs=6,
        batch_size=20,
        lr=0.01,
        deviation=0.1,
        masks=masks,
        run=Run(),
    )
    with torch.no_grad():
        got = model(split.x).flatten()
    assert torch.corrcoef(torch.stack([ranked(got), ranked(score)]))[0, 1] > 0.9
    assert all(not w[~masks[name]].any() for name, w in prunable(model).items())
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())


def test_a_round_rates_pairs_and_learns_from_them():
    split, pool, test = images(), images(seed=1), images(seed=2)
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    asked = []

    def rate(first, second):
        asked.extend(zip(first.tolist(), second.tolist(), strict=True))
        return judge_of(pool)(first, second)

    report = SMALL(model, pool, rate, split, run=Run(), tests={"test": test})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [len(r.contests) for r in report.rounds] == [12, 12]
    assert asked == [(c.better, c.worse) for r in report.rounds for c in r.contests]
    used = [i for pair in asked for i in pair]
    assert len(set(used)) == len(used), "no image is rated twice"
    for r in report.rounds:
        assert 0 <= r.wrong <= 1
        assert len(r.rivals) == 2
    assert report.rounds[0].right_after >= report.rounds[0].right_before
    assert report.rounds[-1].correlations["test"][0] > report.before["test"][0]
    assert "Of 24 rated pairs" in report.sentence
    assert len(report.to_json()["rounds"]) == 2
    again = SMALL(model, pool, judge_of(pool), split, run=Run(), tests={"test": test})
    assert again.to_json() == report.to_json()


def test_the_pool_is_seen_without_its_columns():
    split, pool = images(), images(seed=1)
    first = SMALL(net(), pool, judge_of(pool), split, run=Run())
    bare = SMALL(net(), pool.but(columns={}), judge_of(pool), split, run=Run())
    assert first.to_json() == bare.to_json()


def test_random_pairs_cost_as_many_ratings():
    split, pool = images(), images(seed=1)
    fields = {f: getattr(SMALL, f) for f in ("rounds", "ratios", "members", "competitors", "levels", "epochs", "lr")}
    report = RandomPairs(**fields)(net(), pool, judge_of(pool), split, run=Run())
    assert [len(r.contests) for r in report.rounds] == [12, 12]


def test_given_rivals_take_the_place_of_pruned_ones():
    split, pool = images(), images(seed=1)
    rival = net(seed=5)
    state = {name: value.clone() for name, value in rival.state_dict().items()}
    report = SMALL(net(), pool, judge_of(pool), split, run=Run(), rivals=[rival])
    assert len(report.rounds[0].rivals) == 1
    assert all(torch.equal(value, state[name]) for name, value in rival.state_dict().items())


def test_pairs_join_and_select():
    x = torch.arange(4.0).view(4, 1, 1, 1)
    pairs = Pairs(x, x + 1, torch.linspace(0, 1, 4)).join(Pairs(x + 2, x, torch.zeros(4)))
    assert len(pairs) == 8
    assert pairs.select(torch.tensor([4])).first.item() == 2


def test_wrong_input_is_refused_in_one_sentence():
    split, pool = images(), images(20, seed=1)
    with pytest.raises(UserError, match="noise must have a column 'score'"):
        SMALL(net(), pool, judge_of(pool), split.but(columns={}), run=Run())
    classifier = build_model("convnet(width=4, blocks=2)", num_classes=3, image_shape=(3, 8, 8), run=Run())
    with pytest.raises(UserError, match="must give one score per image"):
        SMALL(classifier, pool, judge_of(pool), split, run=Run())
    with pytest.raises(UserError, match=r"must be as many shares in \[0, 1\]"):
        SMALL(net(), pool, lambda a, b: torch.full((len(a),), 2.0), split, run=Run())
    with pytest.raises(UserError, match="no pairs left to rate"):
        SelfGMAD(rounds=3, ratios=(0.5,), members=1, competitors=4, levels=3, similarity=1.0)(
            net(), pool, judge_of(pool), split, run=Run()
        )
