"""What a record or a benchmark's folder says is believed only as far as the file itself shows it."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from tests.closed_folders import obey_permissions

from sefi.benchmark.identities import locate_checkpoint, locate_costs
from sefi.benchmark.run import RunFolder
from sefi.benchmark.suite import Variant
from sefi.core.errors import OutputError
from sefi.core.files import FileKind, name_partial
from sefi.core.own_files import OwnFiles
from sefi.core.text import make_slug
from sefi.identity.file import Identity, format_shard_name
from sefi.provenance.forget import STAYS, list_traces, read_sought_identity, remove_traces
from sefi.provenance.forget_records import RunsOnRecord, read_runs
from sefi.provenance.forget_runs import (
    RunNames,
    explain_namesake,
    find_run_subjects,
    list_run_doubts,
    list_run_samples,
    list_run_traces,
    list_variants_of_subject,
    read_run_info,
    take_lines_out,
    take_subjects_out,
)
from sefi.provenance.metadata import DIGITS
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import encode_photo

ADA = "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("a./\0\ud800", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["file", "sha256", "subject", "images", "identities", "ada"]), inner)
    ),
    max_leaves=6,
)


@pytest.fixture
def work(home, monkeypatch):
    """The folder to work in."""
    monkeypatch.setenv("PWD", str(home / "work"))
    return home / "work"


def list_file_names(answer):
    """List the names of the files that were removed, and of those that are not proven."""
    files = answer["removed"], [one["file"] for one in answer["unproven"]]
    return [sorted({Path(one).name for one in listed}) for listed in files]


def test_a_record_without_hashes_removes_only_what_names_the_identity(work, forget, ada):
    shutil.copy(ada, "ada.safetensors")
    digest = compute_file_digest(ada)
    named = {"identities": ["ada.safetensors"], "run": {"identities": {"ada": digest}}}
    runs = [{"images": [{"file": "thesis.docx"}, {"file": "own.png"}, {"file": "ours.png"}], "grid": "photo.png"}]
    (work / "records.json").write_text(json.dumps({"schema_version": 2, "runs": [{**run, **named} for run in runs]}))
    for name in ("own.png", "photo.png"):
        Image.new("RGB", (19, 23), "red").save(name)
    (work / "thesis.docx").write_text("years of work")
    encode_photo(Image.new("RGB", (19, 23)), [digest]).write(work / "ours.png")
    removed, unproven = list_file_names(forget("ada"))
    assert removed == ["ada.safetensors", "ours.png", "records.json"]
    assert unproven == ["own.png", "photo.png", "thesis.docx"]
    assert sorted(path.name for path in work.iterdir()) == unproven


@pytest.mark.parametrize("named", ["ada.safetensors", "work/ada.safetensors", "../ada.safetensors"])
def test_an_old_record_names_an_identity_only_from_its_own_folder(work, forget, ada, named):
    shutil.copy(ada, "ada.safetensors")
    project = work / "project"
    project.mkdir()
    Image.new("RGB", (19, 23), "red").save(project / "photo.png")
    run = {"images": [{"file": "photo.png"}], "identities": [named]}
    (project / "records.json").write_text(json.dumps({"runs": [run]}))
    before = (project / "records.json").read_bytes()
    removed, unproven = list_file_names(forget("ada"))
    ours = named.startswith("..")
    assert removed == ["ada.safetensors", *["records.json"] * ours]
    assert unproven == ["photo.png", *["records.json"] * (not ours)]
    assert (project / "photo.png").is_file()
    assert ours or (project / "records.json").read_bytes() == before


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["images", "runs", "identities", "grid", "run"]), JSON), JSON)
def test_a_record_of_any_shape_is_read_or_passed_over(tmp_path_factory, record, inner):
    folder = tmp_path_factory.mktemp("any")
    identity = folder / "ada.safetensors"
    identity.touch()
    for content in (record, {"images": [inner], "identities": [inner]}, {"runs": [record, {"run": inner, **record}]}):
        (folder / "records.json").write_text(json.dumps(content))
        runs = read_runs(folder / "records.json") or []
        found = RunsOnRecord(folder / "records.json", identity, frozenset([ADA]), runs)
        proven, unproven = found.list_images(runs)
        assert found.list_pixel_digests(runs) is not None
        doubts = [*unproven, *found.list_doubts(runs)]
        assert (proven, [one.path for one in doubts if one.path != identity]) == ([], [])
        assert not found.list_ours()
        assert not found.has_namesake("bob")


VARIANTS = [
    {"label": "Ours, v1.5"},
    {"label": "2"},
    {"label": "again", "learned_by": "2"},
    {"label": "w", "control": "photo"},
]
SUITE = {"name": "x", "prompts": [{"text": "{}"}] * 2, "seeds": [5, 7], "variants": VARIANTS}


def make_benchmark(folder, groups, ada=None, suite=SUITE):
    """Make the folder of a run with files of every kind for each subject; return the files of each subject alone."""
    keys = [key for group in groups for key in group.split("+")]
    files = {key: [f"photos/{key}.png"] for key in keys}
    for key in keys:
        for label in ("ours-v1.5", "2"):
            stem = f"identities/{key}--{label}"
            files[key] += [f"{stem}.safetensors", f"{stem}.costs.json", f"{stem}.checkpoint"]
            files[key].append(f"{stem}.1.0123456789ab.safetensors")
            files[key].append(f"identities/.{key}--{label}.0123456789ab.partial.safetensors")
    for group in groups:
        for label in ("ours-v1.5", "2", "again", "w"):
            for number in ("0--5", "1--7"):
                files[group.split("+")[0]].append(f"pictures/{group}--{label}--{number}.png")
                files[group.split("+")[0]].append(f"attention/{group}--{label}--{number}.safetensors")
    for name in [one for names in files.values() for one in names]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for number, key in enumerate(keys if ada else ()):
        identity = Identity.load(ada)
        tokens = identity.tensors["tokens"] + number
        path = folder / f"identities/{key}--2.safetensors"
        path.unlink()
        replace(identity, tensors={**identity.tensors, "tokens": tokens}).save(path)
    info = {"schema": 2, "suite": suite, "subjects": groups, "photos": {key: ["0" * 16] for key in keys}}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "cells.jsonl").write_text("".join(json.dumps({"subject": group}) + "\n" for group in groups))
    return {key: sorted(names) for key, names in files.items()}


def list_files(folder):
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())


FLOOR = {**SUITE, "variants": [*VARIANTS, {"label": "The floor", "control": "other"}]}


@pytest.mark.parametrize("groups", [["ada", "bob", "cy"], ["ada+bob", "cy+dan"]])
def test_a_row_of_another_subjects_photo_goes_with_each_subject_whoever_it_is_named_for(work, forget, ada, groups):
    folder = work / "run"
    make_benchmark(folder, groups, ada, FLOOR)
    rows = {f"pictures/{group}--the-floor--{number}.png" for group in groups for number in ("0--5", "1--7")}
    rows |= {f"pictures/.{group}--the-floor--0--5.0123456789ab.partial.png" for group in groups}
    cut = f"pictures/.{groups[-1]}--ours-v1.5--0--5.0123456789ab.partial.png"
    mine = f"pictures/{groups[-1]}--the-floor--mine.png"
    for name in [*rows, cut, mine]:
        (folder / name).write_text(name)
    lines = [{"subject": group, "variant": label} for group in groups for label in ("2", "The floor")]
    lines += [{"subject": groups[-1], "way": "The floor"}]  # as earlier versions call a variant
    with (folder / "cells.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write(f'{{"subject": "{groups[-1]}", "variant": "The fl')  # a kill ended it here
    before = set(list_files(folder))
    answer = forget("run/identities/ada--2.safetensors")
    rest = set(list_files(folder))
    gone = {name for name in before - rest if groups[-1] in name}
    assert (gone, rows & rest, {cut, mine} <= rest) == ({name for name in rows if groups[-1] in name}, set(), True)
    assert {Path(cut).name, Path(mine).name} <= {Path(one["file"]).name for one in answer["unproven"]}
    found = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    left = [group for group in groups if "ada" not in group]
    assert found == [*({"subject": one} for one in left), *({"subject": one, "variant": "2"} for one in left)]


def test_a_cut_temporary_name_is_of_a_row_of_others_photos_only_if_no_other_variant_can_be_meant(work):
    long = "b" * 20
    make_benchmark(work / "run", ["ada", long], suite=FLOOR)
    names, pictures = RunNames.read(work / "run"), work / "run" / "pictures"
    long_label = f"{long}--the-floor--0--5"[:40]
    assert names.shows_another(pictures / f".{long_label}.0123456789ab.partial.png")
    assert not names.shows_another(pictures / f".{'b' * 40}.0123456789ab.partial.png")
    assert not names.shows_another(work / "run" / "attention" / f"{long}--the-floor--0--5.png")


@pytest.mark.parametrize("first", ["ada", "ada--2"])
def test_a_subject_does_not_take_another_with_it_whose_name_begins_alike(work, forget, ada, first):
    other = {"ada": "ada--2", "ada--2": "ada"}[first]
    files = make_benchmark(work / "run", [other, first], ada)
    forget(f"run/identities/{first}--2.safetensors")
    rest = [one for one in list_files(work / "run") if one != ".lock"]
    assert rest == sorted([*files[other], "run.json", "cells.jsonl"])
    assert json.loads((work / "run" / "run.json").read_text())["subjects"] == [other]
    assert json.loads((work / "run" / "cells.jsonl").read_text()) == {"subject": other}


def test_two_subjects_of_one_run_are_both_taken_out(work):
    folder = work / "run"
    make_benchmark(folder, ["ada", "bob", "cy"])
    traces = list(list_run_traces(folder, ["ada", "bob"]))
    assert len({one.path for one in traces}) == len(traces)
    for trace in traces:
        trace.path.unlink() if trace.clear is None else trace.clear()
    info = json.loads((folder / "run.json").read_text())
    assert (info["subjects"], list(info["photos"])) == (["cy"], ["cy"])
    assert json.loads((folder / "cells.jsonl").read_text()) == {"subject": "cy"}
    assert not [one for one in list_files(folder) if "ada" in one or "bob" in one]


def test_the_second_of_a_group_is_found_when_the_group_is_gone(work, forget, ada):
    folder = work / "run"
    files = make_benchmark(folder, ["ada+bob"], ada)
    (folder / "identities/ada--2.safetensors").unlink()
    take_subjects_out(folder, ["ada"])
    assert json.loads((folder / "run.json").read_text())["subjects"] == []
    forget("run/identities/bob--2.safetensors")
    assert not set(files["bob"]) & set(list_files(folder))
    assert json.loads((folder / "run.json").read_text())["photos"] == {}


def test_what_a_kill_between_the_records_of_a_run_left_is_forgotten_by_the_next_command(work, forget, ada):
    folder = work / "run"
    files = make_benchmark(folder, ["ada+bob", "ada", "cy"], ada)
    identity = folder / "identities/ada--2.safetensors"
    traces, _ = list_traces(read_sought_identity(identity, is_sound=True), [work])
    assert [one.path.name for one in traces[-3:]] == ["cells.jsonl", "run.json", identity.name]
    gone, _ = remove_traces(traces[:-2], identity)
    assert "cells.jsonl" in {one.name for one in gone}
    assert json.loads((folder / "cells.jsonl").read_text()) == {"subject": "cy"}
    assert json.loads((folder / "run.json").read_text())["subjects"] == ["ada+bob", "ada", "cy"]
    forget("run/identities/ada--2.safetensors")
    assert json.loads((folder / "run.json").read_text())["subjects"] == ["cy"]
    assert not set(files["ada"]) & set(list_files(folder))


def test_the_whole_run_is_searched_and_what_names_another_identity_of_the_subject(work, ada):
    """Wherever the command is given, and whichever variant's identity it names."""
    folder = work / "run"
    files = make_benchmark(folder, ["ada", "bob"], ada)
    (folder / "identities/ada--ours-v1.5.safetensors").write_bytes(
        (folder / "identities/ada--2.safetensors").read_bytes().replace(b"person", b"people")
    )
    pages = {"other": "ada--ours-v1.5", "bob": "bob--2"}
    (work / "pages").mkdir()
    for name, stem in pages.items():
        digest = compute_file_digest(folder / f"identities/{stem}.safetensors")
        encode_photo(Image.new("RGB", (19, 23)), [digest]).write(work / "pages" / f"{name}.png")
    sought = read_sought_identity(folder / "identities/ada--2.safetensors", is_sound=True)
    found = {one.path for one in list_traces(sought, [])[0]}
    assert {folder / name for name in files["ada"]} <= found
    assert not found & {folder / name for name in files["bob"]}
    found |= {one.path for one in list_traces(sought, [work / "pages"])[0]}
    assert {one for one in found if one.parent == work / "pages"} == {work / "pages" / "other.png"}


