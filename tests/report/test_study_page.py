"""The study's page asks nobody for anything, runs one known script, and shows no variant's name."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sefi.report.pages import render_study_page
from sefi.user_study.study import PHOTO, Choice, Study, StudyComparison

VARIANTS = {"A": "secret-rival", "B": "secret-ours"}
FILES = ("pictures/ada--secret-ours.png", "pictures/ada--secret-rival.png", "photos/ada.png")
SEFI, RIVAL = Choice("B", FILES[0]), Choice("A", FILES[1])


def study():
    comparisons = (
        StudyComparison("prompt-1", "prompt", 'a "photo" </script><b>of</b> person', (), (SEFI, RIVAL)),
        StudyComparison("identity-1", "identity", None, FILES[2:], (RIVAL, Choice(PHOTO, FILES[2])), PHOTO),
        StudyComparison("quality-1", "quality", None, (), (RIVAL, SEFI)),
    )
    questions = {"prompt": "Which matches?", "identity": "Which shows?", "quality": "Which looks?"}
    return Study("0123456789ab", questions, VARIANTS, comparisons)


def images():
    return {file: Image.new("RGB", (7, 5), (shade, 0, 0)) for shade, file in enumerate(FILES)}


class Page(HTMLParser):
    """Addresses, event attributes, visible text, scripts, and whether tags close."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.handlers, self.text, self.open, self.policy = [], [], "", [], ""
        self.scripts = {"": "", "application/json": ""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        self.handlers += [name for name in values if name.startswith("on")]
        self.policy += values["content"] if values.get("http-equiv") == "Content-Security-Policy" else ""
        if tag not in {"meta", "img", "br"}:
            self.open.append((tag, values.get("type", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, kind = self.open[-1] if self.open else ("", "")
        if tag == "script":
            self.scripts[kind] += data
        elif tag != "style":
            self.text += data


@pytest.fixture(scope="module")
def text():
    return render_study_page(study(), images())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_loaded_from_anywhere_and_nothing_is_sent(text, page):
    assert page.addresses == []
    assert not page.open
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|\bfetch\b|XMLHttpRequest|sendBeacon|WebSocket", text.replace("// ", "")
    )


def test_the_policy_allows_this_script_by_hash_and_nothing_else(page):
    digest = base64.b64encode(hashlib.sha256(page.scripts[""].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.handlers == []


def test_no_visible_text_and_no_file_name_reveals_a_variant(text, page):
    assert "secret" not in page.text
    data = json.loads(page.scripts["application/json"])
    assert data["key"]["variants"] == VARIANTS
    assert text.count("secret") == len(VARIANTS)


def test_the_script_finds_everything_that_is_asked(page):
    data = json.loads(page.scripts["application/json"])
    assert (data["schema"], data["study"], len(data["pictures"])) == (1, "0123456789ab", 3)
    assert data["key"]["checks"] == {"identity-1": PHOTO}
    assert data["key"]["comparisons"] == [one["name"] for one in data["comparisons"]]
    first, second, third = data["comparisons"]
    assert first["prompt"] == 'a "photo" </script><b>of</b> person'
    assert second["photos"] == [second["shown"][1]["picture"]]
    assert [s["code"] for s in third["shown"]] == ["A", "B"]
    red = [base64.b64decode(data["pictures"][s["picture"]].split(",")[1]) for s in third["shown"]]
    assert red[0] != red[1]


def test_every_part_that_the_script_names_is_there(text, page):
    named = set(re.findall(r'part\("([\w-]+)"\)', page.scripts[""]))
    assert len(named) > 15
    assert named | {"welcome", "asking", "thanks", "study"} <= set(re.findall(r'id="([\w-]+)"', text))


def test_the_consent_stands_first_and_says_what_is_stored(page):
    assert page.text.index("What is stored") < page.text.index("Back")
    assert "Nothing is sent" in page.text
    assert "There are 3 such choices, about\n  1\xa0minute" in page.text


def test_metadata_of_an_image_are_not_passed_on(tmp_path):
    some, info = images(), PngInfo()
    info.add_text("Comment", "by secret-ours")
    some[FILES[0]].save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as image:
        some[FILES[0]] = image.convert("RGB")
    data = json.loads(Page(render_study_page(study(), some)).scripts["application/json"])
    assert not any(b"secret" in base64.b64decode(one.split(",")[1]) for one in data["pictures"])


def test_the_page_follows_the_readers_light_width_and_wish_for_calm(text):
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "prefers-reduced-motion" in text


def test_a_missing_image_is_an_error():
    with pytest.raises(KeyError, match="photos/ada"):
        render_study_page(study(), {file: one for file, one in images().items() if file != FILES[2]})
