"""Content credentials are read back by the library of those who make them, and a changed image is found out."""

import contextlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

from sefi.cli.verify import format_signature
from sefi.core.errors import ConfigError, OutputError, PhotoError
from sefi.provenance import content_credentials
from sefi.provenance.content_credentials import (
    LOCAL_CERTIFICATE,
    LOCAL_KEY,
    Credentials,
    create_local_key,
    find_signing_key,
    get_local_key,
    make_manifest,
    read_credentials,
    read_signing_key,
    sign_content,
    sign_image,
)
from sefi.provenance.metadata import SOURCE_TYPE, make_png_text
from sefi.provenance.verify import verify_image

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


@pytest.fixture
def requests_of_a_server():
    """The paths that a server of this machine is asked for, after its address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/of-ada.c2pa", asked
        server.shutdown()


REMOTE_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="URL"/>'
    "</rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_address_of_a_manifest_elsewhere_is_not_asked(tmp_path, kind, requests_of_a_server):
    """Whoever made the image would learn when and where it is verified, and could let the program wait for ever."""
    address, asked = requests_of_a_server
    packet, text, path = REMOTE_XMP.replace("URL", address), PngInfo(), tmp_path / "a.image"
    text.add_itxt("XML:com.adobe.xmp", packet)
    extra = {"pnginfo": text} if kind == "PNG" else {"xmp": packet.encode()}
    Image.new("RGB", (64, 64), (200, 10, 10)).save(path, kind, **extra)
    found = verify_image(path)
    assert found.credentials == Credentials(present=True, remote=True)
    assert not found.is_marked
    assert format_signature(found) == "elsewhere, not fetched"
    assert asked == []


def sign_as_stranger(key, manifest):
    content, signed = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(content, "PNG")
    info = c2pa.C2paSignerInfo("es256", key.certificates.encode(), key.private_key.encode(), None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
        builder.sign(signer, "image/png", io.BytesIO(content.getvalue()), signed)
    return signed.getvalue()


@pytest.mark.parametrize("value", [["x", "y"], "hello", 7, {"actions": None}, {"actions": ["x"]}, {"actions": "x"}])
def test_any_assertion_of_strangers_is_read(key, value):
    manifest = make_manifest("1")
    manifest["assertions"].append({"label": "org.example.of_a_stranger", "data": value})
    expected = Credentials(True, True, False, "images of this machine", True)
    assert read_credentials(sign_as_stranger(key, manifest)) == expected


@pytest.mark.parametrize(
    "manifest",
    [None, [], "x", {"assertions": 3, "signature_info": []}, {"assertions": [None, 3, {"data": []}]},
     {"signature_info": {"common_name": ["x"]}}],
)  # fmt: skip
def test_a_manifest_of_any_shape_says_nothing_of_a_model(monkeypatch, tmp_path, key, manifest):
    content = sign_content(save(tmp_path / "a.png", "PNG").read_bytes(), key, "1.0")
    monkeypatch.setattr(c2pa.Reader, "get_active_manifest", lambda _: manifest)
    found = read_credentials(content)
    assert found.present
    assert not found.is_generated


@pytest.mark.parametrize("error", [KeyError("Active manifest not found"), ValueError("no JSON"), RecursionError()])
def test_a_manifest_that_the_library_cannot_give_is_damaged(monkeypatch, tmp_path, key, error):
    def fail(_):
        raise error

    content = sign_content(save(tmp_path / "a.png", "PNG").read_bytes(), key, "1.0")
    monkeypatch.setattr(c2pa.Reader, "get_active_manifest", fail)
    assert read_credentials(content) == Credentials(present=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(40))
def test_random_damage_of_a_signed_image_ends_typed(tmp_path, key, kind, seed):
    random = np.random.default_rng([seed, *kind.encode()])
    content = bytearray(sign_content(save(tmp_path / "a.image", kind).read_bytes(), key, "1"))
    for place in random.integers(12, len(content), 1 + int(random.integers(16))):
        content[place] = random.integers(256)
    with contextlib.suppress(PhotoError):
        assert isinstance(read_credentials(bytes(content)), Credentials)


def test_the_signature_of_another_image_is_no_mark(tmp_path, key):
    """Its words say "generated", but not of this image, as the program itself finds."""

    def list_chunks(content):
        place = 8
        while place < len(content):
            end = place + 12 + int.from_bytes(content[place : place + 4])
            yield content[place + 4 : place + 8], content[place:end]
            place = end

    photo = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 150, 120)).save(photo, "PNG")
    signed = sign_content(save(tmp_path / "a.png", "PNG").read_bytes(), key, "1")
    manifest = next(chunk for name, chunk in list_chunks(signed) if name == b"caBX")
    head, *rest = (chunk for _, chunk in list_chunks(photo.getvalue()))
    path = tmp_path / "photo.png"
    path.write_bytes(photo.getvalue()[:8] + head + manifest + b"".join(rest))
    found = verify_image(path)
    assert found.credentials.is_generated
    assert not found.credentials.valid
    assert not found.is_marked


def test_an_unsigned_image_has_none(tmp_path):
    assert read_credentials(save(tmp_path / "a.png", "PNG").read_bytes()) == Credentials(False)


def test_the_jpeg_of_many_phones_is_one(tmp_path, key):
    """An MPO file is a JPEG, and further images follow it."""
    path = tmp_path / "phone.jpg"
    first, second = (Image.fromarray(data.astronaut()[top : top + 131, :193]) for top in (0, 200))
    first.save(path, "MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.format == "MPO"
        before = np.asarray(image)
    assert verify_image(path).credentials == Credentials(False)
    sign_image(path, key, "1.0")
    assert verify_image(path).credentials == Credentials(True, True, False, "images of this machine", True)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), before)
        image.seek(1)
        assert image.size == second.size


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_with_an_error_of_ours(tmp_path, key, kind):
    path = tmp_path / "a.image"
    Image.fromarray(data.astronaut()[:40, :50]).save(path, kind)
    with pytest.raises(PhotoError):
        read_credentials(path.read_bytes())
    with pytest.raises(OutputError):
        sign_image(path, key, "1.0")


def write_key(folder, certificates, private_key):
    folder.mkdir()
    (folder / LOCAL_CERTIFICATE).write_text(certificates, encoding="ascii")
    if private_key is not None:
        (folder / LOCAL_KEY).write_text(private_key, encoding="ascii")


def make_keys():
    """Those that cannot sign, and why."""
    now = datetime.now(UTC)
    good, other, old = (create_local_key(now - timedelta(days=days)) for days in (0, 1, 366 * 5))
    early = create_local_key(now + timedelta(days=3))
    return {
        "has expired on": (old.certificates, old.private_key),
        "is not valid yet": (early.certificates, early.private_key),
        "do not belong together": (good.certificates, other.private_key),
        "private key is missing": (good.certificates, None),
        "private key is damaged": (good.certificates, good.private_key[:80]),
    }


def can_sign(key, path):
    save(path, "PNG")
    sign_image(path, key, "1.0")
    return read_credentials(path.read_bytes()).valid


def test_a_local_key_that_cannot_sign_any_more_is_replaced(tmp_path):
    for number, (why, (certificates, private_key)) in enumerate(make_keys().items()):
        folder, said = tmp_path / str(number), []
        write_key(folder, certificates, private_key)
        key = get_local_key(folder, said.append)
        assert len(said) == 1
        assert f"A new signing key was made in '{folder}'" in said[0]
        assert why in said[0]
        assert can_sign(key, tmp_path / "a.png"), why
        assert get_local_key(folder, said.append) == key
        assert len(said) == 1
        aside = {file.name.split(".pem.")[0]: file for file in folder.glob("*.replaced")}
        assert aside["signing-certificate"].read_text(encoding="ascii") == certificates
        assert ("signing-key" in aside) == (private_key is not None)
        assert all(f"'{file.name}'" in said[0] for file in aside.values())


def test_a_private_key_is_never_lost(tmp_path):
    """Somebody puts an authority's key there before its certificate, twice on a day."""
    (tmp_path / LOCAL_KEY).write_text("of an authority", encoding="ascii")
    said = []
    get_local_key(tmp_path, said.append)
    (tmp_path / LOCAL_CERTIFICATE).unlink()
    (tmp_path / LOCAL_KEY).write_text("of another", encoding="ascii")
    get_local_key(tmp_path, said.append)
    assert {file.read_text(encoding="ascii") for file in tmp_path.glob("*.replaced")} == {
        "of an authority",
        "of another",
    }
    assert ["a private key without a certificate" in one for one in said] == [True, True]


