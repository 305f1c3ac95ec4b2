import dataclasses
import shlex

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import typer
from patterns_task import TINY, Linear, split
from scipy.special import softmax
from torch import nn

from holdfast import stats
from holdfast.audit import audit
from holdfast.cli import app
from holdfast.data import Data, corrupt, to_float
from holdfast.ood import fit_detectors, score_detectors


def finding(model, data, run, check, **policy):
    return audit(model, data, profile=TINY, run=run, only=[check], policy=policy or None).finding(check)


def metrics(found):
    return {m.name: m for m in found.metrics}


def logits_of(model, images):
    with torch.no_grad():
        return model(to_float(images.x)).double().numpy()


def test_accuracy_and_recalls_agree_with_ten_lines_of_numpy(model, data, run):
    found = finding(model, data, run, "accuracy")
    prediction, y = logits_of(model, data.test).argmax(1), data.test.y.numpy()
    right = prediction == y
    m = metrics(found)
    assert m["accuracy"].value == right.mean()
    assert (m["accuracy"].low, m["accuracy"].high) == stats.wilson(right.sum(), len(right))
    recalls = [right[y == k].mean() for k in range(4)]
    assert m["worst-class-recall"].value == min(recalls)
    assert m["worst-class-gap"].value == pytest.approx(np.mean(recalls) - min(recalls))
    majority = np.bincount(y).max() / len(y)
    assert m["skill"].value == pytest.approx((right.mean() - majority) / (1 - majority))
    heatmap = next(f for f in found.figures if f.type == "chart" and f.kind == "heatmap")
    assert [np.nansum(s.y) for s in heatmap.series] == pytest.approx([1] * 4)
    table = next(f for f in found.figures if f.title == "Classes")
    assert [row[2] for row in table.rows] == pytest.approx(recalls)
    assert [row[5] for row in table.rows] == pytest.approx([right[prediction == k].mean() for k in range(4)])


def test_the_commonest_confusion_comes_first_and_the_gallery_shows_the_surest_mistake(model, data, run):
    found = finding(model, data, run, "accuracy")
    logits, y = logits_of(model, data.test), data.test.y.numpy()
    wrong = np.flatnonzero(logits.argmax(1) != y)
    confusions = next(f for f in found.figures if f.title == "Commonest confusions")
    counts = [row[2] for row in confusions.rows]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 10
    assert counts[0] == max(np.unique(4 * y[wrong] + logits.argmax(1)[wrong], return_counts=True)[1])
    surest = wrong[softmax(logits, 1).max(1)[wrong].argmax()]
    gallery = next(f for f in found.figures if f.type == "gallery")
    assert f"test image {surest}" in gallery.groups[0][0].note
    assert len(gallery.groups) == TINY.gallery


class Constant(nn.Module):
    def forward(self, x):
        return torch.tensor([[1.0, 0, 0, 0]]).expand(len(x), 4) + 0 * x.sum((1, 2, 3))[:, None]


def test_a_model_that_always_gives_one_answer_fails_accuracy(data, run):
    balanced = data.but(test=data.test.select(torch.cat([(data.test.y == k).nonzero()[:30, 0] for k in range(4)])))
    found = finding(Constant(), balanced, run, "accuracy")
    assert found.verdict == "fail"


def test_no_answer_is_a_wrong_answer(data, run):
    class Silent(Linear):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where((logits.argmax(1) == 2)[:, None], torch.nan, logits)

    result = audit(Silent(), data, profile=TINY, run=run, only=["accuracy", "calibration", "extreme-inputs"])
    prediction = logits_of(Linear(), data.test).argmax(1)
    expected = ((prediction == data.test.y.numpy()) & (prediction != 2)).mean()
    assert metrics(result.finding("accuracy"))["accuracy"].value == expected
    assert result.finding("extreme-inputs").verdict == "fail"
    assert "NaN" in result.finding("calibration").reason


