"""Content credentials are read back by the library of those who make them, and a changed image is found out."""

import io
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from skimage import data

from sefi.core.errors import ConfigError, OutputError
from sefi.provenance.content_credentials import (
    Credentials,
    create_local_key,
    find_signing_key,
    get_local_key,
    read_credentials,
    read_signing_key,
    sign_image,
)
from sefi.provenance.metadata import SOURCE_TYPE, make_png_text

c2pa = pytest.importorskip("c2pa")
KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@pytest.fixture(scope="module")
def key():
    return create_local_key(datetime.now(UTC))


def save(path, kind):
    Image.fromarray(data.astronaut()[:131, :193]).save(path, kind, pnginfo=make_png_text(None, "1.0"))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_image_says_that_a_model_made_it(tmp_path, key, kind):
    path = save(tmp_path / "a.image", kind)
    with Image.open(path) as image:
        before = np.asarray(image.convert("RGB"))
    sign_image(path, key, "1.2.3")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), before)
    found = read_credentials(path.read_bytes())
    assert found == Credentials(True, True, False, "images of this machine", True)
    with c2pa.Reader(KINDS[kind], io.BytesIO(path.read_bytes())) as reader:
        manifest = reader.get_active_manifest()
    actions = next(one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert actions[0]["digitalSourceType"] == SOURCE_TYPE
    assert actions[0]["action"] == "c2pa.created"
    assert manifest["claim_generator_info"][0]["version"] == "1.2.3"
    assert "thumbnail" not in manifest


def test_a_changed_image_is_not_valid(tmp_path, key):
    path = save(tmp_path / "a.jpg", "JPEG")
    sign_image(path, key, "1.0")
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    found = read_credentials(bytes(content))
    assert found.present
    assert not found.valid


def test_an_unsigned_image_has_none(tmp_path):
    assert read_credentials(save(tmp_path / "a.png", "PNG").read_bytes()) == Credentials(False)


def test_the_key_of_a_machine_is_made_once(tmp_path, monkeypatch):
    monkeypatch.delenv("SEFI_C2PA_KEY", raising=False)
    monkeypatch.delenv("SEFI_C2PA_CERTIFICATE", raising=False)
    first = get_local_key(tmp_path / "settings")
    assert find_signing_key(tmp_path / "settings") == first
    assert [one.stat().st_mode & 0o777 for one in sorted((tmp_path / "settings").iterdir())] == [0o600, 0o600]
    monkeypatch.setenv("SEFI_C2PA_KEY", "key.pem")
    with pytest.raises(ConfigError, match="belong together"):
        find_signing_key(tmp_path)


def test_what_is_no_key_or_no_image_is_refused(tmp_path, key):
    (tmp_path / "a.pem").write_text("hello", encoding="ascii")
    with pytest.raises(ConfigError, match="no PEM"):
        read_signing_key(tmp_path / "a.pem", tmp_path / "a.pem")
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(OutputError):
        sign_image(tmp_path / "a.png", key, "1.0")
    path = save(tmp_path / "b.png", "PNG")
    before = path.read_bytes()
    wrong = type(key)(key.certificates, create_local_key(datetime.now(UTC)).private_key[:80])
    with pytest.raises(ConfigError, match="cannot be signed"):
        sign_image(path, wrong, "1.0")
    assert path.read_bytes() == before
