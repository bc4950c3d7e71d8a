"""Of a command with several identities, forgetting one leaves the images that show somebody else alone."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from tests.cli.conftest import list_names

from sefi.api import list_shown_digests
from sefi.core.errors import OutputError
from sefi.identity.file import Identity
from sefi.provenance.forget import list_traces, read_sought_identity
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import encode_photo, read_named_identities


@pytest.fixture
def work(home, ada):
    """A folder with two identities of different tokens."""
    shutil.copy(ada, "ada.safetensors")
    known = Identity.load(ada)
    tokens = known.tokens + torch.linspace(-0.1, 0.1, known.tokens.numel()).view_as(known.tokens)
    Identity({"tokens": tokens}, known.header.model_copy(update={"name": "bob"})).save("bob.safetensors")
    return home / "work"


def generate(sefi, model_folder, *prompts):
    """Generate with both identities; return the file of each prompt, and that of all of them."""
    both = ("-i", "ada.safetensors", "-i", "bob.safetensors")
    found = sefi("generate", *prompts, *both, "--model", model_folder, "--steps", 2, "--out", "pics", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    return {one["prompt"]: one["file"] for one in answer["images"]} | {"grid": answer["grid"]}


@pytest.mark.slow
def test_images_of_somebody_else_and_their_record_stay(work, sefi, forget, model_folder):
    prompts = ["a photo of <ada>", "a photo of <bob>", "<ada> with <bob>", "a dog"]
    files = generate(sefi, model_folder, *prompts)
    short = {name: compute_file_digest(work / f"{name}.safetensors")[:16] for name in ("ada", "bob")}
    named = {prompt: read_named_identities(work / file) for prompt, file in files.items()}
    assert named == {
        "a photo of <ada>": {short["ada"]},
        "a photo of <bob>": {short["bob"]},
        "<ada> with <bob>": set(short.values()),
        "a dog": set(),
        "grid": set(short.values()),
    }
    rest = {file: (work / file).read_bytes() for file in (files["a photo of <bob>"], files["a dog"])}

    answer = forget("ada")
    assert (answer["left"], answer["unproven"]) == ([], [])
    assert {f"pics/{name}" for name in list_names(work / "pics")} == {"pics/records.json", *rest}
    assert {file: (work / file).read_bytes() for file in rest} == rest
    text = (work / "pics" / "records.json").read_text()
    (run,) = json.loads(text)["runs"]
    assert "ada" not in re.sub(r"\b[0-9a-f]{16,64}\b", "", text), "but in hexadecimal numbers, by chance"
    assert [one["prompt"] for one in run["images"]] == ["a photo of <bob>", "a dog"]
    assert (list(run["run"]["identities"]), run["identities"], run["grid"]) == (["bob"], ["bob.safetensors"], None)
    assert [f"pics/{one['file']}" for one in run["run"]["images"]] == list(rest)

    forget("bob")
    assert list_names(work / "pics") == [files["a dog"].removeprefix("pics/"), "records.json"]


def test_an_image_names_whom_it_shows():
    digests = {"ada": "a" * 64, "bob": "b" * 64}
    assert list_shown_digests("sefi", digests, "(<bob>:1.2) at the beach") == ["b" * 64]
    assert list_shown_digests("sefi", digests, "a dog") == []
    assert list_shown_digests("dreambooth", digests, "a dog") == ["a" * 64, "b" * 64]


def write_earlier_images(work, method):
    """Write images as earlier versions did, which name both identities, and their record; return both SHA-256."""
    digests = {name: compute_file_digest(work / f"{name}.safetensors") for name in ("ada", "bob")}
    folder = work / "pics"
    folder.mkdir()
    prompts = {"one.png": "a photo of <ada>", "two.png": "a photo of <bob>"}
    for number, name in enumerate([*prompts, "grid.png"]):
        encode_photo(Image.new("RGB", (19, 23), (number, 5, 7)), list(digests.values())).write(folder / name)
    images = [{"file": name, "sha256": compute_file_digest(folder / name)} for name in [*prompts, "grid.png"]]
    record = {"kind": "generate", "identities": digests, "images": images, "settings": {"method": method}}
    entries = [{"file": name, "prompt": prompt} for name, prompt in prompts.items()]
    run = {"images": entries, "grid": "grid.png", "identities": ["ada.safetensors", "bob.safetensors"], "run": record}
    (folder / "records.json").write_text(json.dumps({"schema_version": 2, "runs": [run]}))
    return digests


@pytest.mark.parametrize(
    ("method", "left"),
    [
        ("sefi", ["records.json", "two.png"]),
        ("textual-inversion", ["records.json", "two.png"]),
        ("dreambooth", []),  # the model itself was changed, for all images
        ("of-no-package", []),
    ],
)
def test_images_of_earlier_versions_are_whose_their_record_says(work, forget, method, left):
    write_earlier_images(work, method)
    shutil.copy(work / "pics" / "two.png", work / "copy.png")
    answer = forget("ada")
    assert (list_names(work / "pics") if left else (work / "pics").exists()) == (left or False)
    assert (work / "copy.png").exists() == bool(left)
    assert answer["unproven"] == []


def test_an_image_of_somebody_else_that_was_changed_is_named_and_stays(work, forget):
    digests = write_earlier_images(work, "sefi")
    encode_photo(Image.new("RGB", (19, 23)), list(digests.values())).write(work / "pics" / "two.png")
    answer = forget("ada")
    assert [one["file"] for one in answer["unproven"]] == [str(work / "pics" / "two.png")]
    assert list_names(work / "pics") == ["records.json", "two.png"]


def test_without_a_record_an_image_goes_that_names_the_identity(work, forget):
    write_earlier_images(work, "sefi")
    (work / "pics" / "records.json").unlink()
    forget("ada")
    assert not (work / "pics").exists()


def test_images_that_somebody_else_may_own_stay_where_their_record_is_too_large(work, forget):
    digests = write_earlier_images(work, "sefi")
    record = work / "pics" / "records.json"
    record.write_text(record.read_text() + " " * (16 << 20))
    before = record.read_bytes()
    shutil.copy(work / "pics" / "two.png", work / "copy.png")
    encode_photo(Image.new("RGB", (19, 23), "red"), [digests["ada"]]).write(work / "pics" / "alone.png")
    shown = {one["file"]: one["reason"] for one in forget("ada")["unproven"]}
    shared = {str(work / name) for name in ("copy.png", "pics/one.png", "pics/two.png", "pics/grid.png")}
    assert set(shown) == {str(record), *shared}
    assert shown[str(record)] == "too large to be read: it may name the identity and its images"
    assert {shown[name] for name in shared} == {
        "it names somebody else too, and the record of its folder is too large to say whom it shows"
    }
    assert list_names(work) == ["bob.safetensors", "copy.png", "pics"]
    assert list_names(work / "pics") == ["grid.png", "one.png", "records.json", "two.png"]
    assert record.read_bytes() == before


def test_a_record_that_cannot_be_read_any_more_is_not_removed(work):
    write_earlier_images(work, "dreambooth")
    traces, _ = list_traces(read_sought_identity(work / "ada.safetensors", is_sound=True), [work])
    record = work / "pics" / "records.json"
    (clear,) = [one.clear for one in traces if one.path == record]
    record.write_text("{")
    with pytest.raises(OutputError, match="changed since it was listed"):
        clear()
    assert record.read_text() == "{"


def test_what_was_made_from_an_image_is_named(work, forget):
    write_earlier_images(work, "sefi")
    record = json.loads((work / "pics" / "records.json").read_text())
    record["runs"][0]["inputs"] = {"init_image": "me.png"}
    (work / "pics" / "records.json").write_text(json.dumps(record))
    assert [one["file"] for one in forget("ada")["unproven"]] == [str(work / "pics" / "two.png")]


def test_no_method_is_known_where_nobody_says_so(work):
    write_earlier_images(work, "sefi")
    traces, _ = list_traces(read_sought_identity(work / "ada.safetensors", is_sound=True), [work])
    assert {one.path.name for one in traces} == {"one.png", "two.png", "grid.png", "records.json", "ada.safetensors"}
