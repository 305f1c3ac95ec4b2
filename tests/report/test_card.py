import re

import pytest
import yaml
from sample_audit import hostile

from holdfast.report import model_card, write_model_card

EVIL = "# <img src=x onerror=alert(1)> [link](http://evil.example) `code` | cell\n\n---\nlicense: mit"


def parts(card):
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_header_is_metadata_that_hubs_read(sample):
    header, _ = parts(model_card(sample))
    assert header["license"] == "unknown"
    assert "image-classification" in header["tags"]
    result = header["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "cifar10", "type": "cifar10", "split": "test"}
    values = {m["type"]: m["value"] for m in result["metrics"]}
    assert values["accuracy"] == pytest.approx(52_800 / 75_000) or values["accuracy"] == pytest.approx(0.9164)
    assert values["robust-accuracy"] == pytest.approx(0.002)
    assert not {"latency-p95", "throughput"} & values.keys(), "wall time is no property of the model"


def test_the_body_has_the_sections_of_model_cards_for_model_reporting(sample):
    _, body = parts(model_card(sample))
    assert re.findall(r"^## (.*)$", body, re.MULTILINE) == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
        "To repeat the audit",
    ]
    assert "not declared" in body[body.index("## Intended use") : body.index("## Factors")]


def test_failed_and_unmeasured_items_are_the_caveats(sample):
    caveats = model_card(sample).partition("## Caveats and recommendations")[2]
    for finding in sample.findings:
        if finding.verdict in ("fail", "attention"):
            assert finding.title in caveats
    for section in sample.sections:
        if section.verdict == "not assessed":
            assert section.title in caveats


def test_every_lasting_measure_is_listed_with_its_interval(sample):
    card = model_card(sample)
    assert "| accuracy | 91.64\u202f% | 91.08 to 92.17\u202f% | 10,000 |" in card
    assert "latency" not in card.partition("## Quantitative analyses")[2].partition("## Ethical")[0]


def test_nothing_an_audit_says_becomes_markup(sample):
    card = model_card(hostile(sample, EVIL))
    header, body = parts(card)
    assert header["license"] == "unknown"
    outside = re.sub(r"```sh\n.*?\n```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "<img" not in outside
    assert not re.search(r"(?<!\\)\[link", outside)
    assert "http://" not in outside
    assert len(re.findall(r"^#+ ", outside, re.MULTILINE)) == 11
    table = body.partition("## Quantitative analyses")[2].partition("##")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}


def test_the_command_stays_inside_its_block(sample):
    audit = sample.model_copy(update={"command": "run\n```\n# heading"})
    assert model_card(audit).rstrip().endswith("```sh\nrun ''' # heading\n```")


def test_the_card_is_written_into_a_folder_or_under_the_name_given(sample, tmp_path):
    assert write_model_card(sample, tmp_path / "new") == tmp_path / "new" / "MODEL_CARD.md"
    assert write_model_card(sample, tmp_path / "README.md").read_text(encoding="utf-8") == model_card(sample)