def test_the_gap_is_the_difference_of_two_accuracies(model, data, run):
    m = metrics(finding(model, data, run, "generalisation-gap"))
    rates = [(logits_of(model, s).argmax(1) == s.y.numpy()) for s in (data.train, data.test)]
    assert m["gap"].value == pytest.approx(rates[0].mean() - rates[1].mean())
    assert (m["gap"].low, m["gap"].high) == stats.newcombe(rates[0].sum(), 240, rates[1].sum(), 160)


def test_a_memorised_training_set_shows_in_the_gap_and_as_leaked_membership(run):
    class Memory(nn.Module):
        """Right and sure on what it has stored, a coin toss elsewhere."""

        def __init__(self, images):
            super().__init__()
            self.register_buffer("x", images.x.flatten(1))
            self.register_buffer("y", nn.functional.one_hot(images.y, 4).float())

        def forward(self, x):
            near = (torch.cdist(x.flatten(1), self.x) < 1e-2).float()
            return 10 * near @ self.y + x.flatten(1)[:, :4]

    train, test = split("train", 150, seed=1), split("test", 150, seed=2)
    data = Data(name="d", train=train, test=test)
    result = audit(Memory(train), data, profile=TINY, run=run, only=["generalisation-gap", "membership-inference"])
    assert result.finding("generalisation-gap").verdict == "fail"
    assert result.finding("membership-inference").verdict == "fail"
    assert metrics(result.finding("membership-inference"))["auc/loss-mia"].value > 0.99


def test_membership_cannot_be_told_where_nothing_was_learnt(model, data, run):
    m = metrics(finding(model, data, run, "membership-inference"))
    assert m["auc/loss-mia"].low < 0.5 < m["auc/loss-mia"].high
    attacks = ("loss-mia", "confidence-mia", "entropy-mia", "modified-entropy-mia")
    assert m["tpr-at-fpr-1"].value == max(m[f"tpr-at-fpr-1/{attack}"].value for attack in attacks)


def test_the_next_step_after_membership_is_a_command_that_exists(model, data, run):
    limitations = finding(model, data, run, "membership-inference").limitations  # said even where all is well
    (command,) = [text.partition("Next: ")[2] for text in limitations if "Next: " in text]
    _, verb, *words = shlex.split(command)
    typer.main.get_command(app).commands[verb].make_context(verb, words)


def test_too_few_strangers_for_one_in_a_hundred_is_said(model, data, run):
    found = finding(model, data.but(test=data.test.select(slice(0, 60))), run, "membership-inference")
    assert metrics(found)["tpr-at-fpr-1"].value is None
    assert found.verdict == "not assessed"
    assert "could not be computed" in found.reason


def test_calibration_agrees_with_its_definitions(model, data, run):
    m = metrics(finding(model, data, run, "calibration"))
    logits, y = logits_of(model, data.test), data.test.y.numpy()
    p = softmax(logits, 1)
    confidence, right = p.max(1), p.argmax(1) == y
    assert m["ece"].value == pytest.approx(stats.ece(confidence, right, 15))
    assert m["ece-equal-width"].value == pytest.approx(stats.ece(confidence, right, 15, equal_mass=False))
    assert m["nll"].value == pytest.approx(-np.log(p[np.arange(160), y]).mean())
    assert m["overconfidence"].value == pytest.approx(confidence.mean() - right.mean())
    assert m["temperature"].n == 160


def test_without_validation_the_temperature_is_judged_on_the_other_half(model, data, run):
    found = finding(model, data.but(val=None), run, "calibration")
    m = metrics(found)
    assert m["temperature"].n + m["ece-scaled"].n == 160
    assert abs(m["temperature"].n - 80) <= 2
    assert m["ece"].n == 160


