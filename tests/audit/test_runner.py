import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from patterns_task import TINY, Linear, split
from torch import nn

from holdfast import Run, UserError
from holdfast.audit import Answer, Audit, Check, Metric, Remedy, Rule, all_checks, audit, json_schema, rate
from holdfast.audit.findings import Action
from holdfast.audit.sections import AXES
from holdfast.data import Data, Images


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One whole audit, with its folder."""
    out = tmp_path_factory.mktemp("whole")
    data = Data(
        name="patterns", train=split("a", 240, seed=1), val=split("b", 160, seed=2), test=split("c", 160, seed=3)
    )
    return audit(Linear(), data, profile=TINY, run=Run(device="cpu", batch_size=64, out=out)), out, data


def test_every_axis_has_a_section_and_every_check_a_finding(whole):
    result, _, _ = whole
    assert [s.id for s in result.sections] == [axis.id for axis in AXES]
    assert [f.check for f in result.findings] == [check.id for check in all_checks()]


def test_sections_without_checks_say_why_and_are_never_green(whole):
    result, _, _ = whole
    for axis in AXES:
        if axis.missing:
            assert result.verdict(axis.id) == "not assessed"
            assert result.section(axis.id).reason == axis.missing
    assert result.verdict("backdoor") == "not assessed"


def test_a_section_is_as_bad_as_its_worst_finding(whole):
    result, _, _ = whole
    order = ["not assessed", "pass", "attention", "fail"]
    for section in result.sections:
        verdicts = [f.verdict for f in result.findings if f.section == section.id]
        assert section.verdict == max(verdicts, key=order.index, default="not assessed")


def test_findings_name_their_numbers_settings_and_columns(whole):
    result, _, _ = whole
    for finding in result.findings:
        assert finding.reason
        if finding.metrics:
            assert finding.settings
            assert len({m.name for m in finding.metrics}) == len(finding.metrics)
        assert set(finding.per_sample) <= set(result.samples.column_names)
        for metric in finding.metrics:
            if metric.low is not None:
                assert metric.low <= metric.value + 1e-12
                assert metric.value <= metric.high + 1e-12


def test_advice_names_methods_that_exist(whole):
    from holdfast import catalog

    result, _, _ = whole
    for finding in result.findings:
        for action in finding.actions:
            if action.method:
                catalog.find(action.method)


def test_every_rate_can_be_had_again_from_the_table_of_samples(whole):
    result, _, data = whole
    table = {name: np.array(result.samples[name].to_pylist(), dtype=object) for name in result.samples.column_names}
    test = table["split"] == "test"
    assert test.sum() == len(data.test)
    assert table["index"][test].tolist() == list(range(160))
    assert table["label"][test].tolist() == data.test.y.tolist()
    accuracy = (table["label"] == table["prediction"])[test].mean()
    assert accuracy == result.finding("accuracy").metrics[0].value
    robust = [v for v in table["evasion.robust"][test] if v is not None]
    assert len(robust) == TINY.attack_images
    assert np.mean(robust) == next(m.value for m in result.finding("evasion").metrics if m.name == "robust-accuracy")
    unknown = np.char.startswith(table["split"].astype(str), "ood/")
    assert unknown.any()
    assert all(v is None for v in table["label"][unknown])
    assert all(v is not None for v in table["ood.msp"][unknown | test])
    assert all(v is None for v in table["ood.msp"][table["split"] == "train"])
    assert all(v is not None for v in table["membership-inference.loss-mia"][table["split"] == "train"])


def test_an_audit_is_read_back_as_it_was_written(whole):
    result, out, _ = whole
    again = Audit.load(out)
    assert again == result
    assert again.samples.equals(result.samples)
    assert Audit.load(out / "audit.json").fingerprint == result.fingerprint


def test_audit_json_fits_its_schema(whole):
    _, out, _ = whole
    content, schema = json.loads((out / "audit.json").read_text()), json_schema()
    assert set(schema["required"]) <= set(content) == set(schema["properties"])
    finding = schema["$defs"]["Finding"]["properties"]
    assert (
        {"section", "check", "verdict", "reason", "metrics", "decisions"} <= set(finding) == set(content["findings"][0])
    )
    assert {"name", "value", "low", "high", "n"} <= set(schema["$defs"]["Metric"]["properties"])


def stripped(path):
    """audit.json without what may differ from run to run."""
    content = json.loads(path.read_text())
    for key in ("created", "seconds", "command"):
        del content[key]
    for finding in content["findings"]:
        del finding["seconds"]
        finding["metrics"] = [m for m in finding["metrics"] if not m["volatile"]]
    return json.dumps(content)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [3, 35, 65])
def test_an_audit_that_was_killed_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch, at):
    from holdfast.audit import store

    whole_result, whole_out, data = whole
    write, count = store.write_bytes, 0

    def killing(path, content):
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        write(path, content)

    run = Run(device="cpu", batch_size=64, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", killing)
        with pytest.raises(Killed):
            audit(Linear(), data, profile=TINY, run=run)
    assert not (tmp_path / "audit.json").exists()
    result = audit(Linear(), data, profile=TINY, run=run)
    assert result.fingerprint == whole_result.fingerprint
    assert stripped(tmp_path / "audit.json") == stripped(whole_out / "audit.json")
    assert (tmp_path / "samples.parquet").read_bytes() == (whole_out / "samples.parquet").read_bytes()


def test_nothing_is_computed_twice_with_the_same_folder(whole, monkeypatch):
    result, out, data = whole
    model = Linear()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    again = audit(model, data, profile=TINY, run=Run(device="cpu", batch_size=64, out=out))
    assert again.fingerprint == result.fingerprint
    assert len(calls) <= 3  # the look at the door


def test_nothing_depends_on_the_folder_or_the_batch_size_of_the_bookkeeping(whole, data):
    result, _, data = whole
    assert audit(Linear(), data, profile=TINY, run=Run(device="cpu", batch_size=64)).fingerprint == result.fingerprint


def test_another_seed_draws_other_numbers(whole):
    result, _, data = whole
    other = audit(Linear(), data, profile=TINY, run=Run(device="cpu", batch_size=64, seed=1), only=["corruption"])
    assert other.finding("corruption").metrics != result.finding("corruption").metrics


def test_a_folder_with_the_audit_of_another_model_is_refused(whole, model):
    _, out, data = whole
    run = Run(device="cpu", out=out)
    with pytest.raises(UserError, match="holds the audit of another model"):
        audit(Linear(scale=2.0), data, profile=TINY, run=run)
    with pytest.raises(UserError, match="holds the audit of another data"):
        audit(Linear(), data.but(test=data.train), profile=TINY, run=run)


def test_the_same_weights_in_other_code_are_another_model(tmp_path, data):
    class Louder(Linear):
        def forward(self, x):
            return 4 * super().forward(x)

    run = Run(device="cpu", out=tmp_path)
    audit(Linear(), data, profile=TINY, run=run, only=["output-kind"])
    with pytest.raises(UserError, match="another model"):
        audit(Louder(), data, profile=TINY, run=run, only=["output-kind"])


def test_a_changed_limit_changes_the_verdict_without_new_measurements(whole):
    result, out, data = whole
    strict = {"rules": {"accuracy": {"accuracy": {"pass": 0.999, "fail": 0.99}}}}
    model = Linear()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    run = Run(device="cpu", batch_size=64, out=out)
    failing = audit(model, data, profile=TINY, policy=strict, run=run, only=["accuracy"])
    assert failing.finding("accuracy").verdict == "fail"
    assert [f.check for f in failing.failed] == ["accuracy"]
    assert failing.finding("accuracy").metrics == result.finding("accuracy").metrics
    assert len(calls) <= 3
    assert failing.fingerprint != result.fingerprint


def test_logits_times_four_fail_calibration_and_leave_accuracy_alone(data, run):
    calm = audit(Linear(scale=0.7), data, profile=TINY, run=run, only=["accuracy", "calibration"])
    loud = audit(Linear(scale=2.8), data, profile=TINY, run=run, only=["accuracy", "calibration"])
    assert calm.finding("calibration").verdict != "fail"
    assert loud.finding("calibration").verdict == "fail"
    assert loud.finding("accuracy").metrics == calm.finding("accuracy").metrics
    advice = loud.finding("calibration").actions
    assert [a.method for a in advice] == ["temperature-scaling"]
    before = {m.name: m.value for m in loud.finding("calibration").metrics}
    assert before["ece-scaled"] < before["ece"]
    assert before["temperature"] == pytest.approx(
        4 * next(m.value for m in calm.finding("calibration").metrics if m.name == "temperature")
    )


def test_only_some_checks_or_sections(data, run):
    result = audit(Linear(), data, profile=TINY, run=run, only=["accuracy", "output-kind"])
    assert {f.check for f in result.findings} == {"accuracy", "generalisation-gap", "output-kind"}
    assert result.section("evasion").reason == "No check of it was run."
    with pytest.raises(UserError, match=r"check 'acuracy' is unknown\. Did you mean 'accuracy'"):
        audit(Linear(), data, profile=TINY, run=run, only=["acuracy"])


def test_without_training_images_their_checks_are_not_assessed(data, run):
    only = ["generalisation-gap", "membership-inference", "ood", "calibration"]
    result = audit(Linear(), data.but(train=None, val=None), profile=TINY, run=run, only=only)
    for check in ("generalisation-gap", "membership-inference"):
        assert result.finding(check).verdict == "not assessed"
        assert "train" in result.finding(check).reason
    ood = result.finding("ood")
    assert ood.settings["detectors"] == ["msp", "max-logit", "energy"]
    assert any("knn" in text for text in ood.limitations)
    assert "half of the test images" in result.finding("calibration").settings["temperature"]


def test_one_class_present_is_audited_and_said(data, run):
    lonely = data.but(test=data.test.select(data.test.y == 1), train=None, val=None)
    result = audit(Linear(), lonely, profile=TINY, run=run)
    assert any("No test image shows class 0" in text for text in result.finding("accuracy").limitations)
    assert [m.name for m in result.finding("accuracy").metrics] == ["accuracy"]
    assert result.finding("accuracy").verdict == "not assessed"


def test_a_single_test_image_is_audited(data, run):
    tiny = data.but(test=data.test.select([0]), train=None, val=None)
    result = audit(Linear(), tiny, profile=TINY, run=run)
    assert result.finding("accuracy").metrics[0].n == 1


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (1, torch.float32)])
def test_images_of_any_size_are_audited(channels, dtype, run):
    """Seven classes of 48x40 images, told apart by their brightness."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(0, 7, (60,), generator=rng)
    x = ((y + 1) / 9)[:, None, None, None] + 0.1 * torch.rand(60, channels, 48, 40, generator=rng)
    x = (255 * x).to(torch.uint8) if dtype == torch.uint8 else x
    images = Images(x=x, y=y, classes=tuple("abcdefg"))

    class Brightness(nn.Module):
        def forward(self, x):
            levels = (torch.arange(7) + 1) / 9 + 0.05
            return -2000 * (x.mean((1, 2, 3))[:, None] - levels) ** 2

    result = audit(Brightness(), Data(name="own", test=images), profile=TINY, run=run)
    assert result.finding("accuracy").metrics[0].value == 1.0
    measured = {f.check for f in result.findings if f.metrics}
    assert {"corruption", "evasion", "ood", "efficiency", "gradient-masking", "calibration"} <= measured


