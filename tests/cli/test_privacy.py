"""Nothing of a photo but what it shows leaves it: no EXIF, place or owner; and no face recogniser's vector is saved."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent
from PIL import Image
from safetensors.numpy import load_file, save_file
from tests.suites import SUITE
from typer.testing import CliRunner

from sefi.backbone.open import open_backbone
from sefi.cli.app import app
from sefi.core.errors import BackboneError, IdentityError
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS, SurestFace
from sefi.identity.file import Identity
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person

OWNER, PLACE, SERIAL = "Quillon Vexworth", (47.123457, 8.765431), "SN-90817263"
# The same of one person, with the photo's own row.
PERSON_SUITE = (
    SUITE.replace("Dogs, so that no face is needed.", "One person.").replace('kind = "dog"', 'kind = "person"')
    + """
[[variants]]
label = "photo"
control = "photo"
"""
)
FAMILIAR = 0.999  # the cosine of two vectors that are the same, however they are rounded


def save_with_metadata(image, path):
    """Save a photo as a telephone does: with its owner, its camera's number, its place, and a comment."""
    exif, degrees = Image.Exif(), [Fraction(str(number)) for number in PLACE]
    exif[0x013B] = exif[0x8298] = exif[0x010E] = OWNER  # artist, copyright, description
    exif.get_ifd(0x8769).update({0xA431: SERIAL, 0x9286: b"ASCII\0\0\0" + OWNER.encode()})
    place = {1: "N", 2: (degrees[0], 0, 0), 3: "E", 4: (degrees[1], 0, 0), 29: "2026:01:02"}
    exif.get_ifd(0x8825).update(place)
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><creator>{OWNER}</creator></x:xmpmeta>'.encode()
    image.save(path, "JPEG", quality=95, exif=exif, xmp=xmp, comment=OWNER.encode())


