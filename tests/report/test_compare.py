import numpy as np
import pyarrow as pa
import pytest
from sample_audit import hostile, make_audit, make_samples

from holdfast import stats
from holdfast.audit.findings import Metric
from holdfast.audit.record import Audit
from holdfast.errors import UserError
from holdfast.report import compare, write_comparison
from holdfast.report.differences import Measured, difference


@pytest.fixture(scope="module")
def better():
    return make_audit("hardened", shift=150)


@pytest.fixture(scope="module")
def both(sample, better):
    return compare([sample, better], ["before", "after"])


def of(comparison, check, metric, audit=0):
    shared = next(m for m in comparison.metrics if (m.check, m.any.name) == (check, metric))
    return shared.differences[audit]


def measured(value, *, n=None, low=None, high=None, unit="rate", better="higher", outcomes=None, **more):
    metric = Metric(name="m", value=value, low=low, high=high, n=n, unit=unit, better=better, **more)
    return Measured(metric, "check", outcomes or {}, "data")


def counted(k, n, **more):
    low, high = stats.wilson(k, n)
    return measured(k / n, n=n, low=low, high=high, **more)


def test_a_rate_over_the_same_images_is_paired_and_tested_by_mcnemar(sample, better, both):
    found = of(both, "accuracy", "accuracy")
    a, b = (s["accuracy.correct"].to_numpy() for s in (sample.samples, better.samples))
    assert found.test == "McNemar, paired"
    assert found.p == stats.mcnemar(b, a)
    assert (found.low, found.high) == stats.newcombe_paired(b, a)
    assert found.value == pytest.approx(0.015)
    assert found.outcome == "better"


def test_pairing_sees_what_independent_rates_hide(sample):
    slightly = make_audit(shift=30)
    alone = Audit.model_validate(slightly.to_json())  # read without its samples
    paired = of(compare([sample, slightly]), "accuracy", "accuracy")
    unpaired = of(compare([sample, alone]), "accuracy", "accuracy")
    assert paired.value == unpaired.value
    assert (paired.test, paired.outcome) == ("McNemar, paired", "better")
    assert (unpaired.test, unpaired.outcome) == ("two rates", "no clear difference")


def test_other_images_are_never_paired_and_the_reader_is_warned(sample):
    other = make_audit(shift=150, data="ffffffffffffffff")
    comparison = compare([sample, other])
    assert of(comparison, "accuracy", "accuracy").test == "two rates"
    assert any("different data" in warning for warning in comparison.warnings)


def test_rows_of_other_images_are_never_paired(sample, better):
    moved = better.samples.set_column(1, "index", pa.array(np.arange(10_000) + 1))
    assert of(compare([sample, better.sealed(moved)]), "accuracy", "accuracy").test == "two rates"


def test_a_column_that_does_not_make_up_the_rate_is_not_used(sample, better):
    lying = better.sealed(make_samples(shift=-3000))
    assert of(compare([sample, lying]), "accuracy", "accuracy").test == "two rates"


def test_a_rate_of_failures_is_paired_with_the_column_of_successes(sample, better):
    def errors(audit, k):
        low, high = stats.wilson(k, 10_000)
        wrong = Metric(name="error", value=k / 10_000, low=low, high=high, n=10_000, unit="rate", better="lower")
        finding = audit.finding("accuracy").model_copy(update={"metrics": [wrong]})
        changed = audit.model_copy(update={"findings": [finding]})
        changed._samples = audit._samples
        return changed

    found = of(compare([errors(sample, 836), errors(better, 686)]), "accuracy", "error")
    assert found.test == "McNemar, paired"
    assert found.value == pytest.approx(-0.015)
    assert found.low < found.value < found.high
    assert found.outcome == "better"


def test_independent_rates_differ_when_the_interval_of_the_difference_excludes_zero():
    found = difference("b", counted(500, 1000), counted(560, 1000))
    assert found.test == "two rates"
    assert (found.low, found.high) == stats.newcombe(560, 1000, 500, 1000)
    assert found.outcome == "better"
    assert difference("b", counted(500, 1000), counted(510, 1000)).outcome == "no clear difference"
    assert difference("b", counted(50, 100), counted(56, 100)).outcome == "no clear difference"


def test_a_rate_that_counts_no_cases_is_not_taken_for_one():
    a, b = (measured(v, n=1000, low=v - 0.01, high=v + 0.01, better="lower") for v in (0.05, 0.08))
    found = difference("b", a, b)
    assert (found.test, found.outcome) == ("intervals", "worse")
    near = measured(0.06, n=1000, low=0.05, high=0.07, better="lower")
    assert difference("b", a, near).outcome == "no clear difference"


