"""A contact sheet keeps every image in its row and column."""

import pytest
from PIL import Image

from sefi.report.contact_sheet import SheetRow, draw_contact_sheet, fit_image, measure_height

RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(colour):
    return Image.new("RGB", (13, 13), colour)


def colours_found(page):
    return {colour for _, colour in page.getcolors(maxcolors=page.width * page.height)}


def test_each_image_lands_in_its_cell():
    rows = [SheetRow("", [square(RED), None]), SheetRow("", [None, square(BLUE)])]
    page = draw_contact_sheet(rows, cell=40)
    upper, lower = page.crop((0, 0, page.width, 50)), page.crop((0, 50, page.width, page.height))
    assert RED in colours_found(upper.crop((0, 0, 50, 50)))
    assert BLUE not in colours_found(upper)
    assert BLUE in colours_found(lower.crop((50, 0, page.width, lower.height)))


def test_titles_and_labels_make_room_for_themselves():
    plain = draw_contact_sheet([SheetRow("", [square(RED)])], cell=40)
    titled = draw_contact_sheet([SheetRow("ours", [square(RED)])], ["a photo of <ada> at the beach"], cell=40)
    assert titled.width > plain.width
    assert titled.height > plain.height


def test_an_image_keeps_its_shape():
    assert fit_image(Image.new("RGB", (26, 13)), 40).size == (40, 20)


def test_more_images_than_titles_are_refused():
    with pytest.raises(ValueError, match="2 images"):
        draw_contact_sheet([SheetRow("", [square(RED)] * 2)], ["only one"])


def test_a_sheet_without_images_is_refused():
    with pytest.raises(ValueError, match="0 images"):
        draw_contact_sheet([])


def test_no_titles_need_no_height():
    from PIL import ImageFont

    assert measure_height(["", ""], ImageFont.load_default(12)) == 0
