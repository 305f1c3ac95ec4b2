"""Every proof at smoke scale, and the machinery around them."""

import json
import time

import pytest

from holdfast import Run, UserError, catalog
from holdfast.methods import Method
from holdfast.proofs import proofs, prove
from holdfast.proofs.lab import Base, Lab
from holdfast.proofs.ledger import Entry, append, evidence_page, latest, ledger_path, read

# Claims that the ledger says do not hold; that they begin to hold is news for the ledger, not a defect.
REFUTED = {e.proof for e in latest() if e.scale == "smoke" and not e.passed}


# Modules whose proofs train networks for themselves, and single proofs that take five seconds and more even at this
# scale: `make proofs` runs them.
LONG = {
    "holdfast.proofs.continual",
    "holdfast.proofs.diffusion_attacks",
    "holdfast.proofs.diffusion_unlearning",
    "holdfast.proofs.evasion_apgd",
    "holdfast.proofs.evasion_masking",
    "holdfast.proofs.evasion_minimal",
    "holdfast.proofs.evasion_parsing",
    "holdfast.proofs.evasion_prompts",
    "holdfast.proofs.evasion_reverse",
    "holdfast.proofs.evasion_transfer",
    "holdfast.proofs.evasion_universal",
    "holdfast.proofs.generative",
    "holdfast.proofs.hardening",
    "holdfast.proofs.hardening_lsa",
    "holdfast.proofs.hardening_pubdef",
    "holdfast.proofs.optim",
    "holdfast.proofs.privacy",
    "holdfast.proofs.unlearning",
    "aaa-misleads-square",
    "autoattack-is-the-worst-case-of-its-members",
    "directions-separate-better-than-norms",
    "querynet-saves-queries",
    "searching-both-ways-recovers-some",
    "self-gmad-beats-random-pairs",
    "self-gmad-finds-failures",
    "self-gmad-forgets-nothing",
    "self-gmad-mends-the-model",
    "signhunter-stands-between-square-and-nes",
}


def cases():
    """The ids; proofs of one module share trained networks, and so a worker (`--dist loadgroup`)."""
    for p in proofs():
        module = p.experiment.__module__
        slow = [pytest.mark.slow] if LONG & {p.id, module} else []
        yield pytest.param(p.id, marks=[pytest.mark.xdist_group(module), *slow])


@pytest.mark.parametrize("id", list(cases()))
def test_the_claim_holds_at_smoke_scale_unless_the_ledger_says_otherwise(id):
    began = time.process_time()
    (entry,) = prove(id, scale="smoke")
    assert entry.passed or id in REFUTED, entry.sentence
    assert time.process_time() - began < 120  # of the processor: others may be using it as well


def test_what_is_called_long_exists():
    assert {p.id for p in proofs()} | {p.experiment.__module__ for p in proofs()} >= LONG


def test_every_proof_names_a_method_that_exists_and_has_a_smoke_and_a_cpu_scale():
    for p in proofs():
        assert catalog.find(p.method, Method).id == p.method
        assert {"smoke", "cpu"} <= set(p.threshold), p.id


def test_an_unknown_proof_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'energy'"):
        prove("enrgy")


def test_a_scale_without_a_threshold_is_refused():
    with pytest.raises(UserError, match="no proof at scale gpu; it has: cpu, smoke"):
        prove("energy", scale="gpu")


def test_the_same_recipe_and_seed_are_trained_once(monkeypatch):
    lab = Lab("smoke", Run(seed=5))
    base = Base(model="mlp", epochs=1, transforms=())
    first = lab.model(base)
    monkeypatch.setattr("holdfast.proofs.lab.fit", None)  # a second training would fail
    second = lab.model(base)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.equal(b)
    with pytest.raises(TypeError):
        Lab("smoke", Run(seed=6)).model(base)


def entry(**changes):
    fields = {
        "method": "pgd", "proof": "p", "claim": "c | d", "source": "s", "scale": "smoke", "metric": "m", "value": 1.0,
        "low": None, "high": None, "baseline": 0.5, "effect": 0.5, "threshold": 0.9, "better": "higher",
        "passed": True, "seeds": [0], "values": [1.0], "commit": "abc", "date": "2026-01-01T00:00:00Z",
        "seconds": 1.0, "machine": "x", "versions": {},
    }  # fmt: skip
    return Entry(**{**fields, **changes})


def test_the_ledger_keeps_everything_and_shows_the_newest(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append([entry(value=1.0)], path)
    append([entry(value=0.2, passed=False), entry(scale="cpu")], path)
    assert [e.value for e in read(path)] == [1.0, 0.2, 1.0]
    assert [(e.scale, e.value) for e in latest(path)] == [("cpu", 1.0), ("smoke", 0.2)]
    assert {"method", "proof", "claim", "scale", "metric", "value", "baseline", "threshold", "passed", "seeds",
            "commit", "seconds", "machine"} <= set(json.loads(path.read_text().splitlines()[0]))  # fmt: skip


def test_a_damaged_ledger_is_named_by_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append([entry()], path)
    path.write_text(path.read_text() + '{"method": "pgd"}\n')
    with pytest.raises(UserError, match="line 2: proof"):
        read(path)


def test_failures_show_on_the_page(tmp_path):
    page = evidence_page([entry(), entry(proof="q", passed=False, note="tried hard")])
    assert "1 of 2 held" in page
    assert "**no**" in page
    assert "tried hard" in page
    assert "c \\| d" in page


def test_the_ledger_of_the_repository_can_be_read():
    assert ledger_path().name == "ledger.jsonl"
    for e in read():
        assert e.passed == (e.value >= e.threshold if e.better == "higher" else e.value <= e.threshold)
