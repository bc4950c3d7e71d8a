"""A user's script sees the types of the package (`py.typed`): pyright as a user runs it, in strict mode."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sefi

SCRIPT = """
import sefi
from sefi import learn

backbone = sefi.open_backbone("tiny-portraits")
ada = sefi.learn("portrait.png", name="ada", backbone=backbone)
images = sefi.generate("a photo of <ada>", [ada], backbone=backbone)
reveal_type(sefi.open_backbone)
reveal_type(sefi.learn)
reveal_type(sefi.generate)
reveal_type(learn)
reveal_type(backbone)
reveal_type(ada)
reveal_type(images[0].pixels)
reveal_type(sefi.PRESETS)
sefi.learn(3, name="ada")
"""


def check_types(folder):
    """Return what pyright says about the script in a folder with a copy of the package."""
    shutil.copytree(Path(sefi.__file__).parent, folder / "site" / "sefi", ignore=shutil.ignore_patterns("models"))
    (folder / "script.py").write_text(SCRIPT)
    settings = {"include": ["script.py"], "extraPaths": ["site"], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["generalDiagnostics"]


@pytest.mark.slow
def test_a_script_of_a_user_sees_real_types(tmp_path):
    found = check_types(tmp_path)
    types = [each["message"] for each in found if each["severity"] == "information"]
    assert len(types) == SCRIPT.count("reveal_type")
    # An array of any shape is `ndarray[tuple[Any, ...], ...]` in numpy's own words.
    unknown = re.compile(r"Unknown|Module\(|(?<!ndarray\[tuple\[)Any")
    assert not [text for text in types if unknown.search(text)]
    ends = ["-> Backbone", "-> Identity", "-> list[GeneratedImage]", "-> Identity"]
    ends += ["Backbone", "Identity", "Image", "Mapping[str, Config]"]
    for text, end in zip(types, ends, strict=True):
        assert text.endswith(f'{end}"'), text
    (wrong,) = [each for each in found if each["severity"] == "error"]
    assert wrong["rule"] == "reportArgumentType"
    assert wrong["range"]["start"]["line"] == len(SCRIPT.splitlines()) - 1
