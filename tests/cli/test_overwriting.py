"""No command writes to what it reads, and none replaces a file that it was not asked to replace."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sefi.cli.image_files import shorten_names
from sefi.identity.file import Identity

QUICK = ("--steps", 2)
INPUTS = ("itself", "symbolic link", "hard link")
EXISTING = ("another kind", "folder", "fifo", "device")


@pytest.fixture
def given(tmp_path, ada, portrait, model_folder):
    """Copies of everything that commands read, and the bytes of each."""
    shutil.copy(ada, tmp_path / "ada.safetensors")
    shutil.copy(portrait, tmp_path / "photo.png")
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def words_of(command, folder, out):
    """A command line, and the file among its inputs that its output is set on."""
    model, identity = ("--model", folder / "model"), ("-i", folder / "ada.safetensors")
    if command == "learn":
        words = ["learn", folder / "photo.png", "--name", "ada", *model, "--no-crop", *QUICK, "--out", out]
        return words, folder / "photo.png"
    if command == "attend":
        words = ["attend", "a photo of <ada>", *identity, *model, *QUICK, "--out", out]
        return words, folder / "ada.safetensors"
    raise AssertionError(command)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize("place", [*INPUTS, *EXISTING])
@pytest.mark.parametrize("command", ["learn", "attend"])
def test_what_is_there_stays(refused, given, command, place, overwrite):
    out = given / "out"
    read = words_of(command, given, out)[1]
    if place == "itself":
        out = read
    elif place == "symbolic link":
        out.symlink_to(read)
    elif place == "hard link":
        out.hardlink_to(read)
    elif place == "another kind":
        out.write_text("<!doctype html>")
    elif place == "folder":
        out.mkdir()
    elif place == "fifo":
        os.mkfifo(out)
    else:
        out = Path("/dev/null")
    before, mode = contents(given), out.lstat().st_mode
    error = refused(*words_of(command, given, out)[0], *overwrite)
    expected = {"another kind": "exists and is", "folder": "folder", "fifo": "pipe", "device": "device"}
    assert expected.get(place, "is an input") in error
    assert contents(given) == before
    assert out.lstat().st_mode == mode


@pytest.mark.parametrize("place", INPUTS)
@pytest.mark.parametrize("read", ["model/unet/config.json", "names.txt", "detector.onnx"])
def test_every_input_of_learn_is_known(refused, given, place, read):
    for name in ("names.txt", "detector.onnx"):
        (given / name).write_text("ada\n")
    out = given / "out" if place != "itself" else given / read
    if place == "symbolic link":
        out.symlink_to(given / read)
    elif place == "hard link":
        out.hardlink_to(given / read)
    before = contents(given)
    names = (
        "--method",
        "cross-init",
        "--set",
        f"basis.names={given / 'names.txt'}",
        "--detector",
        given / "detector.onnx",
    )
    refused(*words_of("learn", given, out)[0], *names, "--overwrite")
    assert contents(given) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_another_identity_stays(refused, sefi, given, overwrite):
    before = contents(given)
    words = ["learn", given / "photo.png", "--name", "bob", "--model", given / "model", "--no-crop", *QUICK]
    assert "<ada>, not <bob>" in refused(*words, "--out", given / "ada.safetensors", *overwrite)
    assert contents(given) == before


def test_the_same_identity_is_replaced_when_asked(refused, sefi, given):
    out = given / "ada.safetensors"
    words = [*words_of("learn", given, out)[0], "--seed", 7]
    assert "exists" in refused(*words)
    assert Identity.load(out).header.seed == 0
    found = sefi(*words, "--overwrite")
    assert found.exit_code == 0, found.output
    assert Identity.load(out).header.seed == 7


@pytest.mark.slow
def test_the_same_figure_is_replaced_when_asked(refused, sefi, given):
    out = given / "maps.png"
    Image.new("RGB", (3, 5)).save(out)
    before = out.read_bytes()
    words = words_of("attend", given, out)[0]
    assert "exists" in refused(*words)
    assert out.read_bytes() == before
    assert sefi(*words, "--overwrite").exit_code == 0
    with Image.open(out) as figure:
        assert figure.width > 500


def test_the_remedy_names_the_option(sefi, given):
    found = sefi(*words_of("learn", given, given / "ada.safetensors")[0], "--json")
    assert "--overwrite" in json.loads(found.stdout)["try"]


def generate(sefi, folder, *prompts, seed=5, code=0):
    words = ["generate", *prompts, "--model", folder / "model", *QUICK, "--seed", seed, "--out", folder / "pictures"]
    found = sefi(*words, "--json")
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


@pytest.mark.slow
def test_images_are_numbered_on_and_records_appended(sefi, given):
    answers = [generate(sefi, given, "a photo of person") for _ in range(3)]
    folder = given / "pictures"
    stem = "a-photo-of-person-5"
    images = {f"{stem}.png", f"{stem}-2.png", f"{stem}-3.png"}
    assert {p.name for p in folder.iterdir()} == {*images, "grid.png", "grid-2.png", "grid-3.png", "records.json"}
    records = json.loads((folder / "records.json").read_text())
    assert [answer.pop("schema") for answer in answers] == ["generate/1"] * 3
    assert records == {"schema_version": 2, "runs": [shorten_names(answer) for answer in answers]}
    assert {Path(one["images"][0]["file"]).name for one in answers} == images
    assert all(Path(one["grid"]).is_file() for one in answers)


def test_prompts_of_one_short_name_all_stay(sefi, given):
    prompts = ("a photo of person", "a photo, of person", "A photo: of person!")
    files = [entry["file"] for entry in generate(sefi, given, *prompts, "\u00e9", "\u00fc")["images"]]
    assert len(set(files)) == 5
    assert all(Path(file).is_file() for file in files)


def test_a_foreign_record_is_refused_before_the_work(refused, given):
    (given / "pictures").mkdir()
    (given / "pictures" / "records.json").write_text('{"mine": 1}')
    before = contents(given)
    error = refused("generate", "a photo of person", "--model", "/nowhere", "--out", given / "pictures")
    assert "no record" in error
    assert contents(given) == before


def test_an_interrupted_run_is_on_record(sefi, given, monkeypatch):
    from sefi import api

    whole = api.generate_each

    def interrupted(*args, **settings):
        images = whole(*args, **settings)
        yield next(images)
        images.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "generate_each", interrupted)
    words = ["generate", "a photo of person", "a drawing", "--model", given / "model", *QUICK]
    assert sefi(*words, "--out", given / "pictures").exit_code == 130
    (run,) = json.loads((given / "pictures" / "records.json").read_text())["runs"]
    assert [Path(image["file"]).name for image in run["images"]] == ["a-photo-of-person-0.png"]
    assert run["grid"] is None


@pytest.mark.parametrize("name", ["index.html", "ada.safetensors", "sheet.png"])
def test_a_demo_replaces_nothing_of_others(refused, tmp_path, name):
    (tmp_path / name).write_text("mine")
    assert "exists and is a text file" in refused("demo", "--out", tmp_path, "--overwrite")
    assert (tmp_path / name).read_text() == "mine"


def test_a_demo_is_made_again_when_asked(refused, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html>")
    assert "index.html' exists." in refused("demo", "--out", tmp_path)


@pytest.mark.parametrize("inside", ["photos", "photos/people"])
def test_a_run_does_not_write_over_its_photos(refused, tmp_path, inside):
    photos = tmp_path / inside
    photos.mkdir(parents=True)
    (photos / "ada.png").write_bytes(b"photo")
    words = ["bench", "run", "quick", "--model", "/nowhere", "--photos", photos, "--out", tmp_path]
    assert "belongs to no run" in refused(*words)
    (tmp_path / "run.json").write_text("{}")
    assert "would write into" in refused(*words)
    assert (photos / "ada.png").read_bytes() == b"photo"


@pytest.fixture
def bench_run(given):
    """A folder with the record of a run of one picture; `study build` and `bench report` read it."""
    folder = given / "run"
    (folder / "pictures").mkdir(parents=True)
    (folder / "photos").mkdir()
    Image.new("RGB", (96, 96)).save(folder / "photos" / "ada.png")
    ways = [{"label": label, "about": "", "control": None} for label in ("ours", "rival")]
    prompts = [{"text": "{} in the snow", "kind": "scene", "wanted": [["scene", "snow"]]}]
    suite = {"name": "tiny", "about": "", "prompts": prompts, "variants": ways, "seeds": [7]}
    about = {"schema": 1, "suite": suite, "subjects": ["ada"], "model": {"name": "tiny", "fingerprint": "tiny:0"}}
    (folder / "run.json").write_text(json.dumps(about))
    lines = []
    for way in ("ours", "rival"):
        file = f"pictures/{way}.png"
        Image.new("RGB", (96, 96), (0, len(way), 0)).save(folder / file)
        known = {
            "subject": "ada",
            "variant": way,
            "prompt": 0,
            "seed": 7,
            "kind": "scene",
            "image": file,
            "sha256": way,
        }
        lines.append(json.dumps({**known, "text": "person in the snow", "shown": None, "prompt_score": 0.2}))
    (folder / "cells.jsonl").write_text("\n".join(lines) + "\n")
    return folder


# What else writes: the words of a command line, and one of the files that it writes into the folder `out`.
OTHERS = {
    "generate": (["generate", "person", "-i", "ada.safetensors", "--model", "model", "--out", "{out}"], "records.json"),
    "world draw": (["world", "draw", "--count", "1", "--out", "{out}"], "00000.png"),
    "world grid": (["world", "grid", "--kind", "pets", "--model", "/nowhere", "--out", "{out}/pets.png"], "pets.png"),
    "bench report": (["bench", "report", "run", "--out", "{out}"], "tables.csv"),
    "study build": (["study", "build", "run", "--count", "1", "--checks", "0", "--out", "{out}/a.html"], "a.html"),
    "demo": (["demo", "--out", "{out}"], "sheet.png"),
}
INPUTS_OF = {
    "generate": ["ada.safetensors", "model/unet/config.json"],
    "bench report": ["run/run.json", "run/cells.jsonl"],
    "study build": ["run/run.json", "run/cells.jsonl", "run/pictures/ours.png", "run/pictures/rival.png"],
}
PLACES = [(command, "another kind") for command in OTHERS]
PLACES += [(command, place) for command in OTHERS for place in ("folder", "fifo")]
PLACES += [(command, read) for command, inputs in INPUTS_OF.items() for read in inputs]


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize(("command", "place"), PLACES, ids=lambda one: one.replace("/", "-"))
def test_no_other_command_replaces_what_is_there(refused, given, bench_run, monkeypatch, command, place, overwrite):
    monkeypatch.chdir(given)
    words, file = OTHERS[command]
    out = given / "out"
    out.mkdir()
    path = out / file
    if place == "another kind":
        path.write_bytes(b"GIF89a")
    elif place == "folder":
        path.mkdir()
    elif place == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(given / place)
    before, mode = contents(given), path.lstat().st_mode
    asked = ["--overwrite"] if overwrite and command != "generate" else []
    error = refused(*(word.replace("{out}", str(out)) for word in words), *asked)
    if place in INPUTS_OF.get(command, ()):
        assert any(reason in error for reason in ("is an input", "exists and is", "is a link out of its folder"))
    assert str(path) in error
    assert contents(given) == before
    assert path.lstat().st_mode == mode


SAME_KIND = {"world draw": b"\x89PNG\r\n\x1a\n", "world grid": b"\x89PNG\r\n\x1a\n", "bench report": b"way,value\n"}
SAME_KIND |= {"study build": b"<!doctype html>", "demo": b"\x89PNG\r\n\x1a\n"}


@pytest.mark.parametrize("command", SAME_KIND)
def test_an_earlier_result_stays_unless_asked(refused, given, bench_run, monkeypatch, command):
    monkeypatch.chdir(given)
    words, file = OTHERS[command]
    (given / "out").mkdir()
    (given / "out" / file).write_bytes(SAME_KIND[command])
    before = contents(given)
    assert f"{file}' exists." in refused(*(word.replace("{out}", str(given / "out")) for word in words))
    assert contents(given) == before


@pytest.mark.parametrize("command", ["study build", "world draw"])
def test_an_earlier_result_is_replaced_when_asked(sefi, given, bench_run, monkeypatch, command):
    monkeypatch.chdir(given)
    words, file = OTHERS[command]
    (given / "out").mkdir()
    (given / "out" / file).write_bytes(SAME_KIND[command])
    found = sefi(*(word.replace("{out}", str(given / "out")) for word in words), "--overwrite")
    assert found.exit_code == 0, found.output
    assert (given / "out" / file).stat().st_size > len(SAME_KIND[command])


def test_a_card_takes_the_place_of_no_record(refused, given):
    record = given / "README.md"
    record.write_text("{}")
    assert refused("world", "card", "--record", record, "--out", given, "--overwrite")
    assert record.read_text() == "{}"


TRAINED = [
    ("tokenizer", "tokenizer", ()),
    ("features", "features.training.safetensors", ()),
    ("autoencoder", "autoencoder-faces.training.safetensors", ()),
    ("text", "text.safetensors", ()),
    ("text", "text.safetensors", ("--start", "tiny-portraits")),
    ("latents", "latents.npy", ()),
    ("all", "denoiser.training.safetensors", ()),
]


@pytest.mark.parametrize(("part", "file", "options"), TRAINED, ids=lambda one: one if isinstance(one, str) else "")
def test_a_training_is_not_begun_again_unasked(sefi, tmp_path, part, file, options):
    (tmp_path / file).write_text("mine")
    found = sefi("world", "train", part, *options, "--out", tmp_path, "--json")
    assert found.exit_code == 2, found.output
    answer = json.loads(found.stdout)
    assert file in answer["error"]
    assert "--resume" in answer["try"]
    assert "--overwrite" in answer["try"]
    assert (tmp_path / file).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_training_begins_again_when_asked(sefi, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    found = sefi("world", "train", "tokenizer", "--overwrite", "--out", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    assert (tmp_path / "tokenizer" / "tokenizer_config.json").is_file()


# ------------------------------------------------------------------ what appears while the work is done

STEPS = ("--steps", "2")
WRITERS = {
    "learn": (
        ["learn", "photo.png", "--name", "bob", "--model", "model", "--no-crop", "--steps", "2"],
        "bob.safetensors",
    ),
    "attend": (["attend", "a <ada>", "-i", "ada.safetensors", "--model", "model", *STEPS], "maps.png"),
    "bench report": (["bench", "report", "run", "--out", "."], "tables.csv"),
    "bench report, in the run": (["bench", "report", "run"], "run/report/tables.csv"),
    "study build": (["study", "build", "run", "--count", "1", "--checks", "0"], "study.html"),
    "world draw": (["world", "draw", "--count", "1", "--out", "."], "00000.json"),
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_appears_while_a_command_works_stays(refused, given, bench_run, monkeypatch, command):
    """It is made in the last moment: when the temporary file is whole, before it takes its name."""
    from sefi.core import files

    monkeypatch.chdir(given)
    words, name = WRITERS[command]
    target, whole = given / name, files.flush_file

    def flush(partial):
        whole(partial)
        if f".{target.stem}." in partial.name and partial.suffix == target.suffix:
            target.write_text("mine")

    monkeypatch.setattr(files, "flush_file", flush)
    assert "exists" in refused(*words)
    assert target.read_text() == "mine"


@pytest.mark.slow
def test_a_learning_that_must_not_be_saved_is_gone_on_with(refused, sefi, given, monkeypatch):
    from sefi.core import files

    monkeypatch.chdir(given)
    words, name = WRITERS["learn"]
    target, whole = given / name, files.flush_file
    monkeypatch.setattr(files, "flush_file", lambda p: (whole(p), target.write_text("x") if "bob" in p.name else None))
    refused(*words)
    monkeypatch.undo()
    monkeypatch.chdir(given)
    target.unlink()
    assert sefi(*words).exit_code == 0
    assert Identity.load(target).name == "bob"


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("stem", ["x" * 243, "\u00e9" * 121])
def test_the_longest_name_is_learned(sefi, given, stem):
    words, _ = words_of("learn", given, given / f"{stem}.safetensors")
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    assert Identity.load(given / f"{stem}.safetensors").name == "ada"
    assert not list(given.glob(".*"))


def test_an_unfinished_run_keeps_as_much_of_the_name_as_fits(tmp_path):
    from sefi.photo.read import read_photo
    from sefi.training.checkpoint import name_checkpoint

    Image.new("RGB", (37, 41)).save(tmp_path / "p.png")
    photo = read_photo(tmp_path / "p.png").pixels
    short, long = (name_checkpoint(tmp_path / f"{stem}.safetensors", [photo], [1]) for stem in ("ada", "x" * 243))
    assert short.name.startswith(".ada.")
    assert len(short.name) == len(".ada..unfinished") + 12
    assert len(long.name) == 255
    assert long.name.split(".")[2:] == short.name.split(".")[2:]


# ------------------------------------------------------------------ reports and demos, which are made again and again


def test_a_report_is_replaced_while_it_is_the_run_s_own(refused, sefi, bench_run):
    words, page = ("bench", "report", bench_run), bench_run / "report" / "index.html"
    for _ in range(2):
        found = sefi(*words)
        assert found.exit_code == 0, found.output
    ours = page.read_bytes()
    page.write_text("<!doctype html>mine")
    assert "was changed since sefi wrote it" in refused(*words)
    assert page.read_text() == "<!doctype html>mine"
    assert sefi(*words, "--overwrite").exit_code == 0
    assert page.read_bytes() == ours


@pytest.mark.parametrize("name", ["index.html", "tables.csv", "tables.json"])
def test_a_report_replaces_no_page_of_others(refused, bench_run, name):
    texts = {"index.html": "<!doctype html>mine", "tables.csv": "my,table", "tables.json": '{"mine": 1}'}
    (bench_run / "report").mkdir()
    (bench_run / "report" / name).write_text(texts[name])
    assert f"{name}' exists." in refused("bench", "report", bench_run)
    assert {p.name: p.read_text() for p in (bench_run / "report").iterdir()} == {name: texts[name]}


def test_a_refused_report_writes_nothing(refused, bench_run, monkeypatch):
    (bench_run / "report").mkdir()
    (bench_run / "report" / "tables.tex").write_text("mine")
    monkeypatch.setattr("sefi.report.attention_figure.draw_attention", lambda *_: pytest.fail("drawn"))
    monkeypatch.setattr("sefi.report.bench_page.render_bench_page", lambda *_: pytest.fail("rendered"))
    assert "tables.tex' exists." in refused("bench", "report", bench_run)


@pytest.mark.parametrize("name", ["attention", "report"])
def test_a_report_is_refused_where_a_folder_of_the_run_leads_elsewhere(refused, bench_run, tmp_path, name):
    """A report of a run from somebody else removed the figures of a folder that its `attention` led to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ours.png").write_bytes(b"of this machine")
    (bench_run / name).symlink_to(outside, target_is_directory=True)
    assert f"{name}' is no folder of a run" in refused("bench", "report", bench_run)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"ours.png": b"of this machine"}


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
@pytest.mark.parametrize("command", ["generate", "world draw", "bench report", "demo", "export"])
def test_a_link_out_of_the_folder_that_is_written_to_is_not_followed(
    refused, given, bench_run, monkeypatch, command, there
):
    """The user names the folder; what a link in it leads to was replaced, or a new file was made there."""
    monkeypatch.chdir(given)
    export = ["export", "ada.safetensors", "--to", "forge", "--out", "{out}"], "sefi-ada.safetensors"
    words, file = (OTHERS | {"export": export})[command]
    empty = {"generate": b'{"schema_version": 2, "runs": []}', "export": b"\2" + bytes(7) + b"{}"}
    content = (SAME_KIND | empty)[command]
    out, outside = given / "out", given / "outside"
    out.mkdir()
    (out / file).symlink_to(outside)
    if there:
        outside.write_bytes(content)
    asked = ["--overwrite"] if command != "generate" else []
    error = refused(*(word.replace("{out}", str(out)) for word in words), *asked)
    assert error == f"'{out / file}' is a link out of its folder."
    assert (outside.read_bytes() if there else outside.exists()) == (content if there else False)


