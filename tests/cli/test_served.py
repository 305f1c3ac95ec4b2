"""A deployed model on the command line: attacked and audited by its answers alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))  # test modules are imported one by one, and share the server

from holdfast.audit.profiles import PROFILES
from holdfast.cli import app
from holdfast.evasion import campaign
from holdfast.models import load_model
from protocol_server import of_model, serving

DIGITS = {"takes": ("FP32", (-1, 1, 8, 8)), "gives": ("FP32", (-1, 10))}
SQUARE = "square(eps=0.15, queries=20)"


@pytest.fixture(scope="module")
def net():
    return load_model("zoo:digits-convnet")


@pytest.fixture
def server(net):
    with serving(of_model(net), **DIGITS) as server:
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def holdfast(*words, code=0):
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def tiny(monkeypatch):
    """Audits small enough for a test."""
    import dataclasses

    monkeypatch.setitem(PROFILES, "quick", dataclasses.replace(
        PROFILES["quick"], test_images=120, train_images=60, sanity_images=12, corruption_images=10, severities=(5,),
        ood_images=20, square_images=10, square_queries=10, curve_images=6, curve_steps=1, resamples=50, gallery=2,
    ))  # fmt: skip


def test_an_attack_on_a_deployed_model_finds_what_it_finds_on_the_model(server):
    words = ["attack", SQUARE, "--data", "digits", "-n", 40, "-q"]
    deployed = holdfast(*words, "--model", server.url, "--out", "a")
    local = holdfast(*words, "--model", "zoo:digits-convnet", "--out", "b")
    assert local.splitlines()[0] == deployed.splitlines()[0]
    table, other = (pq.read_table(f"{folder}/samples.parquet") for folder in "ab")
    assert table.column("success").equals(other.column("success"))
    assert any(table["success"].to_pylist())
    sent = sum(server.rows)
    assert f"{server.url}: {sent:,} queries in " in deployed
    assert "queries in" not in local


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_an_attack_that_needs_gradients_is_refused_in_one_sentence(server, attack):
    words = ["attack", attack, "--model", server.url, "--data", "digits"]
    said = holdfast(*words, code=2)
    assert said.count("\n") == 1
    assert f"{attack} needs gradients, but this model only answers queries" in said
    assert "square" in said
    assert server.rows == []


def test_a_budget_ends_an_attack_and_a_larger_one_goes_on(server, monkeypatch):
    monkeypatch.setattr(campaign, "_ASKED_PART", 8)
    words = ["attack", SQUARE, "--model", server.url, "--data", "digits", "-n", 20]
    whole = holdfast(*words, "--out", "whole")
    server.rows.clear()
    part = holdfast(*words, "--out", "part", "--max-queries", 250)
    assert "The budget of queries was spent before the other" in part
    assert sum(server.rows) <= 250
    assert 0 < len(pq.read_table("part/samples.parquet")) < 20
    left = json.loads(holdfast(*words, "--out", "part", "--max-queries", 250, "--json"))["left_by_the_budget"]
    assert left < 20 - 8
    assert holdfast(*words, "--out", "part").splitlines()[0] == whole.splitlines()[0]
    assert pq.read_table("part/samples.parquet").equals(pq.read_table("whole/samples.parquet"))


def test_a_budget_for_a_model_that_is_computed_here_is_refused():
    words = ["attack", "square", "--model", "zoo:digits-convnet", "--data", "digits"]
    assert "are for models that are asked" in holdfast(*words, "--max-queries", 10, code=2)
    assert "are for models that are asked" in holdfast(*words, "--max-rate", 10, code=2)


def findings(folder):
    audit = json.loads((Path(folder) / "audit.json").read_text())
    return {finding["check"]: finding for finding in audit["findings"]}


def test_a_whole_audit_assesses_what_answers_can_tell_and_says_why_not_the_rest(server, monkeypatch):
    tiny(monkeypatch)
    said = holdfast("audit", "--model", server.url, "--data", "digits", "--out", "out", "-q")
    # images of NaN count as asked about, and are refused before they are sent
    assert f"{server.url}: {sum(server.rows) + 3:,} queries" in said
    found = findings("out")
    for check, need in {
        "evaluation-mode": "weights",
        "bit-flips": "weights",
        "efficiency": "weights",
        "gradient-masking": "gradients",
        "minimal-norm": "gradients",
        "universal-perturbation": "gradients",
        "evasion-l2": "gradients",
    }.items():
        assert found[check]["verdict"] == "not assessed"
        assert found[check]["reason"] == f"It needs the {need}, but this model only answers queries."
    unasked = {"leakage", "domain-gap", "group-fairness", "selective-prediction"}  # of these digits none is mistaken
    unasked |= {"guard"}
    inside = {"evaluation-mode", "bit-flips", "efficiency", "gradient-masking", "minimal-norm"}
    inside |= {"universal-perturbation", "evasion-l2"}
    for check in set(found) - unasked - inside:
        assert found[check]["metrics"], (check, found[check]["reason"])
    evasion = found["evasion"]
    assert list(evasion["settings"]["attacks"]) == ["square"]
    assert evasion["metrics"][0]["n"] == 10
    assert any("only answers queries" in text for text in evasion["limitations"])
    assert (Path("out") / "report.html").is_file()
    assert "Queryable, only answers queries" in (Path("out") / "MODEL_CARD.md").read_text()


def test_accuracy_is_that_of_the_model(server, monkeypatch):
    tiny(monkeypatch)
    for model, folder in ((server.url, "a"), ("zoo:digits-convnet", "b")):
        holdfast("audit", "--model", model, "--data", "digits", "--only", "accuracy", "--out", folder, "-q")
    ours, theirs = (findings(folder)["accuracy"]["metrics"] for folder in "ab")
    assert ours == theirs


def test_of_a_model_that_gives_labels_alone_what_needs_scores_is_not_assessed(net, monkeypatch):
    tiny(monkeypatch)

    def answer(x):
        return of_model(net)(x).argmax(1)

    with serving(answer, takes=DIGITS["takes"], gives=("INT64", (-1,))) as server:
        words = ["--only", "accuracy", "--only", "calibration", "--only", "ood", "--only", "evasion"]
        holdfast("audit", "--model", server.url, "--data", "digits", *words, "--out", "out", "-q")
    found = findings("out")
    assert found["accuracy"]["metrics"][0]["value"] > 0.9
    for check in ("calibration", "selective-prediction", "ood"):
        assert found[check]["reason"] == "It needs the scores, but this model only gives labels."
    assert any("labels alone" in text for text in found["evasion"]["limitations"])


def test_known_answers_do_not_hide_randomness_from_the_audit(net, monkeypatch):
    tiny(monkeypatch)
    noise = np.random.default_rng(0)

    def answer(x):
        return of_model(net)(x) + noise.normal(size=(len(x), 10))

    with serving(answer, **DIGITS) as server:
        holdfast("audit", "--model", server.url, "--data", "digits", "--only", "determinism", "--out", "out", "-q")
    assert findings("out")["determinism"]["verdict"] == "fail"


def test_a_budget_ends_an_audit_with_a_report_and_a_larger_one_completes_it(server, monkeypatch):
    tiny(monkeypatch)
    words = ["audit", "--model", server.url, "--data", "digits", "-q"]
    words += ["--only", "accuracy", "--only", "determinism", "--only", "output-kind"]
    holdfast(*words, "--out", "whole")
    holdfast(*words, "--out", "part", "--max-queries", 200)
    found = findings("part")
    assert found["accuracy"]["metrics"]
    assert found["determinism"]["verdict"] == "not assessed"
    assert "the budget of 200 queries is spent" in found["determinism"]["reason"]
    holdfast(*words, "--out", "part")
    assert stable("part") == stable("whole")


def test_a_service_that_goes_down_stops_the_audit_and_nothing_wrong_is_kept(server, monkeypatch):
    tiny(monkeypatch)
    words = ["audit", "--model", server.url, "--data", "digits", "-q", "--only", "accuracy", "--only", "determinism"]
    holdfast(*words, "--out", "whole")
    left = [8]

    def reply(path, body):
        left[0] -= 1
        return (401, None, b'{"error": "token expired"}') if left[0] < 0 else None

    server.reply = reply
    said = holdfast(*words, "--out", "broken", code=2)
    assert "answered 401 Unauthorized: token expired" in said
    assert said.count("\n") == 1
    server.reply = None
    holdfast(*words, "--out", "broken")
    assert stable("broken") == stable("whole")


def stable(folder):
    """All of audit.json but what a clock decides."""
    audit = json.loads((Path(folder) / "audit.json").read_text())

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "created", "command")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(audit)


def killed_at_work(words, here, sign):
    """Start the command, and kill it once two files like `sign` are written."""
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", *map(str, words), "--out", "broken"]
    process = subprocess.Popen(command, cwd=here, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while len(list(here.glob(f"broken/state/{sign}"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (here / "broken" / "samples.parquet").exists()


def test_a_killed_audit_of_a_deployed_model_goes_on_to_the_same_result(server, here):
    words = ["audit", "--model", server.url, "--data", "digits", "-q", "--only", "accuracy", "--only", "ood"]
    holdfast(*words, "--out", "whole")
    asked = sum(server.rows)
    killed_at_work(words, here, "features-*")
    server.rows.clear()
    holdfast(*words, "--out", "broken")
    assert sum(server.rows) < asked
    assert stable("broken") == stable("whole")
    assert Path("broken/samples.parquet").read_bytes() == Path("whole/samples.parquet").read_bytes()


def test_a_killed_attack_on_a_deployed_model_goes_on_to_the_same_result(server, here):
    words = ["attack", SQUARE, "--model", server.url, "--data", "digits", "-q", "-n", 130]
    holdfast(*words, "--out", "whole")
    killed_at_work(words, here, "square-*")
    holdfast(*words, "--out", "broken")
    for name in ("samples.parquet", "adversarial.safetensors"):
        assert (here / "broken" / name).read_bytes() == (here / "whole" / name).read_bytes()
