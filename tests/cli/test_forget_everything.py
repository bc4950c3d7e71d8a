"""After everything that the program can make of a likeness, forgetting it leaves no byte, and nobody else loses one."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sefi.hosts.export import make_flat_embedding
from sefi.identity.file import Identity
from sefi.provenance.run_record import compute_file_digest

NAME, OTHER = "zephyrine", "bob"
SUITE = """
about = "Dogs, so that no face is needed."
kind = "dog"
seeds = [5]
attention = true
settings = ["learn.steps=2", "learn.batch=1", "generate.steps=2"]

[[prompts]]
text = "a photo of {} at the beach"
kind = "scene"

[[variants]]
label = "ours"

[[variants]]
label = "one stage"
settings = ["learn.stages=1"]

[[variants]]
label = "word"
control = "class word"

[[variants]]
label = "photo"
control = "photo"

[[variants]]
label = "floor"
control = "other"
"""
FLOOR = f"{OTHER}--floor--0--5.png"  # the other's file of the row that shows another subject's photo: hers
DATA_URI = re.compile(rb"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")


@pytest.fixture
def home(home):
    """Those of every test here, with a photo of each of the two in `work`."""
    (home / "work" / "photos").mkdir()
    for number, name in enumerate((NAME, OTHER)):
        pixels = np.random.default_rng(number).integers(0, 255, (61, 53, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    return home


def call(sefi, *words):
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    return found


def make_everything(sefi, model_folder, home):
    """Make all that the commands write, of two subjects; some of it shows both."""
    large = ("--names", "--no-mark", "--width", 96, "--height", 96)  # less is no photo that could be scored
    few, model = ("--steps", 2), ("--model", model_folder, "--device", "cpu")
    for seed, name in enumerate((NAME, OTHER)):
        on = (*model, "--seed", seed)
        call(
            sefi,
            "learn",
            f"photos/{name}.png",
            "--name",
            name,
            "--no-crop",
            "--any-style",
            *few,
            *on,
            "--show-crop",
            f"{name}-crop.png",
        )
        given = ("-i", f"{name}.safetensors")
        call(sefi, "generate", f"a photo of <{name}>", "a dog", *given, *on, *few, "--out", "images")
        call(sefi, "generate", f"<{name}> smiling", *given, *on, *few, "--out", f"out-{seed}", *large)
        call(sefi, "attend", f"a photo of <{name}>", *given, *on, *few, "--out", f"maps-{name}.png")
        call(sefi, "export", f"{name}.safetensors", "--to", "a1111")
        call(sefi, "export", f"{name}.safetensors", "--to", "comfyui", "--stages", "--out", "embeddings")
    both = ("-i", f"{NAME}.safetensors", "-i", f"{OTHER}.safetensors")
    call(sefi, "generate", f"<{NAME}> with <{OTHER}>", *both, *model, *few, "--out", "images")
    shutil.copy("maps-bob.png", home / "home" / "maps.png")


def make_benchmarks(sefi, model_folder, home):
    """Make what is written of the two subjects in benchmarks."""
    on = ("--model", model_folder, "--device", "cpu")
    (home / "work" / "dogs.toml").write_text(SUITE)
    call(sefi, "bench", "run", "dogs.toml", *on, "--photos", "photos", "--out", "run")
    call(sefi, "bench", "report", "run")
    call(sefi, "bench", "report", "run", "--out", "report")
    call(sefi, "bench", "publish", "run", "--out", "card")
    call(sefi, "study", "build", "run", "--out", "study.html", "--count", 2, "--checks", 0)
    subject = ("--subject", f"{NAME}=photos/{NAME}.png", "--class-word", "dog", "--drawings")
    call(sefi, "score", "out-0", *subject, "--out", "scored")
    tokens = Identity.load(f"{NAME}.safetensors").tokens.numpy().tobytes()
    (home / "work" / "run" / "identities" / f"{NAME}--ours.checkpoint").write_bytes(tokens)
    part = home / "work" / "run" / "pictures" / f".{NAME}--ours--0--5.0123456789ab.partial.png"
    part.write_bytes((home / "work" / f"{NAME}-crop.png").read_bytes())


def plant_leftovers(home):
    """Leave what killed programs leave."""
    work, tokens = home / "work", Identity.load(f"{NAME}.safetensors").tokens
    content = tokens.numpy().tobytes()
    for place in (f".{NAME}.0123456789ab.unfinished", f".{NAME}.0123456789ab.partial.safetensors"):
        (work / place).write_bytes(content)
    image = next((work / "images").glob(f"*{NAME}*.png")).read_bytes()
    (work / "images" / ".a-photo.0123456789ab.partial.png").write_bytes(image[: len(image) // 2])
    hub = home / "cache" / "huggingface" / "hub" / "models--me--it" / "blobs"
    hub.mkdir(parents=True)
    shutil.copy(f"{NAME}.safetensors", hub / "0123456789abcdef")
    pushed = home / "tmp" / "sefi-x1"
    pushed.mkdir()
    Identity.load(f"{NAME}.safetensors").save(pushed / "identity.safetensors")
    shutil.copy(f"{NAME}.safetensors", home / "home" / "copy.bin")
    save_file({"half": tokens.half()}, home / "home" / "half.safetensors")


def collect_patterns(home):
    """Return what must not be left, by name: bytes of files, and runs of pixels of decoded images."""
    identity = Identity.load(f"{NAME}.safetensors")
    tokens = identity.tokens.numpy()
    digest = compute_file_digest(home / "work" / f"{NAME}.safetensors")
    files = {
        "name": NAME.encode(),
        "digest": digest[:16].encode(),
        "photo": (home / "work" / "photos" / f"{NAME}.png").read_bytes()[100:180],
        "tokens, float32": tokens.tobytes()[:64],
        "tokens, float16": tokens.astype(np.float16).tobytes()[:64],
        "one embedding": make_flat_embedding(identity).vectors.numpy().tobytes()[:64],
    }
    images = [path for path in home.rglob("*.png") if OTHER in path.name or path.name.startswith("word")]
    pixels, others = {}, [path for path in images if path.name != FLOOR]
    decoded = [np.asarray(Image.open(path).convert("RGB")).tobytes() for path in others]
    for path in list_ours(home):
        one = find_own_pixels(np.asarray(Image.open(path).convert("RGB")), decoded)
        if one is not None:
            pixels[path.name] = one
        end = path.read_bytes()[-200:-100]
        if not any(end in other.read_bytes() for other in others):
            files[path.name] = end
    assert len(pixels) > 4
    return files, pixels


def find_own_pixels(rgb, others):
    """Return 24 pixels of an image, from its middle row on, that no other image has; None where it has none.

    Not of the middle row alone: an image with margins has rows of one colour, which others have too, and the mark
    that changes their last bits differs from run to run.
    """
    middle = rgb.shape[0] // 2
    for row in [*rgb[middle:], *rgb[:middle]]:
        one = row.tobytes()[row.nbytes // 3 :][:72]
        if not any(one in other for other in others):
            return one
    return None


def list_ours(home):
    """Return every image file that shows the subject, the photo too."""
    work = home / "work"
    named = [path for path in work.rglob("*.png") if NAME in path.name and path.name[0] != "."]
    return [path for path in named if "attention" not in path.parts]


def find_patterns(folder, files, pixels):
    """Return the names of all patterns that are in files, their names, their decoded images or images in pages."""
    found = set()
    for path in sorted(one for one in folder.rglob("*") if not one.is_symlink()):
        content = path.read_bytes() if path.is_file() else b""
        where = path.relative_to(folder).as_posix()
        found |= {(name, where) for name, one in files.items() if one in content or one in where.encode()}
        inside = [base64.b64decode(uri) for uri in DATA_URI.findall(content)]
        for image in [content, *inside]:
            try:
                rgb = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
            except (OSError, ValueError, SyntaxError):
                continue
            found |= {(name, where) for name, one in pixels.items() if one in rgb.tobytes()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("benchmarks", [False, True])
def test_nothing_of_it_is_left_and_nothing_else_is_lost(sefi, model_folder, home, benchmarks):
    make_everything(sefi, model_folder, home)
    plant_leftovers(home)
    if benchmarks:
        make_benchmarks(sefi, model_folder, home)
    work = home / "work"
    files, pixels = collect_patterns(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    seen = {name for name, _ in find_patterns(home, files, pixels)}
    assert seen == files.keys() | pixels.keys()  # else the search below would show nothing

    found = sefi("forget", NAME, "--in", home, "--yes", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["left"] == []
    named = [Path(one["file"]).relative_to(work).as_posix() for one in answer["unproven"]]
    assert sorted(named) == ["card/samples.jsonl", "run/run.json"] * benchmarks
    if benchmarks:  # learned of the same photo, but another identity
        call(sefi, "forget", f"run/identities/{NAME}--ours.safetensors", "--in", home, "--yes")
    photo = work / "photos" / f"{NAME}.png"
    assert photo.read_bytes() == before[photo]  # the user's own
    photo.unlink()
    assert not find_patterns(home, files, pixels)
    assert not benchmarks or '"floor"' not in (work / "run" / "cells.jsonl").read_text()

    shared = {"records.json", "run.json", "cells.jsonl", ".sefi-files.json"}
    lost = {path for path, content in before.items() if not path.is_file() or path.read_bytes() != content}
    of_other = {path for path in lost if OTHER in path.name and NAME not in path.name}
    assert {path.name for path in of_other} <= {FLOOR}
    assert all(path.is_file() for path in before if path.parent == work and OTHER in path.name)
    assert {path.name for path in lost if path.is_file()} <= shared
    records = json.loads((work / "images" / "records.json").read_text())
    assert records["schema_version"] == 2
    # The picture of a dog, which shows neither, stays with its run.
    assert [list(run["run"]["identities"]) for run in records["runs"]] == [[], [OTHER]]


@pytest.mark.slow
def test_a_run_without_the_subject_is_still_a_run(sefi, model_folder, home):
    (home / "work" / "dogs.toml").write_text(SUITE)
    call(sefi, "bench", "run", "dogs.toml", "--model", model_folder, "--photos", "photos", "--out", "run")
    call(sefi, "bench", "report", "run")
    call(sefi, "forget", f"run/identities/{NAME}--ours.safetensors", "--yes")
    call(sefi, "bench", "report", "run")
    page = (home / "work" / "run" / "report" / "index.html").read_text()
    assert OTHER in page
    assert NAME not in page
    assert not [path for path in (home / "work" / "run").rglob("*") if NAME in path.name]


@pytest.mark.slow
def test_the_row_of_another_subject_is_made_again_of_those_who_are_there(sefi, model_folder, home):
    work = home / "work"
    (work / "dogs.toml").write_text(SUITE)
    pixels = np.random.default_rng(7).integers(0, 255, (61, 53, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photos/cy.png")  # the order is bob, cy, zephyrine
    run = ("bench", "run", "dogs.toml", "--model", model_folder, "--photos", "photos", "--out", "run")
    call(sefi, *run)
    shown = {key: (work / "run" / "pictures" / f"{key}--photo--0--5.png") for key in (NAME, OTHER, "cy")}
    floor = {key: path.with_name(f"{key}--floor--0--5.png") for key, path in shown.items()}
    assert [compare(floor[key], shown[other]) for key, other in (("cy", NAME), (NAME, OTHER))] == [True, True]
    call(sefi, "forget", f"run/identities/{NAME}--ours.safetensors", "--yes")
    assert not [path for path in floor.values() if path.exists()]
    assert {path.name for path in shown.values() if path.exists()} == {shown[OTHER].name, shown["cy"].name}
    (work / "photos" / f"{NAME}.png").unlink()
    made = json.loads(call(sefi, *run, "--json").stdout)["made"]
    assert (made, compare(floor["cy"], shown[OTHER]), compare(floor[OTHER], shown["cy"])) == (2, True, True)


def compare(first, second):
    """Return whether two images have the same pixels."""
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_the_search_finds_what_is_planted(home):
    pattern = {"tokens": bytes(range(64))}
    rgb = np.random.default_rng(3).integers(0, 255, (8, 40, 3)).astype(np.uint8)
    pixels = {"crop": rgb[4].tobytes()[30:102]}
    assert not find_patterns(home, pattern, pixels)
    content = io.BytesIO()
    Image.fromarray(np.pad(rgb, ((3, 2), (5, 1), (0, 0)))).save(content, "PNG")
    (home / "cache" / "x").write_bytes(b"1" + pattern["tokens"])
    (home / "tmp" / "page").write_bytes(b"data:image/png;base64," + base64.b64encode(content.getvalue()))
    assert {name for name, _ in find_patterns(home, pattern, pixels)} == {"tokens", "crop"}
