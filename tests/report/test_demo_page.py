"""The demo page is one file that asks nobody for anything."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from sefi.report.pages import DemoContent, DemoPrompt, DemoVariant, encode_photo_uri, render_demo_page

EXAMPLES = [
    DemoPrompt("scene", "a photo of <ada> at the beach"),
    DemoPrompt("style", "a painting of <ada>"),
]


def image(shade):
    return Image.new("RGB", (7, 7), (shade, 0, 0))


def story(**changes):
    variants = [DemoVariant(name, "how", [image(1), image(2)]) for name in ("ours", "person")]
    values = {
        "name": "ada",
        "photo": image(3),
        "truth": {"hair": "red & curly"},
        "examples": EXAMPLES,
        "variants": variants,
        "attention": image(4),
        "attention_note": "It looks at the face.",
        "facts": {"seed": "0"},
        "commands": ["sefi demo"],
    }
    return DemoContent(**(values | changes))


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
    page = render_demo_page(story())
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) == 6
    assert all(address.startswith("data:image/png;base64,") for address in parser.found)
    assert not parser.open
    assert not re.search(r"https?://|@import|url\(|<script", page)


def test_images_are_there_at_once_and_move_nothing():
    images = re.findall(r"<img [^>]*>", render_demo_page(story()))
    assert not any("loading=" in image for image in images)  # a print would leave out what nobody scrolled to
    assert sum('width="7" height="7"' in image for image in images) == 5  # all but the photo at the top


def test_the_placeholder_is_marked_and_text_is_escaped():
    page = render_demo_page(story())
    assert "<mark>&lt;ada&gt;</mark> at the beach" in page
    assert "red &amp; curly" in page


def test_pages_follow_the_readers_light_and_width():
    page = render_demo_page(story())
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_images_survive():
    content = base64.b64decode(encode_photo_uri(image(5)).split(",")[1])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (5, 0, 0)


def test_a_variant_without_its_images_is_refused():
    with pytest.raises(ValueError, match="not one image per prompt: person"):
        render_demo_page(story(variants=[DemoVariant("person", "how", [image(1)])]))