@pytest.fixture
def closed(work):
    """Let nothing be removed from a folder for a block."""

    @contextmanager
    def close(folder):
        folder.chmod(0o500)
        try:
            with obey_permissions():
                yield
        finally:
            folder.chmod(0o700)

    return close


def test_what_could_not_be_removed_from_a_run_is_found_by_the_next_command(work, sefi, forget, ada, closed):
    folder = work / "run"
    files = make_benchmark(folder, ["ada", "bob"], ada)
    shutil.copy(folder / "identities/ada--2.safetensors", folder / "identities/ada--ours-v1.5.safetensors")
    records = [(folder / name).read_text() for name in ("run.json", "cells.jsonl")]
    with closed(folder / "pictures"):
        found = sefi("forget", "run/identities/ada--2.safetensors", "--yes", "--json")
    assert found.exit_code == 1, found.output
    left = {Path(one["file"]).relative_to(folder).as_posix(): one["reason"] for one in json.loads(found.stdout)["left"]}
    labels = ("2", "ours-v1.5")
    stay = {f"identities/ada--{label}{end}.safetensors" for label in labels for end in ("", ".1.0123456789ab")}
    stay |= {"run.json", "cells.jsonl"}
    assert {name for name, reason in left.items() if reason == STAYS} == stay
    assert set(left) - stay == {name for name in files["ada"] if name.startswith("pictures/")}
    assert {name for name in files["ada"] if (folder / name).exists()} == set(left) - {"run.json", "cells.jsonl"}
    assert [(folder / name).read_text() for name in ("run.json", "cells.jsonl")] == records
    forget("run/identities/ada--2.safetensors")
    assert [one for one in list_files(folder) if one != ".lock"] == sorted([*files["bob"], "run.json", "cells.jsonl"])
    assert json.loads((folder / "run.json").read_text())["subjects"] == ["bob"]