def test_a_model_that_gives_other_classes_is_refused(data, run):
    with pytest.raises(UserError, match="gives 7 logits, but patterns has 4 classes"):
        audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), data, profile=TINY, run=run)


def test_a_model_for_other_images_is_refused_in_one_sentence(data, run):
    with pytest.raises(UserError, match="fails on images of shape 1x8x8 from patterns: RuntimeError") as caught:
        audit(nn.Sequential(nn.Flatten(), nn.Linear(50, 4)), data, profile=TINY, run=run)
    assert "\n" not in str(caught.value)


def test_unknown_profiles_are_named():
    with pytest.raises(UserError, match=r"profile 'quik' is unknown\. Did you mean 'quick'"):
        audit(Linear(), Data(name="d", test=split("t", 8)), profile="quik")


def test_the_model_is_given_back_as_it_came(data, run):
    model = Linear().train()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, data, profile=TINY, run=run)
    assert model.training
    assert model.fc.weight.requires_grad
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def extra_check():
    """A check of a stranger's, gone after the test."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mirror(Check):
        """Do predictions survive a mirror?"""

        id, section, title, question = "mirror", "corruption", "Mirroring", "Do predictions survive a mirror?"
        limits = {"changed": Rule(better="lower", pass_at=0.0, fail_beyond=0.01, source="Ours.")}  # noqa: RUF012

        def __call__(self, subject):
            changed = subject.respond(subject.test.x.flip(-1)).argmax(1).numpy() != subject.predictions().label
            return Answer(
                metrics=[rate("changed", changed, better="lower")],
                remedies=[
                    Remedy(Action(text="Train with flips.", method="flip-that-does-not-exist"), when="changed"),
                    Remedy(Action(text="Train with mirrored images."), when="changed"),
                ],
                samples={"test": {"changed": changed}},
            )

    yield Mirror
    del Check.registry["mirror"]


def test_a_check_needs_one_class_and_brings_its_own_limits(extra_check, data, run):
    result = audit(Linear(), data, profile=TINY, run=run, only=["mirror"])
    finding = result.finding("mirror")
    assert finding.verdict == "fail"
    assert [a.text for a in finding.actions] == ["Train with mirrored images."]
    assert finding.per_sample == ["mirror.changed"]
    lenient = {"rules": {"mirror": {"changed": {"pass": 1.0, "fail": 1.0}}}}
    assert audit(Linear(), data, profile=TINY, policy=lenient, run=run, only=["mirror"]).verdict("corruption") == "pass"


def test_a_defect_in_a_check_is_not_hidden(extra_check, data, run, monkeypatch):
    monkeypatch.setattr(extra_check, "__call__", lambda self, subject: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit(Linear(), data, profile=TINY, run=run, only=["mirror"])


def test_a_check_that_does_not_apply_is_not_assessed_with_its_reason(extra_check, data, run, monkeypatch):
    def refuse(self, subject):
        raise UserError("There is no mirror.")

    monkeypatch.setattr(extra_check, "__call__", refuse)
    finding = audit(Linear(), data, profile=TINY, run=run, only=["mirror"]).finding("mirror")
    assert (finding.verdict, finding.reason) == ("not assessed", "There is no mirror.")


def test_where_only_the_interval_misses_the_advice_is_more_images(extra_check, data, run, monkeypatch):
    answer = Answer(
        metrics=[Metric(name="changed", value=0.0, low=0.0, high=0.2, n=20)],
        remedies=[Remedy(Action(text="Retrain."), when="changed"), Remedy(Action(text="Rethink."))],
    )
    monkeypatch.setattr(extra_check, "__call__", lambda self, subject: answer)
    finding = audit(Linear(), data, profile=TINY, run=run, only=["mirror"]).finding("mirror")
    assert finding.verdict == "attention"
    assert [a.text for a in finding.actions] == [
        "changed: too uncertain to decide; measure on more data, or by a larger profile."
    ]


def test_a_doubt_turns_a_pass_into_attention(extra_check, data, run, monkeypatch):
    answer = Answer(metrics=[Metric(name="changed", value=0.0)], doubt="This cannot be believed.")
    monkeypatch.setattr(extra_check, "__call__", lambda self, subject: answer)
    finding = audit(Linear(), data, profile=TINY, run=run, only=["mirror"]).finding("mirror")
    assert finding.verdict == "attention"
    assert finding.reason.startswith("This cannot be believed.")


def test_a_declared_limit_on_time_judges_but_leaves_the_fingerprint_alone(data, run):
    def measured(limit):
        policy = {"rules": {"efficiency": {"latency-p95": {"pass": limit}}}}
        return audit(Linear(), data, profile=TINY, policy=policy, run=run, only=["efficiency"])

    fast, slow = measured(1e6), measured(1e-9)
    assert fast.verdict("efficiency") == "pass"
    assert slow.verdict("efficiency") == "fail"
    again = measured(1e6)
    assert again.fingerprint == fast.fingerprint
    assert again.to_json()["findings"] != fast.to_json()["findings"]


def test_a_busy_machine_that_times_fewer_passes_leaves_the_fingerprint_alone(data, run, monkeypatch):
    from holdfast.audit.checks import efficiency

    measure = efficiency.latency
    found = []
    for seconds in (10.0, 0.0):
        monkeypatch.setattr(efficiency, "latency", lambda *a, s=seconds, **named: measure(*a, seconds=s, **named))
        profile = dataclasses.replace(TINY, latency_repeats=10)
        found.append(audit(Linear(), data, profile=profile, run=run, only=["efficiency"]))
    counts = [next(m.n for m in a.finding("efficiency").metrics if m.name == "latency-p50") for a in found]
    assert counts[0] > counts[1]
    assert found[0].fingerprint == found[1].fingerprint


def test_reading_what_is_no_audit_says_so(tmp_path, whole):
    with pytest.raises(UserError, match="no such file"):
        Audit.load(tmp_path)
    (tmp_path / "audit.json").write_text('{"schema_version": "99.0"}')
    with pytest.raises(UserError, match="not an audit of schema"):
        Audit.load(tmp_path)
    (tmp_path / "audit.json").write_text('{"schema_version": "1.0", "name": 3}')
    with pytest.raises(UserError, match="not a whole audit"):
        Audit.load(tmp_path)
    result, _, _ = whole
    result.save(tmp_path)
    assert pq.read_table(tmp_path / "samples.parquet").equals(result.samples)
    (tmp_path / "samples.parquet").unlink()
    with pytest.raises(UserError, match=r"without its samples\.parquet"):
        _ = Audit.load(tmp_path).samples