def list_secrets(photo):
    """Return what must stay in the photo: its words in two encodings, its place as EXIF has it, all of its EXIF."""
    with Image.open(photo) as image:
        whole = image.info["exif"]
    texts = [OWNER, SERIAL, *(str(number) for number in PLACE)]
    secrets = [text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")]
    # Four bytes alone are somewhere in megabytes of compressed pixels, by chance.
    numbers = [Fraction(str(number)).as_integer_ratio() for number in PLACE]
    secrets += [b"".join(part.to_bytes(4, order) for part in one) for one in numbers for order in ("little", "big")]
    assert sum(secret in photo.read_bytes() for secret in secrets) >= 4  # else nothing would be searched for
    return [*secrets, whole[20:60]]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A drawn person's photo, with everything that a telephone adds to it."""
    path = tmp_path_factory.mktemp("people") / "ada.jpg"
    save_with_metadata(Image.fromarray(draw(make_portrait(make_test_person(3), 3, 0), 192)), path)
    return path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def call(*words):
    found = run(*words)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def outputs(photo, tmp_path_factory):
    """Everything that is made of the photo, as a folder; what was printed is in it too."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        make_outputs(photo, out)
    return out


def make_outputs(photo, out):
    """Run the commands in a folder."""
    few = ("--steps", 2, "--json")
    said = [call("learn", photo, "--name", "ada", *few, "--show-crop", "crop.png")]
    said += [call("learn", photo, "--name", "eve", "--method", "fastcomposer", "--json")]
    ada = ("-i", "ada.safetensors")
    said += [call("generate", "a photo of <ada>", *ada, *few, "--init-image", photo, "--out", "images")]
    said += [call("attend", "a photo of <ada>", *ada, *few)]
    said += [call("export", "ada.safetensors", "--to", "a1111")]
    (out / "suite.toml").write_text(PERSON_SUITE)
    said += [call("bench", "run", "suite.toml", "--photos", photo.parent, "--out", "run")]
    said += [call("bench", "report", "run"), call("bench", "publish", "run", "--out", "card")]
    score = ("score", "run/pictures", "--subject", photo, "--only", "--drawings", "--tau", "0.3")
    run(*score, "--far-threshold", "0.6", "--out", "scored")  # the folder's names may not fit; what it writes counts
    (out / "said.txt").write_text("\n".join(said))


def list_vectors(path, length):
    """Yield every row of so many numbers in a file: of tensors, and of lists in JSON."""
    if path.suffix == ".safetensors":
        for tensor in load_file(path).values():
            if tensor.ndim and tensor.shape[-1] == length:
                yield from tensor.astype(np.float64).reshape(-1, length)
    if path.suffix == ".json":
        yield from list_json_vectors(json.loads(path.read_bytes()), length)
    if path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            yield from list_json_vectors(json.loads(line), length)


def list_json_vectors(value, length):
    """Yield the lists of so many numbers in a value of JSON, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if len(value) == length and all(isinstance(one, (int, float)) for one in value):
            yield np.asarray(value, np.float64)
        for inner in value:
            yield from list_json_vectors(inner, length)


def find_embeddings(folder, embeddings):
    """Return the files that hold one of some vectors, as bytes of any float type or as rows of numbers."""
    found = set()
    for path in (one for one in folder.rglob("*") if one.is_file()):
        content = path.read_bytes()
        forms = [one.astype(kind).tobytes()[:32] for one in embeddings for kind in (np.float16, np.float32, np.float64)]
        if any(form in content for form in forms):
            found.add(path.name)
        for row in list_vectors(path, len(embeddings[0])):
            norm = np.linalg.norm(row) or 1.0
            if max(float(row @ one) / norm for one in embeddings) > FAMILIAR:
                found.add(path.name)
    return found


def check_folder_for_secrets(outputs, photo):
    """Check every file; return the number of images."""
    secrets, seen = list_secrets(photo), 0
    for path in (one for one in outputs.rglob("*") if one.is_file()):
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path
        if path.suffix == ".png":
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert not dict(image.getexif())
                assert "exif" not in image.info
            seen += 1
    return seen


@pytest.mark.slow
def test_nothing_of_the_photo_but_what_it_shows_leaves_it(outputs, photo):
    assert check_folder_for_secrets(outputs, photo) > 6


def test_neither_learning_nor_generating_copies_metadata(photo, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--model", model_folder, "--steps", 1, "--json")
    words = ("--name", "ada", "--any-style", "--show-crop", "crop.png", "--box", "10,10,90,90")
    said = call("learn", photo, *few, *words, "--consent", "by=J; for=self; scope=x")
    said += call("generate", "<ada>", "-i", "ada.safetensors", *few, "--init-image", photo, "--strength", 1)
    (tmp_path / "said.txt").write_text(said)
    assert check_folder_for_secrets(tmp_path, photo) == 3


@pytest.mark.slow
def test_no_vector_of_the_face_recogniser_is_saved(outputs, photo):
    recognise = SurestFace.load(EMBEDDED_EVALUATORS)
    images = [photo, *outputs.rglob("*.png")]
    vectors = [recognise(np.asarray(Image.open(one).convert("RGB"))) for one in images]
    known = [one for one in vectors if one is not None]
    assert known
    assert not find_embeddings(outputs, known)
    # The search finds what is planted: as bytes, in a tensor of other numbers, and rounded in JSON.
    (outputs / "a.bin").write_bytes(b"1" + known[0].tobytes())
    save_file({"x": np.stack([known[0] * 2, known[0]]).astype(np.float16)}, outputs / "b.safetensors")
    (outputs / "c.json").write_text(json.dumps({"x": [[round(float(one), 4) for one in known[-1]]]}))
    assert find_embeddings(outputs, known) == {"a.bin", "b.safetensors", "c.json"}


def test_no_server_is_asked_for_what_may_be_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none.json"))
    monkeypatch.setattr(_detect_agent, "_registry", None)  # a connection would fail the test: tests/blocked
    with pytest.raises(BackboneError, match="neither a local path nor in the local model cache"):
        open_backbone("nobody/nothing")
    with pytest.raises(IdentityError):
        Identity.from_pretrained("nobody/nothing")
