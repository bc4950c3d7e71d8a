"""A study's comparisons to one self-contained HTML page that asks them and saves the answers as a file."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from sefi.bench.study import Study
from sefi.report.page import data_uri, template


def study_page(study: Study, pictures: Mapping[str, Image.Image]) -> str:
    """Render a study.

    The letters' meaning is in the page's JSON block and comes back in the answers file; no visible text tells it.

    Args:
        study: What is asked.
        pictures: Every file that the study names, opened. They are embedded without their metadata.

    Returns:
        HTML that needs no other file, sends nothing and asks no server for anything. Its policy allows the one script
        in it by hash and data pictures, and nothing else. As large as its pictures.

    Raises:
        KeyError: A picture is missing.
    """
    script = template("study.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template("study.html.j2")).render(
        data=page_data(study, pictures),
        total=len(study.comparisons),
        minutes=max(1, round(len(study.comparisons) / 6)),  # ten seconds each
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def page_data(study: Study, pictures: Mapping[str, Image.Image]) -> dict[str, Any]:
    """What the page's script works on; pictures are numbered, so that no file name tells a way."""
    needed = sorted({file for one in study.comparisons for file in one.files})
    numbers = {file: number for number, file in enumerate(needed)}
    return {
        "schema": 1,
        "study": study.name,
        "questions": dict(study.questions),
        "comparisons": [
            {
                "name": one.name,
                "question": one.question,
                "prompt": one.prompt,
                "photos": [numbers[file] for file in one.photos],
                "shown": [{"code": shown.code, "picture": numbers[shown.file]} for shown in one.shown],
            }
            for one in study.comparisons
        ],
        "key": {"ways": dict(study.ways), "checks": study.checks},
        "pictures": [data_uri(pictures[file]) for file in needed],
    }
