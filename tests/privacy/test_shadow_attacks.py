import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from holdfast import stats
from holdfast.errors import UserError
from holdfast.privacy import RMIA, LiRA, Shadows, balanced_halves
from holdfast.run import Run


def population(models=16, images=400, views=1, gain=1.0, hard=3.0, seed=0):
    """Log odds of images of very different difficulty, which training raises by `gain`, among noise of size 1."""
    rng = torch.Generator().manual_seed(seed)
    members = balanced_halves(images, models, Run(seed=seed))
    level = hard * torch.randn(images, generator=rng, dtype=torch.float64)
    shared = torch.randn(models, 1, images, generator=rng, dtype=torch.float64)
    own = 0.3 * torch.randn(models, views, images, generator=rng, dtype=torch.float64)
    return Shadows(log_odds=level + gain * members[:, None].double() + shared + own, members=members)


def auc(scores, members):
    return stats.auroc(scores[~members].numpy(), scores[members].numpy())


ATTACKS = [
    LiRA(),
    LiRA(shared_below=1),
    LiRA(mode="offline"),
    LiRA(mode="offline", shared_below=1),
    RMIA(),
    RMIA(a=0.3),
    RMIA(mode="online"),
    RMIA(gamma=2, a=1),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_comparison_finds_members_where_one_model_alone_tells_nothing(attack):
    target, mine, others = population(models=34, images=2000).held_out(0)
    alone = auc(target[0], mine)
    assert alone < 0.62  # how hard an image is hides whether it was learnt
    assert auc(attack.score(target, others), mine) > alone + 0.04


def test_lira_comes_close_to_the_best_possible_attack():
    target, mine, others = population(models=66, images=4000, gain=2.0, hard=10.0).held_out(5)
    spread = math.sqrt(1 + 0.3**2)
    best = scipy_stats.norm.cdf(2 / (spread * math.sqrt(2)))
    assert auc(LiRA().score(target, others), mine) == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_where_training_leaves_no_trace_attacks_guess(attack):
    target, mine, others = population(gain=0.0, images=2000).held_out(3)
    area = auc(attack.score(target, others), mine)
    low, high = stats.auroc_interval(*(attack.score(target, others)[m].numpy() for m in (~mine, mine)), level=0.999)
    assert low <= 0.5 <= high, area


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_swapping_members_and_others_mirrors_the_auc(attack):
    target, mine, others = population().held_out(0)
    scores = attack.score(target, others)
    assert auc(scores, mine) == pytest.approx(1 - auc(scores, ~mine))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if "lira" in str(a)], ids=str)