def test_a_run_is_not_begun_where_another_report_is(refused, given, monkeypatch):
    monkeypatch.chdir(given)
    (given / "report").mkdir()
    (given / "report" / "index.html").write_text("<!doctype html>mine")
    before = contents(given)
    error = refused("bench", "run", "quick", "--model", "/nowhere", "--photos", given / "model", "--out", ".")
    assert "report' exists and belongs to no run" in error
    assert contents(given) == before


@pytest.mark.parametrize("way", ["itself", "a link", "another spelling"])
def test_photos_and_run_have_folders_of_their_own(refused, tmp_path, way):
    photos = tmp_path / "people"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "ada.png")
    (tmp_path / "link").symlink_to(photos)
    out = {"itself": photos, "a link": tmp_path / "link", "another spelling": photos / ".." / "people"}[way]
    before = contents(tmp_path)
    words = ["bench", "run", "quick", "--model", "/nowhere", "--detector", "/nowhere", "--photos", photos, "--out", out]
    assert "have one folder" in refused(*words)
    assert contents(tmp_path) == before
    assert "have one folder" not in refused(*words[:-1], photos / "run")  # only there do its pictures become subjects


def test_a_demo_knows_its_files_and_leaves_others(refused, tmp_path):
    from sefi.cli.demo import prepare_demo_files

    files = prepare_demo_files(tmp_path)
    files.write("portrait.png", Image.new("RGB", (7, 11)).save)
    prepare_demo_files(tmp_path).check()
    Image.new("RGB", (11, 7)).save(tmp_path / "portrait.png")
    before = contents(tmp_path)
    assert "portrait.png' was changed since sefi wrote it" in refused("demo", "--out", tmp_path)
    assert contents(tmp_path) == before
    prepare_demo_files(tmp_path, overwrite=True).check()
