"""The demo page is one file that asks nobody for anything."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from sefi.report.page import DemoStory, Example, Variant, data_uri, demo_page

EXAMPLES = [
    Example("scene", "a photo of <ada> at the beach"),
    Example("style", "a painting of <ada>"),
]


def picture(shade):
    return Image.new("RGB", (7, 7), (shade, 0, 0))


def story(**changes):
    variants = [Variant(name, "how", [picture(1), picture(2)]) for name in ("ours", "person")]
    values = {
        "name": "ada",
        "photo": picture(3),
        "truth": {"hair": "red & curly"},
        "examples": EXAMPLES,
        "variants": variants,
        "attention": picture(4),
        "attention_note": "It looks at the face.",
        "facts": {"seed": "0"},
        "commands": ["sefi demo"],
    }
    return DemoStory(**(values | changes))


class Addresses(HTMLParser):
    """Collects every address a browser would load, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_loaded_from_anywhere():
    page = demo_page(story())
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) == 6
    assert all(address.startswith("data:image/png;base64,") for address in parser.found)
    assert not parser.open
    assert not re.search(r"https?://|@import|url\(|<script", page)


def test_images_are_there_at_once_and_move_nothing():
    images = re.findall(r"<img [^>]*>", demo_page(story()))
    assert not any("loading=" in image for image in images)  # a print would leave out what nobody scrolled to
    assert sum('width="7" height="7"' in image for image in images) == 5  # all but the photo at the top


def test_the_placeholder_is_marked_and_text_is_escaped():
    page = demo_page(story())
    assert "<mark>&lt;ada&gt;</mark> at the beach" in page
    assert "red &amp; curly" in page


def test_pages_follow_the_readers_light_and_width():
    page = demo_page(story())
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_images_survive():
    content = base64.b64decode(data_uri(picture(5)).split(",")[1])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (5, 0, 0)


def test_a_variant_without_its_images_is_refused():
    with pytest.raises(ValueError, match="not one image per prompt: person"):
        demo_page(story(variants=[Variant("person", "how", [picture(1)])]))