def test_lira_on_one_view_is_the_ratio_of_two_normal_densities(attack):
    target, _, others = population(models=12, images=30).held_out(0)
    scores = attack.score(target, others).numpy()
    x, phi, seen = target[0].numpy(), others.log_odds[:, 0].numpy(), others.members.numpy()
    kinds = [("out", ~seen)] if attack.mode == "offline" else [("in", seen), ("out", ~seen)]
    means = {kind: np.array([phi[m[:, i], i].mean() for i in range(30)]) for kind, m in kinds}
    variances = {kind: np.array([phi[m[:, i], i].var(ddof=1) for i in range(30)]) for kind, m in kinds}
    if attack.shared_below > len(others):
        weights = np.concatenate([m.sum(0) - 1 for _, m in kinds])
        shared = np.average(np.concatenate([*variances.values()]), weights=weights)
        variances = dict.fromkeys(means, np.full(30, shared))
    if attack.mode == "offline":
        expected = (x - means["out"]) / np.sqrt(variances["out"])
    else:
        density = {k: scipy_stats.norm.logpdf(x, means[k], np.sqrt(variances[k])) for k in means}
        expected = density["in"] - density["out"]
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_lira_on_several_views_is_the_ratio_of_multivariate_densities():
    target, _, others = population(models=42, images=10, views=3).held_out(0)
    scores = LiRA(shared_below=1).score(target, others)
    for i in range(10):
        value = 0.0
        for sign, mask in ((1, others.members[:, i]), (-1, ~others.members[:, i])):
            seen = others.log_odds[mask, :, i].numpy()
            normal = scipy_stats.multivariate_normal(seen.mean(0), np.cov(seen.T))
            value += sign * normal.logpdf(target[:, i].numpy())
        assert scores[i].item() == pytest.approx(value, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("attack", [LiRA(), LiRA(shared_below=1), LiRA(mode="offline"), RMIA(a=0.3)], ids=str)
def test_a_view_given_twice_adds_nothing(attack):
    once = population()
    twice = Shadows(log_odds=once.log_odds.repeat(1, 2, 1), members=once.members)
    (target, _, others), (target2, _, others2) = once.held_out(0), twice.held_out(0)
    assert torch.allclose(attack.score(target, others), attack.score(target2, others2), rtol=1e-3, atol=1e-3)


def test_views_that_err_apart_tell_more_than_one():
    many = population(models=34, images=3000, views=2, gain=3.0, seed=1)
    noise = 3 * torch.randn(34, 2, 3000, generator=torch.Generator().manual_seed(9))
    many = Shadows(log_odds=many.log_odds + noise, members=many.members)
    one = Shadows(log_odds=many.log_odds[:, :1], members=many.members)
    areas = []
    for shadows in (one, many):
        target, mine, others = shadows.held_out(0)
        areas.append(auc(LiRA().score(target, others), mine))
    assert areas[1] > areas[0] + 0.02


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chosen", [False, True])
def test_rmia_counts_the_pairs_of_images_and_population(gamma, chosen):
    target, _, others = population(models=10, images=60).held_out(0)
    crowd = torch.arange(60) % 3 == 0 if chosen else None
    others = Shadows(log_odds=others.log_odds, members=others.members, population=crowd)
    scores = RMIA(gamma=gamma, a=0.4).score(target, others)
    p, seen = others.log_odds[:, 0].sigmoid().numpy(), others.members.numpy()
    usual = np.array([0.7 * p[~seen[:, i], i].mean() + 0.3 for i in range(60)])
    ratio = target[0].sigmoid().numpy() / usual
    everyone = ratio if crowd is None else ratio[crowd.numpy()]
    assert scores.numpy() == pytest.approx([(r / everyone > gamma).mean() for r in ratio])


def test_rmia_online_takes_both_kinds_for_what_is_usual():
    target, _, others = population(models=10, images=40).held_out(0)
    p, seen = others.log_odds[:, 0].sigmoid().numpy(), others.members.numpy()
    usual = np.array([(p[seen[:, i], i].mean() + p[~seen[:, i], i].mean()) / 2 for i in range(40)])
    ratio = target[0].sigmoid().numpy() / usual
    expected = [(r > ratio).mean() for r in ratio]
    assert RMIA(mode="online").score(target, others).numpy() == pytest.approx(expected)


def test_rmia_works_from_one_model_that_saw_nothing():
    target, mine, others = population(models=16, images=2000).held_out(0)
    answers = others.log_odds[:1] - others.members[:1, None].double()  # as if it had not been trained on them
    single = Shadows(log_odds=answers, members=torch.zeros(1, 2000, dtype=torch.bool))
    assert auc(RMIA(a=1).score(target, single), mine) > auc(target[0], mine) + 0.03


def test_a_is_tuned_to_what_attacks_reference_models_best():
    shadows = population(models=8, images=1500, hard=2.0)
    areas = {}
    for a in (i / 10 for i in range(11)):
        found = [(RMIA(a=a).score(t, others), mine) for t, mine, others in map(shadows.held_out, range(8))]
        areas[a] = np.mean([auc(s, mine) for s, mine in found])
    assert areas[RMIA().tuned(shadows)] == max(areas.values())


@pytest.mark.parametrize("attack", [LiRA(), LiRA(mode="offline"), RMIA(a=0.5)], ids=str)
def test_scores_follow_the_images_in_whatever_order(attack):
    target, _, others = population().held_out(0)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    turned = attack.score(target[:, order], others.select(order))
    assert torch.allclose(turned, attack.score(target, others)[order])


def test_lira_judges_each_image_by_its_own_shadows():
    target, _, others = population(models=70).held_out(0)
    part = slice(10, 50)
    alone = LiRA().score(target[:, part], others.select(part))
    assert len(others) >= LiRA().shared_below
    assert torch.allclose(alone, LiRA().score(target, others)[part])


def test_models_that_agree_to_the_last_bit_are_no_division_by_zero():
    shadows = Shadows(log_odds=torch.zeros(8, 2, 6, dtype=torch.float64), members=balanced_halves(6, 8, Run()))
    for attack in ATTACKS:
        assert torch.isfinite(attack.score(torch.zeros(2, 6, dtype=torch.float64), shadows)).all()


def test_too_few_shadow_models_are_refused_in_one_sentence():
    few = population(models=2, images=10)
    target = few.log_odds[0]
    with pytest.raises(UserError, match=r"lira: every image needs at least 2 shadow models .* train more than 2\."):
        LiRA().score(target, few)
    with pytest.raises(UserError, match=r"rmia: to tune a, at least four reference models"):
        RMIA().score(target, few)
    with pytest.raises(UserError, match="train at least four"):
        few.held_out(0)
    assert torch.isfinite(RMIA(a=0.3).score(target, few)).all()
    seen = Shadows(log_odds=few.log_odds, members=torch.ones(2, 10, dtype=torch.bool))
    with pytest.raises(UserError, match="not trained on it, but 10 of 10"):
        RMIA(a=0.3).score(target, seen)


@pytest.mark.parametrize("attack", [LiRA(), RMIA(a=0.3)], ids=str)
def test_other_views_than_those_of_the_shadows_are_refused(attack):
    shadows = population(views=2)
    with pytest.raises(UserError, match="views and images"):
        attack.score(shadows.log_odds[0, :1], shadows)


def test_shadows_without_meaning_are_refused():
    good = population(models=4, images=10)
    bad = good.log_odds.clone()
    bad[0, 0, :3] = math.nan
    with pytest.raises(UserError, match="3 of 40 log odds are not finite"):
        Shadows(log_odds=bad, members=good.members)
    with pytest.raises(UserError, match="need booleans"):
        Shadows(log_odds=good.log_odds, members=good.members.long())
    with pytest.raises(UserError, match="0 images"):
        good.select(slice(0, 0))
    with pytest.raises(UserError, match="population"):
        Shadows(log_odds=good.log_odds, members=good.members, population=torch.zeros(10, dtype=torch.bool))
