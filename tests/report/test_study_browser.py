"""The study's page in a real browser: keys, clicks, going back, reloading, and the file it saves."""

import json
import shutil
import time
from itertools import product

import pytest
from PIL import Image

from sefi.benchmark.records import RunInfo, Sample
from sefi.report.pages import render_study_page
from sefi.user_study.preference import analyse_study
from sefi.user_study.study import StudyOptions, design_study, read_answer_files

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.loopback,  # the browser is driven through a port of this machine
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
]
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--proxy-server=direct://"),
    "--window-size=1200,900",
)
VARIANTS, PROMPTS = ("ours", "rival", "third"), ("beach", "cup")
LOOKING = 0.65  # seconds before an answer: no blind rater's, for three images


def made_study():
    """Three variants, two prompts, two seeds of one subject, each image of its own colour."""
    prompts = [{"text": f"{{}} {word}", "kind": "scene", "wanted": [["scene", word]]} for word in PROMPTS]
    variants = [{"label": label, "control": None} for label in VARIANTS]
    suite = {"name": "made", "about": "Made up.", "prompts": prompts, "variants": variants, "seeds": [0, 1]}
    run = RunInfo.model_validate({"suite": suite, "subjects": ["ada"], "model": {}})
    samples = [
        Sample(
            subject="ada",
            variant=VARIANTS[variant],
            kind="scene",
            prompt=prompt,
            seed=seed,
            text=f"a photo of person, {PROMPTS[prompt]}",
            image=f"pictures/{variant}{prompt}{seed}.png",
            sha256=f"{variant}{prompt}{seed}",
        )
        for variant, prompt, seed in product(range(3), range(2), range(2))
    ]
    study = design_study(run, samples, StudyOptions(count=2, checks=1, seed=3))
    files = sorted({file for one in study.comparisons for file in one.files})
    colours = [(40 * n % 256, 90 * n % 256, 200 - 10 * n) for n in range(len(files))]
    return study, {file: Image.new("RGB", (96, 96), colour) for file, colour in zip(files, colours, strict=True)}


def written(folder):
    """The study, and its page as a file."""
    study, images = made_study()
    page = folder / "study.html"
    page.write_text(render_study_page(study, images), encoding="utf-8")
    return study, page


@pytest.fixture
def browser(tmp_path):
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "saved")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


class Rater:
    """Somebody in front of the page."""

    def __init__(self, driver):
        self.driver = driver

    def part(self, name):
        return self.driver.find_element("id", name)

    def press(self, key):
        """Look, press a key, and wait until the page has moved."""
        time.sleep(LOOKING)
        self.driver.switch_to.active_element.send_keys(key)

    def images(self):
        return self.driver.find_elements("css selector", "#choices button")

    def focused(self):
        return self.driver.switch_to.active_element.get_attribute("id")


def wait_for(path, seconds=20):
    end = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    return path


def position(comparison, variant, study):
    """The key (from 1) of the right image in a check, else of this variant's."""
    code = comparison.right or next(code for code, label in study.variants.items() if label == variant)
    return [one.code for one in comparison.shown].index(code) + 1


def test_a_rater_answers_goes_back_reloads_and_saves(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    study, page = written(tmp_path)
    browser.get(page.as_uri())
    rater, total = Rater(browser), len(study.comparisons)
    assert total == 8
    assert not rater.part("asking").is_displayed()
    assert rater.focused() == "begin"
    rater.press(Keys.ENTER)

    # The first by a wrong key, a right key, back, and a click on another image.
    assert rater.part("count").text == f"1 of {total}"
    assert rater.part("prompt").text.strip("\u201c\u201d").startswith("a photo of person")
    rater.press("9")
    assert rater.part("count").text == f"1 of {total}"
    rater.press("1")
    assert rater.part("count").text == f"2 of {total}"
    rater.press(Keys.BACKSPACE)
    assert [one.get_attribute("aria-pressed") for one in rater.images()] == ["true", "false", "false"]
    time.sleep(LOOKING)
    rater.images()[position(study.comparisons[0], "rival", study) - 1].click()

    # A reload goes on where it was left.
    assert rater.part("count").text == f"2 of {total}"
    # The browser's storage is another process: on a busy machine what was just kept is not there at once.
    end = time.monotonic() + 20
    while f"1 of {total} answered" not in rater.part("begin").text and time.monotonic() < end:
        time.sleep(1.0)
        browser.refresh()
    assert f"1 of {total} answered" in rater.part("begin").text
    rater.press(Keys.ENTER)
    assert rater.part("count").text == f"2 of {total}"

    # The rest by keys; the photo is seen in the identity question alone.
    for number, comparison in enumerate(study.comparisons[1:], start=2):
        assert rater.part("count").text == f"{number} of {total}"
        assert rater.part("question").text == study.questions[comparison.question]
        assert rater.part("reference").is_displayed() == (comparison.question == "identity")
        assert rater.part("prompt").is_displayed() == (comparison.question == "prompt")
        loaded = "return [...document.querySelectorAll('#choices img')].map(i => i.naturalWidth)"
        assert browser.execute_script(loaded) == [96] * 3
        rater.press(str(position(comparison, "ours", study)))

    assert rater.part("thanks").is_displayed()
    assert not rater.part("other").is_displayed()
    rater.part("save").click()
    saved = wait_for(tmp_path / "saved" / "answers.json")
    content = json.loads(saved.read_text())
    assert [one["comparison"] for one in content["answers"]] == [one.name for one in study.comparisons]
    assert all(one["milliseconds"] >= 250 for one in content["answers"])

    found = analyse_study(read_answer_files([saved]))
    assert (found.study, len(found.raters), dict(found.excluded)) == (study.name, 1, {})
    assert {name: one.answers for name, one in found.questions.items()} == {"prompt": 2, "identity": 2, "quality": 2}
    assert found.questions["identity"].shares["ours"].mean == 1
    assert found.questions["prompt"].shares["rival"].mean == 0.5

    # Somebody else at the same browser is another rater with no answers.
    rater.part("other").click()
    assert rater.part("begin").text == "I agree; begin"
    kept = json.loads(browser.execute_script(f"return localStorage.getItem('sefi-study-{study.name}')"))
    assert kept["answers"] == []
    assert kept["rater"] != content["rater"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}] == []


def test_the_policy_stops_any_request(browser, tmp_path):
    _, page = written(tmp_path)
    browser.get(page.as_uri())
    ask = "const done = arguments[0]; fetch('data:text/plain,x').then(() => done('sent'), () => done('stopped'))"
    assert browser.execute_async_script(ask) == "stopped"


def test_it_works_without_storage(browser, tmp_path):
    study, page = written(tmp_path)
    refuse = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } });"
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    browser.get(page.as_uri())
    rater = Rater(browser)
    rater.part("begin").click()
    rater.press("2")
    assert rater.part("count").text == f"2 of {len(study.comparisons)}"


def test_a_double_click_chooses_once(browser, tmp_path):
    study, page = written(tmp_path)
    browser.get(page.as_uri())
    rater = Rater(browser)
    rater.part("begin").click()
    time.sleep(LOOKING)
    twice = "for (const _ of [1, 2]) document.querySelector('#choices button').click()"
    browser.execute_script(twice)
    assert rater.part("count").text == f"2 of {len(study.comparisons)}"