@pytest.mark.parametrize(
    ("name", "stay"),
    [
        ("pics", ["pics/a.png", "pics/records.json"]),
        ("page", ["page/.sefi-files.json", "page/index.html", "page/tables.csv", "pics/records.json"]),
    ],
)
def test_what_could_not_be_removed_beside_a_record_or_a_page_is_found_by_the_next_command(
    work, sefi, forget, ada, closed, name, stay
):
    shutil.copy(ada, "ada.safetensors")
    digest = compute_file_digest(ada)
    (work / "pics").mkdir()
    Image.new("RGB", (19, 23), "red").save(work / "pics" / "a.png")
    image = {"file": "a.png", "sha256": compute_file_digest(work / "pics" / "a.png")}
    run = {"images": [image], "run": {"identities": {"ada": digest}, "images": [image]}}
    (work / "pics" / "records.json").write_text(json.dumps({"schema_version": 2, "runs": [run]}))
    page = OwnFiles(work / "page", {"index.html": FileKind.HTML, "tables.csv": FileKind.TEXT})
    (work / "page").mkdir()
    text = f'<!DOCTYPE html><html><meta name="sefi-identities" content="{digest[:DIGITS]}">'
    page.write("index.html", lambda partial: partial.write_text(text))
    page.write("tables.csv", lambda partial: partial.write_text("1,2"))
    with closed(work / name):
        found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 1, found.output
    assert list_files(work) == ["ada.safetensors", *stay]
    forget("ada")
    assert list(work.iterdir()) == []


