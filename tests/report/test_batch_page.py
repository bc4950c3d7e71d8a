"""The page of a batch has the package's style as it is, and everything that others wrote as text."""

import re
from importlib.resources import files

import pytest
from PIL import Image

from sefi.report.pages import BatchContent, BatchEntry, read_template, render_batch_page

FONT = 'font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;'
HOSTILE = '</style><script>alert("1")</script>'
TEMPLATES = sorted(one.name for one in files("sefi.report").joinpath("templates").iterdir() if ".j2" in one.name)


@pytest.fixture
def page():
    entry = BatchEntry("ada", Image.new("RGB", (7, 7)), {"seed": HOSTILE}, [HOSTILE], "a" * 64)
    return render_batch_page(BatchContent([entry], [(HOSTILE,) * 4], {HOSTILE: HOSTILE}))


def test_the_style_sheet_is_the_packages_own_to_the_letter(page):
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert FONT in style
    assert read_template("style.css.j2").rstrip("\n") in style
    assert "&#34;" not in style


def test_text_of_others_is_text(page):
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert page.count("&lt;/style&gt;&lt;script&gt;") == 8


def test_the_font_of_every_page_is_one_that_browsers_read():
    whole = {
        name
        for name in TEMPLATES
        if FONT in read_template(name) or '{% include "style.css.j2" %}' in read_template(name)
    }
    assert whole == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_styles_and_scripts_of_templates_hold_nothing_that_is_escaped_as_html(name):
    """There a browser reads `&#34;` as it stands, so that numbers, JSON and our own script alone may be filled in."""
    text = read_template(name)
    blocks = [text] if name.startswith("style.") else re.findall(r"<(?:style|script)\b[^>]*>(.*?)</", text, re.DOTALL)
    filled = [found for block in blocks for found in re.findall(r"\{\{(.*?)\}\}", block)]
    assert all(re.search(r"\|\s*(length|tojson)\s*$|^ script \| safe $", one) for one in filled), filled
