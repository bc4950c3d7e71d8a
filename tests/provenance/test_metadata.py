"""Words in a file: IPTC's source type by Pillow's own reader, and parameters as AUTOMATIC1111's readers parse them."""

import io
import re

import pytest
from PIL import Image

from sefi.provenance.metadata import (
    PARAMETERS_KEY,
    SOURCE_TYPE,
    XMP_KEY,
    ImageRecord,
    format_parameters,
    make_png_text,
    read_source_type,
)

RECORD = ImageRecord(
    "a photo of <ada>, smiling: at the beach",
    seed=3,
    size=(64, 48),
    negative_prompt="blurry",
    settings={"scheduler": "dpm++_karras", "steps": 20, "guidance_scale": 7.5, "note": 'a, "b"'},
    model="sd1:768:0123",
    identities=("ab" * 32,),
    version="0.1.0",
)
# One entry of the last line, as AUTOMATIC1111 reads it: a quoted or a plain value.
ENTRY = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def save(record=RECORD):
    content = io.BytesIO()
    Image.new("RGB", (64, 48)).save(content, "PNG", pnginfo=make_png_text(record, "0.1.0"))
    content.seek(0)
    image = Image.open(content)
    image.load()
    return image


@pytest.mark.parametrize("record", [RECORD, None])
def test_every_image_says_that_a_model_made_it(record):
    image = save(record)
    assert read_source_type(image) == SOURCE_TYPE
    description = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    assert description["DigitalSourceType"] == SOURCE_TYPE
    assert (PARAMETERS_KEY in image.info) == (record is not None)


def test_parameters_are_read_as_automatic1111_does():
    prompt, negative, line = save().info[PARAMETERS_KEY].split("\n")
    assert prompt == "a photo of <subject>, smiling: at the beach"
    assert negative == "Negative prompt: blurry"
    entries = dict(ENTRY.findall(line))
    assert entries["Steps"] == "20"
    assert entries["Sampler"] == "DPM++ 2M Karras"
    assert entries["CFG scale"] == "7.5"
    assert entries["Seed"] == "3"
    assert entries["Size"] == "64x48"
    assert entries["Model"] == '"sd1:768:0123"'
    assert entries["Version"] == "sefi 0.1.0"


def test_names_are_said_only_when_asked_for():
    assert "ada" not in format_parameters(RECORD)
    named = ImageRecord("a photo of <ada>", seed=1, size=(8, 8), names=True)
    assert format_parameters(named).startswith("a photo of <ada>\n")


@pytest.mark.parametrize("packet", [
    "", "no xml", "<a>", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "<a/>" + " " * (1 << 21), b"\xff\xfe",
])  # fmt: skip
def test_other_packets_say_nothing(packet):
    image = Image.new("RGB", (2, 2))
    image.info[XMP_KEY] = packet
    assert read_source_type(image) is None


def test_the_source_type_as_an_element():
    image = Image.new("RGB", (2, 2))
    image.info["xmp"] = (
        b'<x xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><i:DigitalSourceType>made</i:DigitalSourceType></x>'
    )
    assert read_source_type(image) == "made"
