"""The generated pages say what the code says, and every link of the site leads somewhere."""

import json
import posixpath
import re

import pytest
import typer
import yaml

from holdfast import catalog
from holdfast.audit.check import all_checks
from holdfast.audit.policy import load_policy
from holdfast.cli import app
from holdfast.models import zoo_card, zoo_names
from holdfast.proofs import proofs
from holdfast.proofs.ledger import Entry, evidence_page, latest

FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def without_code(page):
    return re.sub(r"`[^`]*`", "", FENCE.sub("", page))


def anchors(page):
    """The ids that headings get, by the rule of Python-Markdown's `toc`."""
    titles = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def test_the_committed_evidence_is_that_of_the_ledger(docs):
    committed = (docs / "evidence.md").read_text(encoding="utf-8")
    assert committed == evidence_page(latest()), "run `python docs/generate.py`"


def test_every_link_leads_to_a_page_and_every_anchor_to_a_heading(written, generated):
    pages = {**written, **generated}
    broken = []
    for path, page in pages.items():
        if not path.endswith(".md"):
            continue
        for target in LINK.findall(without_code(page)):
            if re.match(r"https?:", target):
                continue
            place, _, anchor = target.partition("#")
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(path), place)) if place else path
            if goal not in pages or (anchor and anchor not in anchors(pages[goal])):
                broken.append(f"{path}: {target}")
    assert broken == []


def test_the_navigation_holds_every_page_once(docs, written, generated):
    from _hooks import site

    # mkdocs.yml may hold tags of its own, which plain YAML does not know; there are none in `nav`
    text = (docs.parent / "mkdocs.yml").read_text(encoding="utf-8")
    nav = site.grown(yaml.safe_load(text)["nav"])
    listed = re.findall(r"'([^']+\.md)'", repr(nav))
    assert sorted(listed) == sorted(p for p in {**written, **generated} if p.endswith(".md"))


def test_a_methods_page_has_its_hyperparameters_its_paper_and_its_claims(generated):
    for card in catalog.cards():
        page = generated[f"methods/{card.id}.md"]
        assert page.startswith(f"# {card.title}\n")
        assert all(f"| `{field.name}` |" in page for field in card.fields)
        assert card.paper is None or card.paper.url is None or card.paper.url in page
        assert all(claim.claim in page for claim in proofs(card.id))
        assert f"[`{card.id}`]({card.id}.md)" in generated["methods/index.md"]


def test_defaults_are_written_as_one_would_type_them(docs):
    from _hooks.markdown import literal

    assert [literal(v) for v in (8 / 255, 0.1, None, True, (0.5, 0.75))] == [
        "8/255",
        "0.1",
        "none",
        "true",
        "[0.5, 0.75]",
    ]


def test_pipes_are_escaped_in_tables_except_in_code(docs):
    from _hooks.markdown import table

    assert table(("a",), [("x | y `quick|full`",)]).splitlines()[-1] == r"| x \| y `quick|full` |"


def test_the_page_of_concepts_names_every_kind_of_method(written):
    assert [card.kind for card in catalog.cards() if f"`{card.kind}`" not in written["concepts.md"]] == []


@pytest.fixture
def entry():
    def make(**changes):
        plain = {
            "method": "energy", "proof": "p", "claim": "c", "source": "s", "scale": "smoke", "metric": "auroc",
            "value": 0.9, "low": 0.8, "high": 0.95, "baseline": None, "effect": None, "threshold": 0.7,
            "better": "higher", "passed": True, "seeds": [0], "values": [0.9], "commit": "abc", "seconds": 1.0,
            "date": "2026-01-01T00:00:00Z", "machine": "m", "versions": {},
        }  # fmt: skip
        return Entry(**(plain | changes))

    return make