def test_the_users_own_files_in_a_run_stay_and_are_named(work, forget, ada):
    folder = work / "run"
    make_benchmark(folder, ["ada"], ada)
    own = ["attention/mine.png", "pictures/ada--mine.png", "pictures/ada--2--0--6.png", "report/notes.txt"]
    own += ["pictures/ada--2--00--5.png", "pictures/ada--other--0--5.png", "photos/ada.jpg", "photos/ada--2.png"]
    own += ["identities/ada--notes.txt", "identities/ada--again.safetensors", "report/changed.csv"]
    report = OwnFiles(folder / "report", dict.fromkeys(["index.html", "changed.csv"], FileKind.TEXT))
    (folder / "report").mkdir()
    for name in report.kinds:
        report.write(name, lambda partial: partial.write_text("1,2"))
    for name in own:
        (folder / name).write_text("mine")
    (folder / "attention/ours-v1.5.png").touch()  # as `sefi bench report` names a figure
    _, unproven = list_file_names(forget("run/identities/ada--2.safetensors"))
    rest = set(list_files(folder)) - {".lock", "run.json", "cells.jsonl", "report/.sefi-files.json"}
    assert rest == set(own)
    assert {one.rpartition("/")[2] for one in own} - set(unproven) == {"ada.jpg"}


