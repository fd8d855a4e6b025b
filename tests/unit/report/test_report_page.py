"""The report in a real browser: what a reader clicks works, nothing is asked of any address, nothing runs.

Needs Debian's `chromium` and `chromium-driver`. With AIRREP_SCREENSHOTS set to a folder, the pictures of the
page at both widths are written there (`report-1440.png`, `report-390.png`).
"""

import json
import os
import time
from pathlib import Path

import pytest
from browser import needs_browser, open_page, start_browser, take_picture
from report_run import HOSTILE, make_run
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from workflow_scripts.report.write_report import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    return _report(tmp_path_factory.mktemp("calm"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    return _report(tmp_path_factory.mktemp("hostile"), texts=HOSTILE, evaluations=("heldout", "another"))


def _report(folder: Path, **run) -> Path:
    arguments = make_run(folder, **run)
    write_report(**arguments)
    return arguments["report"]


def _open(browser, report: Path, width: int = 1440, dark: bool = False) -> None:
    open_page(browser, report.as_uri(), width, dark)


def _requests(browser) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }


def _tests(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#tests button")


def _choose(browser, field: str, text: str) -> None:
    Select(browser.find_element(By.ID, field)).select_by_visible_text(text)


def _text(browser, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def _visit_everything(browser) -> None:
    options = browser.find_elements(By.CSS_SELECTOR, "#evaluation option")
    for option in options:
        if len(options) > 1:  # a choice of one is hidden
            option.click()
        _choose(browser, "beside", "TF-IDF")
        for place in range(len(HOSTILE)):
            _tests(browser)[place].click()
            # A driver's click would hit the sticky header where a button lies behind it.
            browser.execute_script("document.querySelectorAll('.clamped > button').forEach((button) => button.click())")


@pytest.mark.parametrize("corpus", ["calm", "hostile"])
def test_page_runs_nothing_and_asks_for_nothing(browser, request, corpus):
    report = request.getfixturevalue(corpus)
    _open(browser, report)
    _visit_everything(browser)
    assert browser.get_log("browser") == []
    assert _requests(browser) == {report.as_uri()}
    assert browser.execute_script("return window.__hacked") is None
    assert browser.execute_script("return document.scripts.length") == 2


def test_policy_stops_a_script_that_did_get_in(browser, calm):
    """The net below the escaping: the page lets its own script run and no other."""
    _open(browser, calm)
    browser.execute_script(
        "const script = document.createElement('script');"
        "script.textContent = 'window.__hacked = 1'; document.body.append(script)"
    )
    assert browser.execute_script("return window.__hacked") is None
    browser.get_log("browser")


def test_click_shows_the_test_and_its_examples(browser, calm):
    _open(browser, calm)
    before = _text(browser, "#lists")
    _tests(browser)[3].click()
    assert _tests(browser)[3].get_attribute("aria-current") == "true"
    assert "Answer 3:" in _text(browser, "#test")
    assert _text(browser, "#lists") != before
    assert "Most helpful" in _text(browser, "#lists")
    assert "Predicted to raise the loss" in _text(browser, "#lists")


def test_more_examples_on_demand(browser, calm):
    _open(browser, calm)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".helpful .cards > li")) == 8
    browser.find_element(By.CSS_SELECTOR, ".helpful > button").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".helpful .cards > li")) == 10


def test_examples_that_say_the_same_are_one_card_with_a_count(browser, tmp_path):
    texts = ["The first of all answers.", "Another answer, the second.", "And the last of the three."]
    _open(browser, _report(tmp_path, texts=texts))
    cards = browser.find_elements(By.CSS_SELECTOR, ".helpful .cards > li")
    counts = [int(text.split()[1]) for text in (_same(card) for card in cards) if text]
    assert len(cards) + sum(counts) == 10
    browser.find_element(By.CSS_SELECTOR, ".helpful .same summary").click()
    assert "no. " in _text(browser, ".helpful .same[open] li")
    _choose(browser, "label", texts[0])
    assert {tag.text for tag in browser.find_elements(By.CSS_SELECTOR, "#lists .tag")} <= {texts[0]}


def _same(card) -> str:
    return " ".join(summary.text for summary in card.find_elements(By.CSS_SELECTOR, ".same summary"))


def test_switching_the_method_changes_the_lists(browser, calm):
    _open(browser, calm)
    before = _text(browser, "#lists")
    _choose(browser, "method", "TF-IDF")
    assert _text(browser, "#lists") != before
    # Likeness is never negative, and the page mustn't call the least alike examples harmful.
    assert "Least helpful" in _text(browser, "#lists")
    assert "No score is negative" in _text(browser, "#lists")


