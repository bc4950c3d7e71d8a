"""What explains a result is recorded, without a word on whose machine it was made."""

import getpass
import hashlib
import json
import platform
import socket
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sefi.provenance.run_record import (
    CropRecord,
    InitRecord,
    RunRecord,
    collect_versions,
    compute_file_digest,
    hash_input_files,
    record_image,
    shorten_source,
)

DIGEST = "0123456789abcdef" * 4


def make_record():
    return RunRecord.describe_machine("learn", "cpu", "torch.float32").add(
        crops=[CropRecord(left=3, top=5, side=7)], init=InitRecord(name="ada", tokens=DIGEST), seed=11
    )


def test_versions_are_those_of_the_stack():
    found = collect_versions()
    assert set(found) == {"sefi", "python", "torch", "diffusers", "transformers", "numpy", "pillow", "opencv"}
    assert found["sefi"] == version("sefi")
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["pillow"] == version("pillow")


def test_device_dtype_and_threads_are_those_of_the_process():
    record = make_record()
    assert (record.device, record.dtype, record.threads) == ("cpu", "float32", torch.get_num_threads())
    assert record.platform.startswith(platform.system())
    assert torch.backends.cpu.get_cpu_capability() in record.device_name


def test_a_record_survives_json():
    record = make_record()
    assert RunRecord.model_validate_json(json.dumps(record.dump())) == record
    assert "identities" not in record.dump()


@pytest.mark.parametrize(
    "change", [{"colour": 1}, {"schema_version": 2}, {"kind": "dance"}, {"identities": {"ada": "00"}}, {"threads": -1}]
)
def test_what_no_version_wrote_is_refused(change):
    with pytest.raises(ValidationError):
        RunRecord.model_validate(make_record().dump() | change)


def test_no_name_of_a_user_or_a_machine_is_recorded(monkeypatch):
    """With names that are part of no other word, as that of a machine called "linux" would be."""
    user, machine = "quillon", "vexworth-7"
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, user)
    monkeypatch.setenv("HOME", f"/home/{user}")
    system = platform.uname()
    named = platform.uname_result(system.system, machine, system.release, system.version, system.machine)
    monkeypatch.setattr(platform, "uname", lambda: named)
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    assert (getpass.getuser(), platform.node(), socket.gethostname()) == (user, machine, machine)
    text = json.dumps(make_record().dump())
    assert system.system in text
    assert not [name for name in (user, machine, "/home", "/root") if name in text]


def test_a_source_is_named_without_its_place(tmp_path, monkeypatch):
    (tmp_path / "own" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shorten_source(str(tmp_path / "own" / "model")) == "model"
    assert shorten_source("own/model") == "model"  # a folder that looks like a hub id
    assert shorten_source("./elsewhere/model.safetensors") == "model.safetensors"
    assert shorten_source("owner/name") == "owner/name"
    assert shorten_source("tiny-portraits") == "tiny-portraits"


def test_hashes_are_those_of_file_and_pixels(tmp_path):
    pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    found = record_image(path.name, path.read_bytes())
    assert found.file == "a.png"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == compute_file_digest(path)
    assert found.pixels_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert hash_input_files({"a": path, "none": None, "folder": tmp_path}) == {"a": found.sha256}


def test_reading_a_record_imports_no_torch():
    code = "import sys; import sefi.provenance.run_record; assert not {'torch', 'cv2', 'PIL.Image'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