def test_a_key_that_cannot_be_read_is_named_and_stays(tmp_path, monkeypatch):
    key, read = get_local_key(tmp_path), content_credentials.read_bytes

    def refuse_key(path, most):
        if path.name == LOCAL_KEY:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(content_credentials, "read_bytes", refuse_key)
        with pytest.raises(ConfigError, match=f"{LOCAL_KEY}' cannot be read: Permission denied"):
            get_local_key(tmp_path)
    assert get_local_key(tmp_path) == key


def test_somebody_elses_certificate_is_not_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "settings"
    with monkeypatch.context() as patch:
        patch.setattr(content_credentials, "LOCAL_ISSUER", "An Authority")
        old, good = (create_local_key(datetime.now(UTC) - timedelta(days=days)) for days in (366 * 5, 0))
    write_key(folder, old.certificates, old.private_key)
    with pytest.raises(ConfigError, match="has expired on") as caught:
        get_local_key(folder)
    assert "Move" in caught.value.remedy
    assert (folder / LOCAL_CERTIFICATE).read_text(encoding="ascii") == old.certificates
    write_key(tmp_path / "good", good.certificates, good.private_key)
    assert get_local_key(tmp_path / "good") == good
    (folder / LOCAL_CERTIFICATE).write_text("hello", encoding="ascii")
    with pytest.raises(ConfigError, match="is no certificate"):
        get_local_key(folder)


def test_two_runs_at_once_make_one_key(tmp_path, monkeypatch):
    whole = content_credentials.create_local_key

    def create_slowly(today):
        made = whole(today)
        time.sleep(0.05)
        return made

    monkeypatch.setattr(content_credentials, "create_local_key", create_slowly)
    with ThreadPoolExecutor(4) as pool:
        keys = set(pool.map(get_local_key, [tmp_path / "settings"] * 4))
    assert keys == {read_signing_key(tmp_path / "settings" / LOCAL_CERTIFICATE, tmp_path / "settings" / LOCAL_KEY)}


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
