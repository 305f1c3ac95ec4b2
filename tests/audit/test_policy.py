import pytest
import yaml

from holdfast import UserError
from holdfast.audit import Metric, Policy, Rule, all_checks, decide, load_policy
from holdfast.audit.policy import DEFAULT

LOWER = Rule(better="lower", pass_at=0.02, fail_beyond=0.05)
HIGHER = Rule(better="higher", pass_at=0.4, fail_beyond=0.1)


def metric(value, low=None, high=None, unit="rate"):
    return Metric(name="ece", value=value, low=low, high=high, unit=unit)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.01, 0.005, 0.02, "pass"),
        (0.01, 0.005, 0.021, "attention"),  # the unfavourable end decides
        (0.03, 0.021, 0.05, "attention"),
        (0.03, 0.01, 0.9, "attention"),
        (0.06, 0.05, 0.07, "attention"),  # straddles the limit
        (0.06, 0.051, 0.07, "fail"),
        (0.02, None, None, "pass"),
        (0.05, None, None, "attention"),
        (0.0501, None, None, "fail"),
        (None, None, None, "not assessed"),
    ],
)
def test_the_verdict_goes_by_the_unfavourable_end_of_the_interval(value, low, high, verdict):
    assert decide(metric(value, low, high), LOWER).verdict == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(0.5, 0.4, 0.6, "pass"), (0.5, 0.39, 0.6, "attention"), (0.05, 0.0, 0.1, "attention"), (0.05, 0.0, 0.09, "fail")],
)
def test_where_higher_is_better_the_lower_end_decides(value, low, high, verdict):
    assert decide(metric(value, low, high), HIGHER).verdict == verdict


def test_the_reason_names_the_number_its_interval_and_the_limit():
    reason = decide(Metric(name="ece", title="Calibration error", value=0.07, low=0.06, high=0.08, unit="rate"), LOWER)
    assert reason.reason == "Calibration error: 7.0 % (6.0 to 8.0 %), above 5 %."
    assert (reason.pass_at, reason.fail_beyond) == (0.02, 0.05)


def test_a_rule_with_one_limit_has_no_room_between_pass_and_fail():
    rule = Rule(better="lower", pass_at=0)
    assert decide(metric(0.0, unit="count"), rule).verdict == "pass"
    assert decide(metric(1.0, unit="count"), rule).verdict == "fail"


def test_a_minor_rule_never_fails():
    rule = Rule(better="lower", pass_at=0, severity="minor")
    assert decide(metric(1.0), rule).verdict == "attention"


def test_without_an_adversary_robustness_is_reported_and_not_judged():
    rule = Rule(better="higher", pass_at=0.4, fail_beyond=0.1, adversary=True)
    assert decide(metric(0.0, 0.0, 0.01), rule).verdict == "fail"
    unjudged = decide(metric(0.0, 0.0, 0.01), rule, adversary=False)
    assert unjudged.verdict == "not assessed"
    assert "no adversary" in unjudged.reason


def test_rounding_does_not_decide():
    assert decide(metric(0.1 + 0.2), Rule(better="lower", pass_at=0.3)).verdict == "pass"


def test_the_default_policy_covers_every_check_that_measures_and_gives_sources():
    policy = load_policy()
    checks = {check.id for check in all_checks()}
    assert set(policy.rules) <= checks
    assert checks - set(policy.rules) == {"security-curve", "minimal-norm", "decision-attacks"}
    assert all(rule.source for rules in policy.rules.values() for rule in rules.values())


def test_a_users_file_changes_what_it_names_and_keeps_the_rest(tmp_path):
    path = tmp_path / "ours.yaml"
    path.write_text(
        "name: ours\nreason: we look twice\nthreat: {adversary: false, eps: 4/255}\n"
        "rules:\n  accuracy:\n    accuracy: {pass: 0.9, fail: 0.8}\n"
    )
    ours, default = load_policy(path), load_policy()
    assert (ours.name, ours.reason, ours.threat.adversary) == ("ours", "we look twice", False)
    assert ours.threat.eps == pytest.approx(4 / 255)
    assert ours.rules["accuracy"]["accuracy"].pass_at == 0.9
    assert ours.rules["accuracy"]["accuracy"].source == default.rules["accuracy"]["accuracy"].source
    assert ours.rules["calibration"] == default.rules["calibration"]
    assert ours.dated == default.dated


def test_a_policy_survives_its_own_serialisation():
    policy = load_policy()
    assert Policy.model_validate(policy.model_dump(mode="json")) == policy


def test_limits_that_a_check_brings_along_can_be_overridden():
    extra = {"mirror": {"changed": Rule(better="lower", pass_at=0.1)}}
    assert load_policy(None, extra).rules["mirror"]["changed"].pass_at == 0.1
    ours = load_policy({"rules": {"mirror": {"changed": {"pass": 0.3}}}}, extra)
    assert ours.rules["mirror"]["changed"].pass_at == 0.3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ruls: {}", r"ruls is unknown. Did you mean 'rules'\?"),
        ("rules: {calibratoin: {}}", r"rules.calibratoin is unknown. Did you mean 'calibration'\?"),
        ("rules: {calibration: {ecee: {pass: 1}}}", r"rules.calibration.ecee is unknown. Did you mean 'ece'\?"),
        ("rules: {calibration: {ece: {pas: 1}}}", r"rules.calibration.ece.pas is unknown. Did you mean 'pass'\?"),
        ("rules: {calibration: {ece: {pass: low}}}", r"rules.calibration.ece.pass: .*got 'low'"),
        ("rules: {calibration: {ece: {pass: 0.5}}}", r"'fail' \(0.05\) must not be below 'pass' \(0.5\)"),
        ("rules: {evasion: {robust-accuracy: {fail: 0.9}}}", r"'fail' \(0.9\) must not be above 'pass' \(0.4\)"),
        ("rules: {accuracy: {accuracy: {fail: 0.9}}}", "'fail' needs 'pass'"),
        ("rules: [1]", r"rules must be a mapping"),
        ("threat: {eps: 8}", r"threat.eps: .*less than or equal to 1"),
        ("threat: {eps: eight}", r"threat.eps"),
        ("- a\n- b", "a policy is a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_policy(path)
    assert "policy.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_policy_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such policy file"):
        load_policy("nowhere.yaml")


def test_the_default_file_is_plain_yaml_with_a_date_and_a_version():
    content = yaml.safe_load(DEFAULT.read_text())
    assert content["version"]
    assert content["dated"].count("-") == 2