def test_a_cut_temporary_name_is_removed_only_if_one_subject_can_be_meant(work):
    long = "a" * 38
    make_benchmark(work / "run", [long, f"{long}--2", "b" * 45])
    names = RunNames.read(work / "run")
    pictures = work / "run" / "pictures"
    assert names.find_owner(pictures / f".{'b' * 40}.0123456789ab.partial.png") == "b" * 45
    assert names.find_owner(pictures / f".{long}--.0123456789ab.partial.png") is None
    assert names.find_owner(pictures / f".{'c' * 40}.0123456789ab.partial.png") is None


def test_a_run_that_was_killed_at_once_is_forgotten_at_once(work, forget, ada):
    make_benchmark(work / "run", ["ada"], ada)
    (work / "run" / "cells.jsonl").unlink()
    removed, _ = list_file_names(forget("run/identities/ada--2.safetensors"))
    assert "cells.jsonl" not in removed
    assert json.loads((work / "run" / "run.json").read_text())["subjects"] == []


@given(st.text(max_size=12), st.integers(0, 3), st.integers(0, 2**63 - 1))
@example(".PNG", 0, 0)
def test_the_names_are_those_that_a_benchmark_gives(label, prompt, seed):
    variant = Variant(label=label + "x")
    names = RunNames(
        *map(frozenset, (["a+b"], "ab", [make_slug(label + "x")])),
        frozenset([make_slug(label + "x")]),
        frozenset([(str(prompt), str(seed))]),
    )
    run = RunFolder(Path("run"))
    image, identity = run.locate_image("a+b", variant, prompt, seed), run.locate_identity("a", variant)
    assert [names.find_owner(one) for one in (image, run.locate_maps(image))] == ["a+b", "a+b"]
    files = [identity, locate_costs(identity), locate_checkpoint(identity), run.locate_photo("a")]
    files += [one.with_name(name_partial(one).name) for one in files]
    files.append(identity.with_name(format_shard_name(identity, 3, {})))
    assert {names.find_owner(one) for one in files} == {"a"}


