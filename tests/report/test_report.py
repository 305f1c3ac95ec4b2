import itertools
import re
from html.parser import HTMLParser

import pytest
from sample_audit import hostile, make_audit
from sample_findings import CLASSES

from holdfast.errors import UserError
from holdfast.report import write_report
from holdfast.report.pages import render

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


class Page(HTMLParser):
    """The elements of a page, the text of all and of each id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html(sample, tmp_path_factory):
    return write_report(sample, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_report_is_written_into_a_folder_or_under_the_name_given(sample, tmp_path):
    assert write_report(sample, tmp_path / "new") == tmp_path / "new" / "report.html"
    assert write_report(sample, tmp_path / "mine.html") == tmp_path / "mine.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_report(sample, tmp_path / "file")


def test_the_same_audit_gives_the_same_bytes(sample, tmp_path):
    first, second = (write_report(sample, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_the_report_is_one_file_that_asks_for_nothing(html, page):
    assert len(html) < 1_000_000
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
    assert "@import" not in html
    assert "url(" not in html
    assert not re.search(r"\bstyle=", html), "inline styles would need a laxer policy"


def test_the_policy_allows_one_script_and_one_style_by_their_hashes(page):
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1


def test_every_area_has_its_verdict_on_page_one(sample, page):
    cards = [a for tag, a in page.elements if tag == "li" and a.get("class", "").startswith("area ")]
    assert [c["class"] for c in cards] == [f"area v-{s.verdict.replace(' ', '-')}" for s in sample.sections]


def test_what_was_not_assessed_is_said_on_page_one_and_never_looks_like_a_pass(sample, html):
    first_page = html[: html.index('class="area-section"')]
    for section in sample.sections:
        if section.verdict == "not assessed":
            assert section.title in first_page
    style = html[html.index("<style>") : html.index("</style>")]
    assert re.search(r"\.v-not-assessed\{--v:var\(--none\)", style)


def test_recommendations_of_failures_come_first(html):
    steps = html[html.index('class="steps"') :]
    assert steps.index("Train against attacks of this size.") < steps.index("Attack with more steps.")
    assert "holdfast" in steps[: steps.index("</ol>")]


def test_a_failure_without_advice_is_not_missing_from_page_one(sample, tmp_path):
    findings = [f.model_copy(update={"actions": []}) if f.verdict == "fail" else f for f in sample.findings]
    html = write_report(sample.model_copy(update={"findings": findings}), tmp_path).read_text(encoding="utf-8")
    steps = html[html.index('class="steps"') :]
    assert steps.index("Attacks: this fails") < steps.index("Attack with more steps.")


def test_numbers_stand_with_their_interval_sample_size_and_limit(page):
    assert "91.64 %" in page.text
    assert "91.08 to 92.17 %" in page.text
    assert "at least 40 %, fails below 10 %" in page.text


def test_every_link_leads_somewhere_and_every_id_is_unique(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for link in page.all("a") + page.all("use"):
        assert link["href"][1:] in ids


def test_every_picture_table_and_drawing_has_words_for_those_who_do_not_see_it(page):
    assert all(img.get("alt") for img in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    drawings = [svg for svg in page.all("svg") if svg.get("class") == "chart"]
    assert drawings
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_the_policy_is_listed_with_its_sources(sample, page):
    assert sample.policy.rule("evasion", "robust-accuracy").source in page.text


def test_nothing_an_audit_says_becomes_markup(sample, tmp_path):
    audit = hostile(sample, EVIL)
    secret = audit.findings[2].model_copy(update={"settings": {EVIL: {EVIL: [EVIL, 1, None, {"a": EVIL}]}}})
    audit = audit.model_copy(update={"findings": [*audit.findings[:2], secret, *audit.findings[3:]]})
    html = write_report(audit, tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.all("script")) == 1
    assert "alert(1)" not in html[html.rindex("<script>") :]
    assert all(img["src"].startswith("data:image/png;base64,") for img in page.all("img"))
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert EVIL in page.text, "the name is shown as it is"
    assert "49" not in re.findall(r"onerror=alert\(1\)&gt;(.*?)<", html), "nor is it read as a template"


def test_commands_in_a_sentence_are_set_as_code(sample, tmp_path):
    said = ["Run `holdfast ood fit --detector 'a<b'` first.", "One ` alone stays."]
    first = sample.findings[0].model_copy(update={"limitations": said})
    audit = sample.model_copy(update={"findings": [first, *sample.findings[1:]]})
    html = write_report(audit, tmp_path).read_text(encoding="utf-8")
    assert "Run <code>holdfast ood fit --detector &#39;a&lt;b&#39;</code> first." in html
    assert "One ` alone stays." in html


def test_class_names_are_shown_as_they_are(tmp_path):
    classes = ("<b>bold</b>", "a&b", "'quoted'", "naïve 猫", "\u202eright to left", *CLASSES[5:])
    html = write_report(make_audit(classes=classes), tmp_path).read_text(encoding="utf-8")
    assert "<b>bold</b>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "naïve 猫" in html


def test_an_audit_without_findings_still_makes_a_report(sample, tmp_path):
    empty = sample.model_copy(
        update={"findings": [], "command": "", "policy": sample.policy.model_copy(update={"rules": {}})}
    )
    assert "Nothing was assessed." in write_report(empty, tmp_path).read_text(encoding="utf-8")


def luminance(colour):
    if len(colour) == 4:
        colour = "#" + "".join(2 * c for c in colour[1:])
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def themes():
    style = render("page.html.j2")
    blocks = [dict(re.findall(r"--([\w-]+):(#\w+)", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", style)]
    full = [b for b in blocks if "paper" in b]
    assert len(full) >= 3
    return full


@pytest.mark.parametrize("theme", themes(), ids=lambda t: f"paper {t['paper']}")
def test_text_has_contrast_enough_in_every_theme(theme):
    for ground in ("paper", "wash"):
        for ink in ("ink", "soft", "accent"):
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
    for verdict in ("fail", "attention", "pass", "none"):
        assert contrast(theme[verdict], theme[f"{verdict}-wash"]) >= 4.5, verdict
        assert contrast(theme[verdict], theme["paper"]) >= 4.5, verdict
        assert contrast(theme[f"{verdict}-fill"], theme["paper"]) >= 3, verdict
    for i in range(8):
        assert contrast(theme[f"s{i}"], theme["paper"]) >= 4.5, f"names at the ends of curves, series {i}"
    darkest = "#" + "".join(
        f"{round(0.7 * int(theme['heat'][i : i + 2], 16) + 0.3 * int((theme['paper'] * 2)[i : i + 2], 16)):02x}"
        if len(theme["paper"]) == 7
        else f"{round(0.7 * int(theme['heat'][i : i + 2], 16) + 0.3 * 255):02x}"
        for i in (1, 3, 5)
    )
    assert contrast(theme["ink"], darkest) >= 4.5, "numbers in heat maps"