def test_corruptions_are_scored_on_the_same_first_images(model, data, run):
    found = finding(model, data, run, "corruption")
    m = metrics(found)
    clean = data.test.select(slice(0, TINY.corruption_images))
    right = logits_of(model, clean).argmax(1) == clean.y.numpy()
    assert m["clean-accuracy"].value == right.mean()
    table = next(f for f in found.figures if f.type == "table")
    assert len(table.rows) == 15
    means = [row[table.columns.index("mean")] for row in table.rows]
    assert m["mean-corruption-accuracy"].value == pytest.approx(np.mean(means))
    assert m["relative-drop"].value == pytest.approx(1 - np.mean(means) / right.mean())
    contrast = next(row for row in table.rows if row[0] == "contrast")
    changed = clean.but(x=corrupt(clean.x, "contrast", 5, run=run.but(scope=("audit",))))
    assert contrast[3] == (logits_of(model, changed).argmax(1) == clean.y.numpy()).mean()


def test_the_shift_of_calibration_uses_the_severe_corruptions(model, data, run):
    m = metrics(finding(model, data, run, "calibration-shift"))
    clean = data.test.select(slice(0, TINY.corruption_images))
    from holdfast.data import CORRUPTIONS

    errors = []
    for name in CORRUPTIONS:
        changed = clean.but(x=corrupt(clean.x, name, 5, run=run.but(scope=("audit",))))
        p = softmax(logits_of(model, changed), 1)
        errors.append(stats.ece(p.max(1), p.argmax(1) == clean.y.numpy(), 15))
    assert m["ece-severe"].value == pytest.approx(np.mean(errors), abs=1e-6)
    assert m["ece-worst"].value == pytest.approx(max(errors), abs=1e-6)


def test_holding_back_helps_a_model_that_knows_when_it_errs(data, run):
    test = data.test
    right = logits_of(Linear(), test).argmax(1) == test.y.numpy()

    class Knows(Linear):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign
            self.register_buffer("x", test.x.flatten(1)[~torch.from_numpy(right)])

        def forward(self, x):
            unsure = (torch.cdist(x.flatten(1), self.x) < 1e-2).any(1)
            scale = torch.where(unsure, 0.05, 20.0) if self.sign > 0 else torch.where(unsure, 20.0, 0.05)
            return scale[:, None] * super().forward(x)

    good = metrics(finding(Knows(1), data, run, "selective-prediction"))["selective-ratio"]
    bad = metrics(finding(Knows(-1), data, run, "selective-prediction"))["selective-ratio"]
    assert good.value == pytest.approx(max(0, (1 - right.mean() - 0.2) / 0.8) / (1 - right.mean()), abs=1e-6)
    assert bad.value == pytest.approx(1.25)
    assert good.high < bad.low
    assert finding(Knows(-1), data, run, "selective-prediction").verdict == "fail"


def test_conformal_sets_keep_their_promise(model, data, run):
    big = data.but(test=split("test", 1500, seed=9), val=split("val", 1500, seed=8))
    m = metrics(finding(model, big, run, "conformal"))
    assert m["coverage"].low <= 0.9 <= m["coverage"].high
    assert m["coverage-error"].value == pytest.approx(abs(m["coverage"].value - 0.9))
    assert m["coverage-error"].low == 0.0
    assert 1 <= m["set-size"].value <= 4


def test_attacks_leave_no_more_than_the_weakest_of_them(model, data, run):
    found = finding(model, data, run, "evasion", threat={"eps": 0.05})
    m = metrics(found)
    singles = [m[f"{name}-accuracy"].value for name in ("fgsm", "pgd")]
    assert m["robust-accuracy"].value <= min(singles) < m["clean-accuracy"].value
    # On a linear model the noise hurts less than the attack, and the attack is known in closed form.
    assert m["noise-accuracy"].value > m["pgd-accuracy"].value
    table = next(f for f in found.figures if f.type == "table")
    left = [row[5] for row in table.rows[1:]]
    assert left == sorted(left, reverse=True)
    assert left[-1] == m["robust-accuracy"].value
    gallery = next(f for f in found.figures if f.type == "gallery")
    assert [p.note.split()[0] for p in gallery.groups[0]] == ["clean", "adversarial", "amplified"]