def test_two_methods_stand_side_by_side(browser, calm):
    _open(browser, calm)
    _choose(browser, "beside", "Untrained encoder")
    methods = browser.find_elements(By.CSS_SELECTOR, "#lists > .method")
    assert [method.get_attribute("aria-label") for method in methods] == ["AirRep", "Untrained encoder"]
    assert methods[0].rect["y"] == methods[1].rect["y"]
    assert "of 10 most helpful examples" in _text(browser, "#agreement")
    _choose(browser, "beside", "no other method")
    assert _text(browser, "#agreement") == ""


def test_filters_by_sign_and_label(browser, calm):
    _open(browser, calm)
    _choose(browser, "sign", "harmful only")
    assert browser.find_elements(By.CSS_SELECTOR, ".ranked.helpful") == []
    _choose(browser, "sign", "helpful and harmful")
    _choose(browser, "label", "same as the test")
    wanted = _text(browser, "#test .tag")
    tags = [tag.text for tag in browser.find_elements(By.CSS_SELECTOR, "#lists .tag")]
    assert tags
    assert set(tags) == {wanted}
    _choose(browser, "label", "geography")
    assert {tag.text for tag in browser.find_elements(By.CSS_SELECTOR, "#lists .tag")} == {"geography"}


def test_search_finds_words_labels_and_rows(browser, calm):
    _open(browser, calm)
    search = browser.find_element(By.ID, "search")
    search.send_keys("river NIGHT")
    assert _text(browser, "#found") == "6 of 30 test examples"
    search.clear()
    search.send_keys("#12")
    assert [button.get_attribute("data-test") for button in _tests(browser)] == ["11"]
    search.send_keys(Keys.ENTER)
    assert "row 12" in _text(browser, "#test")
    search.clear()
    search.send_keys("no such words")
    assert _text(browser, "#found") == "0 of 30 test examples"


def test_keyboard_reaches_a_test_from_the_search(browser, calm):
    _open(browser, calm)
    search = browser.find_element(By.ID, "search")
    search.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert _tests(browser)[1].get_attribute("aria-current") == "true"


def test_every_control_has_a_name(browser, calm):
    _open(browser, calm)
    _choose(browser, "beside", "TF-IDF")
    for control in browser.find_elements(By.CSS_SELECTOR, "button, select, input, summary, a"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")


def test_a_long_text_is_cut_with_a_mark(browser, hostile):
    _open(browser, hostile)
    _tests(browser)[5].click()
    browser.find_element(By.CSS_SELECTOR, "#test .clamped > button").click()
    assert "cut here; the whole text has 100,000 characters" in _text(browser, "#test")


@pytest.mark.parametrize("corpus", ["calm", "hostile"])
@pytest.mark.parametrize("width", [1440, 390])
def test_page_is_never_wider_than_the_window(browser, request, corpus, width):
    _open(browser, request.getfixturevalue(corpus), width)
    _choose(browser, "beside", "TF-IDF")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if corpus == "calm" and (folder := os.environ.get("AIRREP_SCREENSHOTS")):
        take_picture(browser, Path(folder) / f"report-{width}.png", width)


CONTRAST = """
const parse = (text) => {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  // A mixed colour is written as color(srgb ...), in parts of 1.
  return text.startsWith("color(") ? numbers.map((part, n) => (n < 3 ? 255 * part : part)) : numbers;
};
const linear = (part) => part <= 10 ? part / 255 / 12.92 : ((part / 255 + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const speaks = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("h1,h2,h3,h4,h5,p,td,th,dt,dd,span,b,a,button,summary,bdi,label")]
  .filter((node) => node.offsetParent && speaks(node) && !node.closest(".top"))
  .map((node) => {
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), node.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_both_schemes(browser, calm, dark):
    """At least 4.5 to 1, as WCAG 2 AA asks for text of ordinary size."""
    _open(browser, calm, dark=dark)
    _choose(browser, "beside", "TF-IDF")
    assert browser.execute_script(CONTRAST) == []


@pytest.mark.slow
def test_large_report_opens_and_follows_every_click(browser, tmp_path):
    report = _report(tmp_path, tests=1000, train=20_000, examples=50)
    started = time.monotonic()
    _open(browser, report)
    print(f"opened {report.stat().st_size / 1e6:.1f} MB in {time.monotonic() - started:.2f} s")
    assert _text(browser, "#found") == "1,000 test examples"
    # What the page holds at once is what can be seen, however many tests there are.
    assert browser.execute_script("return document.querySelectorAll('*').length") < 5_000
    browser.find_element(By.ID, "search").send_keys("#1000")
    _tests(browser)[0].click()
    assert "row 1000" in _text(browser, "#test")
