import numpy as np
import pytest

from holdfast.errors import UserError
from holdfast.ood import compare_detectors, separation


def task(n=400, m=300, seed=0, shift=1.0):
    """Two detectors that see the same images with a little noise of their own, and one that sees nothing."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(size=n), rng.normal(shift, size=m)
    known = {"a": inside, "b": inside + 0.4 * rng.normal(size=n), "blind": rng.normal(size=n)}
    far = {"a": outside, "b": outside + 0.4 * rng.normal(size=m), "blind": rng.normal(size=m)}
    near = {name: values[: m // 2] / 2 for name, values in far.items()}
    return known, {"far": far, "near": near}


def test_figures_are_those_of_separation_and_intervals_about_the_same():
    known, unknown = task()
    found = compare_detectors(known, unknown, rng=np.random.default_rng(1), resamples=800)
    for name in known:
        for s in unknown:
            alone = separation(known[name], unknown[s][name], rng=np.random.default_rng(2), resamples=800)
            both = found.separations[name][s]
            for field in ("auroc", "aupr_in", "aupr_out", "fpr95_id", "fpr95_ood", "n_in", "n_out"):
                assert getattr(both, field) == pytest.approx(getattr(alone, field), abs=1e-12)
            for field, interval in alone.intervals.items():
                width = interval[1] - interval[0]
                assert both.intervals[field] == pytest.approx(interval, abs=0.25 * width + 1e-12)


def test_many_different_scores_are_sorted_into_levels_without_harm():
    known, unknown = task(n=5000, m=3000)
    found = compare_detectors(known, unknown, rng=np.random.default_rng(1), resamples=300)
    alone = separation(known["a"], unknown["far"]["a"], rng=np.random.default_rng(2), resamples=300)
    both = found.separations["a"]["far"]
    for field, (low, high) in alone.intervals.items():
        assert both.intervals[field] == pytest.approx((low, high), abs=0.3 * (high - low))
        assert both.intervals[field][0] <= getattr(both, field) <= both.intervals[field][1]


def test_the_ranking_is_by_the_weighted_mean():
    known, unknown = task()
    found = compare_detectors(known, unknown, weights={"far": 3, "near": 1}, rng=np.random.default_rng(1))
    assert [s.name for s in found.ranking] == ["a", "b", "blind"]
    for s in found.ranking:
        by = found.separations[s.name]
        assert s.auroc == pytest.approx(0.75 * by["far"].auroc + 0.25 * by["near"].auroc)
        assert s.behind == pytest.approx(found.ranking[0].auroc - s.auroc)
    assert (found.ranking[0].behind, found.ranking[0].interval) == (0, (0, 0))


def test_pairs_tell_differences_from_chance_that_the_intervals_of_the_figures_do_not():
    known, unknown = task()
    found = compare_detectors(known, {"far": unknown["far"]}, rng=np.random.default_rng(1))
    best, second, blind = found.ranking
    a, b = (found.separations[s.name]["far"].intervals["auroc"] for s in (best, second))
    assert b[1] > a[0], "they overlap"
    assert not second.tied
    assert second.interval[1] - second.interval[0] < (a[1] - a[0]) / 2
    assert not blind.tied


def test_the_same_detector_in_two_scales_is_tied_with_itself():
    known, unknown = task()
    known["c"] = np.exp(known["a"])
    for by in unknown.values():
        by["c"] = np.exp(by["a"])
    standing = {s.name: s for s in compare_detectors(known, unknown, rng=np.random.default_rng(1)).ranking}
    assert standing["c"].tied
    assert abs(standing["c"].interval[1]) < 1e-9


def test_a_difference_by_chance_alone_is_called_one_about_once_in_twenty():
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known = {name: rng.normal(size=80) for name in "ab"}
        unknown = {"s": {name: rng.normal(1, size=80) for name in "ab"}}
        found = compare_detectors(known, unknown, reference="a", rng=rng, resamples=200)
        false += not next(s for s in found.ranking if s.name == "b").tied
    assert false <= 9  # P(Binomial(60, 0.05) > 9) < 0.1 %


def test_the_reference_may_be_another_than_the_best():
    known, unknown = task(n=3000, m=2000)
    found = compare_detectors(known, unknown, reference="b", rng=np.random.default_rng(1))
    first = found.ranking[0]
    assert first.name == "a"
    assert first.behind < 0
    assert first.interval[1] < 0


def test_what_cannot_be_compared_is_refused():
    known, unknown = task()
    with pytest.raises(UserError, match="must score the same images"):
        compare_detectors({**known, "a": known["a"][:5]}, unknown, rng=np.random.default_rng(1))
    with pytest.raises(UserError, match="no scores"):
        compare_detectors({name: [] for name in known}, unknown, rng=np.random.default_rng(1))
    bad = known["a"].copy()
    bad[3] = np.nan
    with pytest.raises(UserError, match="1 of 400 scores are not finite"):
        compare_detectors({**known, "a": bad}, unknown, rng=np.random.default_rng(1))