def test_files_of_a_run_of_an_earlier_version_are_known(tmp_path):
    """Its `run.json` calls the variants `ways`."""
    earlier = {**{key: value for key, value in SUITE.items() if key != "variants"}, "ways": VARIANTS}
    for name, suite in (("new", SUITE), ("old", earlier)):
        make_benchmark(tmp_path / name, ["ada", "bob"], suite=suite)
    new, old = (RunNames.read(tmp_path / name) for name in ("new", "old"))
    assert old == new
    assert old.variants == {"ours-v1.5", "2", "again", "w"}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["prompts", "seeds", "variants", "ways"]), JSON),
    st.dictionaries(st.sampled_from(["photos", "folders"]), JSON | st.dictionaries(st.just("x"), JSON)),
    st.lists(JSON, max_size=3),
)
def test_a_run_of_any_shape_is_read_or_passed_over(tmp_path_factory, suite, info, subjects):
    folder = tmp_path_factory.mktemp("run")
    for name in ("photos", "pictures", "identities", "attention", "report"):
        (folder / name).mkdir()
        (folder / name / "mine.txt").touch()
    (folder / "run.json").write_text(json.dumps({"suite": suite, "subjects": subjects, **info}))
    (folder / "cells.jsonl").write_text('{"subject": [1]}\n')
    (folder / "report" / ".sefi-files.json").write_text(json.dumps({"schema_version": 1, "files": subjects}))
    assert find_run_subjects(folder, [folder / "pictures" / "mine.txt"], "ada", frozenset([ADA])) == []
    assert explain_namesake(folder, "eve") is None
    assert list_run_samples(folder, ["eve"]) == frozenset()
    if not read_run_info(folder):  # it is no run
        take_lines_out(folder, ["eve"])
        take_subjects_out(folder, ["eve"])
        return
    assert [one.path.name for one in list_run_traces(folder, ["eve"])] == ["cells.jsonl", "run.json"]
    assert [one.path.name for one in list_run_doubts(folder, ["eve"])] == ["mine.txt"]
    before = json.loads((folder / "run.json").read_text())
    take_lines_out(folder, ["eve"])
    take_subjects_out(folder, ["eve"])
    assert json.loads((folder / "run.json").read_text()) == before


def test_the_other_identities_of_a_subject_are_known_and_nobody_elses(work):
    make_benchmark(work / "run", ["ada", "ada--2"])
    folder = work / "run" / "identities"
    (folder / "ada--mine.safetensors").touch()
    found = [one.name for one in list_variants_of_subject(folder / "ada--2.safetensors")]
    assert found == [f"ada--{end}.safetensors" for end in ("2.1.0123456789ab", "ours-v1.5.1.0123456789ab", "ours-v1.5")]
    assert list_variants_of_subject(folder / "ada--mine.safetensors") == []


def test_another_file_in_the_place_of_a_run_is_not_written_over(work):
    for content in ('{"subjects": ["ada"]}', "{"):
        (work / "run.json").write_text(content)
        (work / "cells.jsonl").write_text('{"subject": "ada"}\n')
        take_lines_out(work, ["ada"])
        take_subjects_out(work, ["ada"])
        assert ((work / "run.json").read_text(), len((work / "cells.jsonl").read_text())) == (content, 19)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_lock_of_a_run_is_a_file_of_its_folder(work, tmp_path, kind):
    """A link there was followed, and a file made wherever it led; a pipe was waited for without end."""
    make_benchmark(work / "run", ["ada"])
    lock, outside = work / "run" / ".lock", tmp_path / "outside"
    lock.unlink(missing_ok=True)
    lock.symlink_to(outside) if kind == "link" else os.mkfifo(lock)
    for take_out in (take_lines_out, take_subjects_out):
        with pytest.raises(OutputError, match=r"its \.lock is no file of a run"):
            take_out(work / "run", ["ada"])
    assert not outside.exists()