def test_one_claim_that_did_not_hold_outweighs_those_that_did(docs, entry):
    from _hooks.methods import _mark

    held, failed = entry(proof="a"), entry(proof="b", passed=False)
    assert _mark("energy", "smoke", [held]) == "✓"
    assert _mark("energy", "smoke", [held, failed]) == "✗"
    assert _mark("energy", "cpu", [held, failed]) == "–"
    assert _mark("knn", "smoke", [held]) == "–"


def test_evidence_of_a_proof_that_is_gone_stays_on_the_page(docs, entry):
    from _hooks.methods import _page

    page = _page(catalog.describe("energy"), [entry(proof="long-gone", passed=False)], proofs("energy"))
    assert "Earlier claims" in page
    assert "**✗**" in page


def test_a_checks_page_has_each_limit_of_the_default_policy(generated):
    checks = all_checks()
    rules = load_policy(extra={check.id: check.limits for check in checks}).rules
    for check in checks:
        page = generated[f"checks/{check.id}.md"]
        for metric, rule in rules.get(check.id, {}).items():
            [row] = [line for line in page.splitlines() if line.startswith(f"| `{metric}` |")]
            assert rule.pass_at is None or f" {rule.pass_at:g} |" in row
            assert " ".join(rule.source.split()).replace("|", "\\|") in row


def test_the_command_line_reference_has_every_command_and_option(generated):
    page = generated["reference/cli.md"]

    def walk(command, ctx):
        if hasattr(command, "list_commands"):
            for name in command.list_commands(ctx):
                below = command.get_command(ctx, name)
                yield from walk(below, typer.Context(below, parent=ctx, info_name=name))
        else:
            yield command, ctx

    root = typer.main.get_command(app)
    for command, ctx in walk(root, typer.Context(root, info_name="holdfast")):
        section = re.split(r"^##", page, flags=re.MULTILINE)
        [section] = [s for s in section if s.lstrip("# ").startswith(f"{ctx.command_path}\n")]
        for parameter in command.params:
            assert all(f"{option}" in section for option in parameter.opts), (ctx.command_path, parameter.opts)


def test_the_page_of_bundled_models_has_each_with_its_measured_accuracy(generated):
    for card in map(zoo_card, zoo_names()):
        [row] = [
            line for line in generated["reference/zoo.md"].splitlines() if line.startswith(f"| `zoo:{card.name}` |")
        ]
        assert f"{100 * card.accuracy.value:.2f}% of {card.accuracy.n}" in row


def test_the_schema_page_has_every_object_and_property_of_the_schema(generated):
    schema, page = json.loads(generated["reference/audit.schema.json"]), generated["reference/audit-json.md"]
    for name, content in {"Audit": schema, **schema["$defs"]}.items():
        section = re.split(r"^## ", page, flags=re.MULTILINE)
        [section] = [s for s in section if s.startswith(f"{name}\n")]
        assert all(f"| `{key}` |" in section for key in content.get("properties", {}))


def test_unlearners_stand_beside_retraining_as_the_ledger_has_them():
    from _hooks import unlearners

    def of(method, gap, seeds=1):
        known = {"ua": 0.2, "ra": 0.9, "ta": 0.8, "mia_nonmember_rate": 0.1}
        one = {
            **known, "gap": gap, "js": 0.01, "seconds": 5.0, "retrained": known, "original": known,
            "gap of the original": 20.0,
        }  # fmt: skip
        entry = next(e for e in latest() if e.proof.endswith("-of-random-images"))
        details = one if seeds == 1 else {"per_seed": [one, {**one, "ua": 0.4}]}
        proof = f"{method}-of-random-images"
        return entry.model_copy(
            update={"scale": "cpu", "method": method, "proof": proof, "details": details, "seeds": list(range(seeds))}
        )

    text = unlearners.page([of("ft", 7.0, 2), of("salun", 3.0, 2)])
    assert text.index("`salun`") < text.index("`ft`")
    assert "30.0 ± 14.1 %" in text
    assert "Means over 2 seeds" in text
    assert text.count("Not measured yet.") == 1