def test_an_undefended_model_fails_when_an_adversary_is_expected(model, data, run):
    enough = dataclasses.replace(TINY, attack_images=80, pgd_steps=1)  # of 24 images even 0 % leaves room for doubt
    found = audit(model, data, profile=enough, policy={"threat": {"eps": 0.5}}, run=run, only=["evasion"])
    assert found.verdict("evasion") == "fail"
    assert found.finding("evasion").actions[0].method == "pgd-at"
    found = finding(model, data, run, "evasion", threat={"eps": 0.5, "adversary": False})
    assert found.verdict == "not assessed"
    assert found.metrics


def test_the_security_curve_falls_and_ends_where_pgd_ends(model, data, run):
    result = audit(model, data, profile=TINY, run=run, only=["security-curve"])
    m = metrics(result.finding("security-curve"))
    values = [m[f"accuracy/{r}"].value for r in (0, 1, 2, 4, 8, 16, 32)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    withstood = [v for v in result.samples["security-curve.withstood"].to_pylist() if v is not None]
    assert np.mean(np.array(withstood) >= 8) == m["accuracy/8"].value
    assert m["area"].value == pytest.approx(
        np.interp(np.linspace(0, 32, 32_001), (0, 1, 2, 4, 8, 16, 32), values).mean(), abs=1e-3
    )


OOD = {"near ones": split("n", 30, seed=50, noise=0.8), "strange": split("s", 30, noise=3.0, seed=51)}


def rows(result, split, *columns):
    """Columns of the per-sample table, of one split."""
    table = result.samples.filter(pc.equal(result.samples["split"], split))
    return [table[f"ood.{column}"].to_numpy() for column in columns]


def test_unknown_images_are_judged_by_set_and_kind(model, data, run):
    result = audit(model, data.but(ood=OOD), profile=TINY, run=run, only=["ood"])
    found = result.finding("ood")
    m = metrics(found)
    best = found.settings["verdict by"].split(",")[0]
    assert {"near-auroc", "far-auroc", "auroc/msp/near ones", f"fpr95-id/{best}/strange"} <= set(m)
    assert m["near-auroc"].value == pytest.approx(m[f"auroc/{best}/near ones"].value)
    known, judges = rows(result, "test", "msp", "judging")
    strange, judges_strange = rows(result, "ood/strange", "msp", "judging")
    expected = stats.auroc(known[judges], strange[judges_strange])
    assert m["auroc/msp/strange"].value == pytest.approx(expected, abs=1e-6)
    assert (judges.sum(), judges_strange.sum()) == (80, 15)


def test_the_detector_is_chosen_by_the_images_that_do_not_judge_it(model, data, run):
    result = audit(model, data.but(ood=OOD), profile=TINY, run=run, only=["ood"])
    found = result.finding("ood")
    sets = list(found.settings["unknown"])
    kinds = [kind.rpartition("(")[2] for kind in found.settings["unknown"].values()]
    weights = np.array([1 / kinds.count(kind) for kind in kinds])
    means = {}
    for name in found.settings["detectors"]:
        known, judges = rows(result, "test", name, "judging")
        unknown = [rows(result, f"ood/{s}", name, "judging") for s in sets]
        means[name] = weights @ [stats.auroc(known[~judges], u[~j]) for u, j in unknown]
    assert found.settings["verdict by"].startswith(f"{max(means, key=means.get)}, ")


def test_sets_too_small_to_halve_choose_and_judge_and_it_is_said(model, data, run):
    few = {"near few": OOD["near ones"].select(slice(0, 10))}
    result = audit(model, data.but(ood=few), profile=TINY, run=run, only=["ood"])
    assert any("chosen on the sets it is judged on" in text for text in result.finding("ood").limitations)
    assert rows(result, "ood/near few", "judging")[0].all()
    halved = audit(model, data.but(ood=OOD), profile=TINY, run=run, only=["ood"]).finding("ood")
    assert not any("chosen on the sets" in text for text in halved.limitations)


def test_the_ranking_marks_what_may_be_chance(model, data, run):
    profile = dataclasses.replace(TINY, detectors=("msp", "energy", "energy(temperature=1.0001)", "knn"), resamples=300)
    found = audit(model, data.but(ood=OOD), profile=profile, run=run, only=["ood"]).finding("ood")
    table = next(f for f in found.figures if f.title == "Ranking of detectors")
    ranked = {row[0]: row for row in table.rows}
    best = found.settings["verdict by"].split(",")[0]
    assert ranked[best][-2:] == ["chosen", ""]
    assert [row[1] for row in table.rows] == sorted((row[1] for row in table.rows), reverse=True)
    twin = {"energy": "energy(temperature=1.0001)", "energy(temperature=1.0001)": "energy"}.get(best)
    assert twin is None or ranked[twin][-1] == "yes"


def test_corrupted_images_count_as_known_in_the_full_spectrum(model, data, run):
    result = audit(model, data.but(ood=OOD), profile=TINY, run=run, only=["ood"])
    found = result.finding("ood")
    m, best = metrics(found), found.settings["verdict by"].split(",")[0]
    known, judges = rows(result, "test", best, "judging")
    shifted, judges_shifted = rows(result, "shifted", best, "judging")
    assert np.array_equal(judges[:24], judges_shifted)
    kinds = {"near": [], "far": []}
    for s, kind in found.settings["unknown"].items():
        u, j = rows(result, f"ood/{s}", best, "judging")
        parts = [stats.auroc(known[judges], u[j]), stats.auroc(shifted[judges_shifted], u[j])]
        kinds[kind.rpartition("(")[2][:-1]].append(np.mean(parts))
    expected = np.mean([np.mean(values) for values in kinds.values()])
    assert m["full-spectrum-auroc"].value == pytest.approx(expected, abs=1e-6)
    table = result.samples.filter(pc.equal(result.samples["split"], "shifted"))
    assert table["label"].to_pylist() == data.test.y[:24].tolist()
    without = dataclasses.replace(TINY, shifted_images=0)
    found = audit(model, data.but(ood=OOD), profile=without, run=run, only=["ood"]).finding("ood")
    assert "full-spectrum-auroc" not in metrics(found)


def test_detectors_that_look_on_score_as_they_do_alone_and_from_the_store(model, data, run, tmp_path):
    profile = dataclasses.replace(TINY, detectors=("msp", "odin"), shifted_images=1000)
    own = data.but(ood=OOD)
    first, again = (audit(model, own, profile=profile, run=run.but(out=tmp_path), only=["ood"]) for _ in range(2))
    assert first.finding("ood").settings["detectors"] == ["msp", "odin"]
    fitted = fit_detectors(["odin"], model, None, run=run)
    alone = score_detectors(fitted, model, OOD["strange"], run=run)["odin"]
    assert rows(first, "ood/strange", "odin")[0] == pytest.approx(alone.numpy(), rel=1e-5)
    assert again.samples.equals(first.samples)


def test_the_remedy_fits_a_monitor_to_this_model_on_these_data(data, run):
    weak = Linear(0.05)
    asked = "holdfast audit --model 'my model.py:make' --weights w.safetensors --data d/ --profile quick"
    own = data.but(ood={"near ones": split("n", 60, seed=50)})  # more of the same: none can tell them apart
    found = audit(weak, own, profile=TINY, run=run, only=["ood"], command=asked).finding("ood")
    command = next(a.command for a in found.actions if a.command)
    assert command.startswith(
        "holdfast ood fit --model 'my model.py:make' --weights w.safetensors --data d/ --detector "
    )
    unasked = audit(weak, own, profile=TINY, run=run, only=["ood"]).finding("ood")
    assert "--model MODEL --data DATA" in next(a.command for a in unasked.actions if a.command)


def test_no_near_set_is_said_and_does_not_pass(model, data, run):
    found = finding(model, data, run, "ood")
    assert any("There is no near set for these data" in text for text in found.limitations)
    assert "near-auroc" not in metrics(found)


def test_flipped_bits_are_put_back_and_more_of_them_hurt_more(model, data, run):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = finding(model, data, run, "bit-flips")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    m = metrics(found)
    assert m["drop-at-1e-7"].value == 0
    assert {"drop-at-1e-6", "drop-at-1e-5", "drop-at-1e-4", "non-finite-at-1e-6", "worst-single-flip"} <= set(m)
    table = next(f for f in found.figures if f.type == "table")
    flips = [row[1] for row in table.rows]
    assert flips == sorted(flips)


def test_costs_are_counted(model, data, run):
    m = metrics(finding(model, data, run, "efficiency"))
    assert m["parameters"].value == 64 * 4 + 4
    assert m["size"].value == 4 * (64 * 4 + 4)
    assert m["flops"].value == 2 * 64 * 4
    assert [name for name, metric in m.items() if metric.volatile] == ["latency-p50", "latency-p95", "throughput"]


def columns(count, rng):
    return {
        "group": np.array(["a", "b"])[rng.integers(0, 2, count)],
        "domain": torch.from_numpy(rng.integers(0, 2, count)),
    }


def test_groups_are_compared_singly_and_crossed(model, run):
    rng = np.random.default_rng(0)
    test = split("test", 1200, seed=3)
    test = test.but(columns=columns(1200, rng))
    # Members of b in domain 1 carry wrong labels: the model fails them.
    bad = torch.from_numpy((test.columns["group"] == "b") & (test.columns["domain"].numpy() == 1))
    test = test.but(y=torch.where(bad, (test.y + 1) % 4, test.y))
    data = Data(name="d", test=test)
    result = audit(model, data, profile=TINY, run=run, only=["group-fairness", "domain-gap"])
    found = result.finding("group-fairness")
    m = metrics(found)
    assert found.verdict == "fail"
    assert "group and domain b, 1" in m["worst-group-gap"].title
    right = logits_of(model, test).argmax(1) == test.y.numpy()
    assert m["worst-group-accuracy"].value == right[bad.numpy()].mean()
    assert m["worst-group-gap"].value == pytest.approx(right.mean() - right[bad.numpy()].mean())
    assert m["equalised-odds-difference"].low > 0.05
    gap = metrics(result.finding("domain-gap"))["gap"]
    one = test.columns["domain"].numpy() == 1
    assert gap.value == pytest.approx(right[~one].mean() - right[one].mean())


def test_equal_groups_do_not_fail(model, run):
    rng = np.random.default_rng(1)
    test = split("test", 1200, seed=3).but(columns=columns(1200, rng))
    found = finding(model, Data(name="d", test=test), run, "group-fairness")
    assert found.verdict != "fail"


def test_groups_too_small_to_judge_are_listed(model, run):
    group = np.array(["big"] * 190 + ["small"] * 10)
    found = finding(model, Data(name="d", test=split("test", 200).but(columns={"group": group})), run, "group-fairness")
    assert found.verdict == "not assessed"
    assert "No two groups have at least 100" in found.reason
    group = np.array(["one"] * 150 + ["two"] * 150 + ["small"] * 10)
    found = finding(model, Data(name="d", test=split("test", 310).but(columns={"group": group})), run, "group-fairness")
    assert any("group small (10)" in text for text in found.limitations)


def test_a_column_that_is_no_grouping_is_refused(model, run):
    test = split("test", 200).but(columns={"group": np.arange(200)})
    found = finding(model, Data(name="d", test=test), run, "group-fairness")
    assert "200 different values" in found.reason


def test_every_method_that_a_check_can_recommend_is_in_the_catalogue():
    import re
    from pathlib import Path

    from holdfast import catalog
    from holdfast.audit import checks

    named = {
        name
        for path in Path(checks.__path__[0]).glob("*.py")
        for name in re.findall(r'method="([a-z0-9-]+)"', path.read_text())
    }
    assert named >= {"pgd-at", "temperature-scaling", "square"}
    for name in named:
        assert catalog.find(name).id == name