@pytest.mark.parametrize(
    ("first", "second", "test", "outcome"),
    [
        (measured(100, unit="count", better="lower"), measured(99, unit="count", better="lower"), "exact", "better"),
        (
            measured(100, unit="count", better="neither"),
            measured(99, unit="count", better="neither"),
            "exact",
            "changed",
        ),
        (
            measured(5.0, unit="ms", better="lower", volatile=True),
            measured(9.0, unit="ms", better="lower"),
            "none",
            "not tested",
        ),
        (measured(0.3, unit="nats"), measured(0.4, unit="nats"), "none", "not tested"),
        (measured(0.3, unit="nats"), measured(0.3, unit="nats"), "none", "equal"),
        (measured(None), measured(0.3), "none", "not tested"),
    ],
)
def test_what_cannot_be_tested_says_so(first, second, test, outcome):
    found = difference("b", first, second)
    assert (found.test, found.outcome) == (test, outcome)


def test_one_audit_against_itself_differs_in_nothing(sample):
    comparison = compare([sample, sample])
    assert comparison.names == ["resnet20 on cifar10", "resnet20 on cifar10 (2)"]
    assert {d.outcome for m in comparison.metrics for d in m.differences} <= {"equal", "not tested"}
    assert any("same audit" in warning for warning in comparison.warnings)


def test_the_first_audit_is_the_reference_of_all_others(sample, better):
    worse = make_audit(shift=-200)
    comparison = compare([sample, better, worse], ["a", "b", "c"])
    assert of(comparison, "accuracy", "accuracy", 0).outcome == "better"
    assert of(comparison, "accuracy", "accuracy", 1).outcome == "worse"
    assert of(comparison, "accuracy", "accuracy", 1).value == pytest.approx(-0.02)


def test_metrics_and_findings_that_one_audit_lacks_are_shown_as_missing(sample, better):
    fewer = better.model_copy(update={"findings": [f for f in better.findings if f.check != "ood"]})
    third = compare([sample, fewer, better], ["a", "b", "c"])
    shared = next(m for m in third.metrics if m.check == "ood")
    assert shared.metrics[1] is None
    assert shared.differences[0].outcome == "not tested"
    assert shared.differences[1].outcome == "equal"
    assert not [m for m in compare([sample, fewer]).metrics if m.check == "ood"]
    row = next(r for r in third.findings if r.id == "ood")
    assert row.verdicts[1] is None


def test_schemas_of_different_major_versions_are_refused(sample, better):
    future = better.model_copy(update={"schema_version": "2.0"})
    with pytest.raises(UserError, match=r"schema version 1\.\d.*2\.0"):
        compare([sample, future])
    compare([sample, better.model_copy(update={"schema_version": "1.9"})])


def test_too_few_audits_and_too_few_names_are_refused(sample):
    with pytest.raises(UserError, match="two or more"):
        compare([sample])
    with pytest.raises(UserError, match="as many names"):
        compare([sample, sample], ["one"])


def test_whatever_makes_numbers_less_comparable_is_said(sample, better):
    policy = better.policy.model_copy(update={"name": "ours"})
    code = better.environment.model_copy(update={"code": "0000"})
    other = better.model_copy(update={"policy": policy, "environment": code, "profile": {"name": "quick"}})
    warnings = " ".join(compare([sample, other]).warnings)
    assert "policies" in warnings
    assert "versions of holdfast" in warnings
    assert "profiles" in warnings
    finding = better.findings[2].model_copy(update={"settings": {"images": 500}})
    reset = better.model_copy(update={"findings": [*better.findings[:2], finding, *better.findings[3:]]})
    assert "Accuracy per class: the settings differ in attacks, enough, images." in compare([sample, reset]).warnings


def test_the_text_names_what_changed_and_by_which_test(both):
    text = both.to_text()
    assert "after: " in text
    assert "McNemar" in text
    assert "91.64\u202f% to 93.14\u202f%" in text
    assert f"{both.tested} differences were tested" in text


def test_the_comparison_survives_json(both):
    content = both.model_dump(mode="json")
    assert type(both).model_validate(content) == both


def test_the_page_shows_verdicts_values_and_tests(both, tmp_path):
    page = write_comparison(both, tmp_path / "new")
    assert page == tmp_path / "new" / "compare.html"
    html = page.read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    for words in ("before", "after", "McNemar, paired", "93.14\u202f%", "Verdicts"):
        assert words in html
    assert write_comparison(both, tmp_path / "b.html").read_bytes() == page.read_bytes()


def test_nothing_an_audit_says_becomes_markup(sample, better, tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    comparison = compare([hostile(sample, evil), hostile(better, evil)], [evil, evil])
    html = write_comparison(comparison, tmp_path).read_text(encoding="utf-8")
    assert html.count("<script") == 1
    assert "<img" not in html
