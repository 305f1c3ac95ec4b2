"""The pages in a real browser: Debian's chromium, driven by Playwright, without any network."""

import os
import shutil

import pytest
from sample_audit import hostile, make_audit

from holdfast.report import compare, write_comparison, write_report

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install holdfast[test])")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)><svg/onload=alert(1)>"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no browser found: install Debian's chromium (apt install chromium), or set $CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    comparison = compare([sample, make_audit(shift=150), make_audit(shift=-200)], ["plain", "hardened", "pruned"])
    bad = hostile(sample, EVIL)
    return {
        "report": write_report(sample, folder),
        "compare": write_comparison(comparison, folder),
        "hostile report": write_report(bad, folder / "hostile.html"),
        "hostile compare": write_comparison(compare([bad, bad], [EVIL, EVIL]), folder / "hostile"),
    }


class Visit:
    """A page, with everything it complained of and asked for."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints, self.asked, self.dialogs = [], [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.own = path.as_uri()
        self.context.route("**/*", self.answer)
        self.page.goto(self.own)

    def answer(self, route):
        """Give the page itself and nothing else; what the content security policy stops does not come this far."""
        if route.request.url == self.own:
            route.continue_()
        elif not route.request.url.startswith("data:"):
            self.asked.append(route.request.url)
            route.abort()


@pytest.fixture
def visit(browser, pages):
    opened = []

    def go(name, **context):
        opened.append(Visit(browser, pages[name], **context))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_load_without_complaint_and_without_network(visit, name, scheme):
    seen = visit(name, color_scheme=scheme)
    assert seen.complaints == []
    assert seen.asked == []
    assert seen.page.title()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_nothing_sticks_out_of_the_screen(visit, name):
    page = visit(name, viewport={"width": 1360, "height": 740}).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for width in (1360, 1100, 768, 360, 320):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollWidth") <= width


def column(page, table, place):
    return page.eval_on_selector_all(f"{table} tbody tr", f"rows => rows.map(r => r.cells[{place}].textContent.trim())")


def test_tables_sort_by_number_with_the_mouse_and_the_keyboard(visit):
    page = visit("report").page
    page.evaluate("document.querySelectorAll('table.sortable').forEach((t, i) => t.id = `t${i}`)")
    detectors = page.locator("table.sortable", has_text="FPR at 95 % TPR").first
    table = f"#{detectors.get_attribute('id')}"
    before = column(page, table, 2)
    head = detectors.locator("th", has_text="AUROC")
    head.locator("button").click()
    rising = column(page, table, 2)
    assert [float(v) for v in rising] == sorted(float(v) for v in before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert column(page, table, 2) == rising[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    assert detectors.locator("[aria-sort]").count() == 1


def test_empty_cells_sort_last_in_both_directions(visit):
    page = visit("report").page
    page.evaluate("document.querySelectorAll('table.sortable').forEach((t, i) => t.id = `t${i}`)")
    tests = page.locator("table.sortable", has_text="unbounded attack fails").first
    for _ in range(2):
        tests.locator("th", has_text="Value").locator("button").click()
        assert column(page, f"#{tests.get_attribute('id')}", 1)[-1] == "–"


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_theme_follows_the_system_until_the_reader_chooses(visit):
    light, dark = visit("report", color_scheme="light").page, visit("report", color_scheme="dark").page
    assert ground(light) == "rgb(255, 255, 255)"
    night = ground(dark)
    assert night != ground(light)
    light.get_by_role("button", name="Use dark colours").click()
    assert ground(light) == night
    light.reload()
    assert ground(light) == night, "the choice is remembered"
    light.get_by_role("button", name="Use light colours").click()
    assert ground(light) == "rgb(255, 255, 255)"


def test_paper_is_light_complete_and_paged(visit):
    page = visit("report", color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert ground(page) == "rgb(255, 255, 255)"
    assert not page.locator(".tools").is_visible()
    shut = page.locator("details.settings:not([open]) .facts").first
    assert shut.bounding_box()["height"] > 10, "folded settings are printed"
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert 5 < pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") < 60


def test_folded_details_open_and_close_together(visit):
    page = visit("report").page
    button = page.get_by_role("button", name="Open all details")
    button.click()
    assert page.locator("main details:not([open])").count() == 0
    page.get_by_role("button", name="Close all details").click()
    assert page.locator("main details[open]").count() == 0


def test_a_command_is_copied_or_at_least_selected(visit):
    page = visit("report").page
    page.locator("button.copy").first.click()
    sync_api.expect(page.locator("button.copy").first).not_to_have_text("Copy")
    done = page.locator("button.copy").first.text_content()
    assert done in ("Copied", "Selected")
    if done == "Selected":
        assert page.evaluate("getSelection().toString()").startswith("holdfast ")


def test_the_contents_lead_to_the_sections(visit):
    page = visit("report", viewport={"width": 1360, "height": 900}).page
    page.get_by_role("navigation").get_by_role("link", name="Evasion").click()
    link = page.locator('.toc a[href="#a-evasion"]')
    sync_api.expect(link).to_have_attribute("aria-current", "location")
    assert abs(page.locator("#a-evasion").bounding_box()["y"]) < 100


@pytest.mark.parametrize("name", ["hostile report", "hostile compare"])
def test_hostile_names_are_shown_and_do_nothing(visit, name):
    seen = visit(name)
    page = seen.page
    assert seen.dialogs == []
    assert seen.asked == []
    assert seen.complaints == [], "the policy never had to step in"
    assert page.locator("script").count() == 1
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/png;base64,'))")
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert page.evaluate(handlers) == []
    assert EVIL in page.locator("h1").text_content()


def test_the_policy_stops_what_would_slip_through(visit):
    seen = visit("report")
    seen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    seen.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.org/x.png>')")
    seen.page.wait_for_timeout(100)
    assert seen.dialogs == []
    assert seen.asked == []
    assert any("Content Security Policy" in text or "violates" in text for text in seen.complaints)
