"""The page in a real browser: it asks, filters, contrasts, folds and downloads, and no text of a corpus runs.

Needs Debian's `chromium` and `chromium-driver`. With AIRREP_SCREENSHOTS set to a folder, pictures of the page at both
widths are written there (`serve-1440.png`, `serve-390.png`).
"""

import csv
import io
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from browser import needs_browser, open_page, start_browser, take_picture
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from served_corpus import PROMPT, RESPONSE, answering, make_app, make_corpus, serving

pytestmark = [needs_browser, pytest.mark.slow]
WIDTHS = [1440, 390]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(downloads):
    driver = start_browser(downloads)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = make_corpus(tmp_path_factory.mktemp("served"))
    with answering(folder) as answerer, serving(make_app(answerer)) as port:
        yield f"http://127.0.0.1:{port}/"


def _open(browser, address, width=1440):
    open_page(browser, address, width)
    _wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#label option")) > 1)


def _wait(browser, met):
    WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: met())


def _settled(browser):
    script = (
        "return !document.querySelector('.ask-button').disabled && !document.querySelector('#answers.waiting')"
        " && (!document.querySelector('#answers').hidden || !document.querySelector('#error').hidden)"
    )
    _wait(browser, lambda: browser.execute_script(script))


def _write(browser, field, text):
    box = browser.find_element(By.ID, field)
    box.clear()
    box.send_keys(text)


def _ask(browser, prompt=PROMPT, response=RESPONSE, contrast=""):
    for field, text in (("prompt", prompt), ("response", response), ("contrast", contrast)):
        _write(browser, field, text)
    browser.find_element(By.CSS_SELECTOR, ".ask-button").click()
    _settled(browser)


def _choose(browser, field, text):
    Select(browser.find_element(By.ID, field)).select_by_visible_text(text)
    _settled(browser)


def _check(browser, field):
    browser.find_element(By.ID, field).click()
    _settled(browser)


def _cards(browser, within=""):
    return [card.text for card in browser.find_elements(By.CSS_SELECTOR, f"{within} .cards > li")]


def _download(browser, downloads, kind):
    path = downloads / f"training_examples.{kind}"
    path.unlink(missing_ok=True)
    browser.find_element(By.ID, kind).click()
    # The browser gives a file its name once all of it is there.
    _wait(browser, path.exists)
    return path.read_bytes().decode()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_question_is_answered_filtered_contrasted_folded_and_downloaded(browser, address, downloads, width):
    _open(browser, address, width)
    assert "57 rows" in browser.find_element(By.ID, "served").text
    _ask(browser)
    cards = _cards(browser, ".helpful")
    assert cards
    # Words that most rows have say nothing.
    assert {mark.text.lower() for mark in browser.find_elements(By.CSS_SELECTOR, ".cards mark")} == {"9"}

    # Rows that say the same are one card with a count, until they are asked for one by one.
    same = browser.find_elements(By.CSS_SELECTOR, ".same summary")
    assert same
    assert "that say" in same[0].text
    same[0].click()
    assert "no. " in browser.find_element(By.CSS_SELECTOR, ".same[open] li").text
    if folder := os.environ.get("AIRREP_SCREENSHOTS"):
        take_picture(browser, Path(folder) / f"serve-{width}.png", width, 2400)
    _check(browser, "fold")
    assert not browser.find_elements(By.CSS_SELECTOR, ".same")
    assert len(_cards(browser, ".helpful")) == len(_cards(browser, ".harmful")) == 10

    _choose(browser, "label", "root (24)")
    assert {tag.text for tag in browser.find_elements(By.CSS_SELECTOR, ".cards .tag")} == {"root"}
    _choose(browser, "label", "no label (9)")
    assert {tag.text for tag in browser.find_elements(By.CSS_SELECTOR, ".cards .tag")} == {"no label"}
    _choose(browser, "label", "any")
    _choose(browser, "sign", "harmful only")
    assert not browser.find_elements(By.CSS_SELECTOR, ".helpful")
    _choose(browser, "sign", "helpful and harmful")

    before = _cards(browser)
    _ask(browser, contrast="The root is surely 9.")
    assert _cards(browser) != before
    assert "minus those for the other one" in browser.find_element(By.ID, "summary").text

    told = json.loads(_download(browser, downloads, "json"))
    assert [row["query_contrast"] for row in told["answers"]] == ["The root is surely 9."]
    rows = list(csv.DictReader(io.StringIO(_download(browser, downloads, "csv"), newline="")))
    found = [str(example["example_id"]) for example in told["answers"][0]["examples"]]
    assert [row["example_id"] for row in rows] == found
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_file_of_queries_is_answered_one_by_one(browser, address, tmp_path, width):
    rows = [
        {"prompt": PROMPT, "response": RESPONSE},
        {"prompt": "", "response": "x"},
        {"prompt": "And the root?", "response": "9"},
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _open(browser, address, width)
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "queries.jsonl"))
    _settled(browser)
    options = [option.text for option in browser.find_elements(By.CSS_SELECTOR, "#queries option")]
    assert options == [f"1: {PROMPT}", "3: And the root?"]
    assert "1 row of the file can't be used" in browser.find_element(By.ID, "left-out").text
    before = _cards(browser)
    _choose(browser, "queries", "3: And the root?")
    assert "And the root?" in browser.find_element(By.ID, "query").text
    assert _cards(browser) != before
    if folder := os.environ.get("AIRREP_SCREENSHOTS"):
        take_picture(browser, Path(folder) / f"serve-file-{width}.png", width, 2000)
    browser.find_element(By.ID, "no-file").click()
    assert not browser.find_element(By.ID, "answers").is_displayed()


def test_no_text_of_the_corpus_runs_and_nothing_is_asked_elsewhere(browser, address):
    _open(browser, address)
    for prompt in ("<script>window.__hacked = 1</script>", "img src=x onerror javascript:window"):
        _ask(browser, prompt)
        _choose(browser, "label", "no label (9)")
    assert browser.execute_script("return window.__hacked") is None
    sources = browser.execute_script("return [...document.scripts].map((one) => one.getAttribute('src'))")
    assert sources == ["/blocks.js", "/page.js"]
    assert browser.find_elements(By.CSS_SELECTOR, "main img, main svg, main style") == []
    browser.execute_script(
        "const script = document.createElement('script');"
        "script.textContent = 'window.__hacked = 1'; document.body.append(script)"
    )
    assert browser.execute_script("return window.__hacked") is None
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((address, "data:")) for url in asked)
    browser.get_log("browser")


def test_what_is_wrong_is_said_and_mended_by_the_next_question(browser, address):
    _open(browser, address)
    _ask(browser, contrast="Another.", response="")
    assert "a contrast needs a response" in browser.find_element(By.ID, "error").text
    _ask(browser)
    assert not browser.find_element(By.ID, "error").is_displayed()
    browser.find_element(By.ID, "prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    _settled(browser)


def test_every_control_has_a_name(browser, address):
    _open(browser, address)
    _ask(browser)
    for control in browser.find_elements(By.CSS_SELECTOR, "button, select, input, textarea, summary, a"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_the_api_needs_no_network(browser, address, width):
    open_page(browser, f"{address}docs", width)
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "POST /api/attribute" in text
    assert "min_score" in text
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("AIRREP_SCREENSHOTS"):
        take_picture(browser, Path(folder) / f"serve-docs-{width}.png", width, 2000)
