"""A run's folder: cut lines are no samples, and another run is refused."""

import json
import os
import resource
import signal
from contextlib import nullcontext
from multiprocessing import get_context

import pytest

from sefi.benchmark import run
from sefi.benchmark.records import RUN_SCHEMA, RunInfo, Sample
from sefi.benchmark.run import RunFolder
from sefi.core.errors import ConfigError, OutputError
from sefi.provenance.run_record import RunRecord

SUITE = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "variants": [{"label": "ours"}], "seeds": [0, 1, 2]}
VALUES = {
    "schema": 1,
    "suite": SUITE,
    "subjects": ["ada"],
    "model": {"name": "tiny"},
    "versions": {"torch": "1"},
    "tau": None,
}
INFO = RunInfo.model_validate(VALUES)


def sample(seed, **more):
    files = {"kind": "plain", "text": "person", "image": f"pictures/{seed}.png", "sha256": "00"}
    return Sample(**{"subject": "ada", "variant": "ours", "prompt": 0, "seed": seed, **files, **more})


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.begin(INFO)
    return made


def test_cells_come_back_in_order(folder):
    samples = [sample(n) for n in range(3)]
    for one in samples:
        folder.add(one)
    assert folder.read_samples() == samples
    assert folder.read_info() == INFO


def test_a_line_cut_by_a_kill_is_dropped_and_spoils_no_other(folder):
    folder.add(sample(0))
    whole = folder.samples_file.read_bytes()
    folder.samples_file.write_bytes(whole + b'{"variant": "ours", "se')
    folder.add(sample(2))
    assert [c.seed for c in folder.read_samples()] == [0, 2]


def add_on_a_full_disk(folder, size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    with pytest.raises(OutputError, match="cannot be written"):
        folder.add(sample(1))


@pytest.mark.parametrize("more", [0, 1, 60])
def test_a_disk_that_is_full_within_a_line_leaves_the_record_as_it_was(folder, more):
    folder.add(sample(0))
    whole = folder.samples_file.read_bytes()
    child = get_context("fork").Process(target=add_on_a_full_disk, args=(folder, len(whole) + more))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert folder.samples_file.read_bytes() == whole


def test_a_line_that_cannot_be_flushed_is_taken_back(folder, monkeypatch):
    folder.add(sample(0))
    whole = folder.samples_file.read_bytes()

    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(run.os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        folder.add(sample(1))
    assert folder.samples_file.read_bytes() == whole


def test_the_same_run_goes_on_also_with_other_libraries(folder):
    folder.begin(INFO.model_copy(update={"versions": {"torch": "2"}}))
    assert folder.read_info().versions == {"torch": "1"}


def test_a_run_of_before_goes_on_on_another_machine_and_in_another_place(folder):
    model = {"name": "/elsewhere/tiny", "fingerprint": "unknown"}
    folder.info_file.write_text(RunInfo.model_validate({**VALUES, "model": model}).dump())
    record = RunRecord(kind="bench", threads=3)
    folder.begin(RunInfo.model_validate({**VALUES, "schema": 2, "record": record}))
    assert folder.read_info().record is None
    with pytest.raises(ConfigError, match="differs in model"):
        folder.begin(RunInfo.model_validate({**VALUES, "model": {**model, "name": "other"}}))


def test_a_run_goes_on_whose_record_has_the_settings_of_all_methods(folder, tmp_path):
    now = RunInfo.model_validate({**VALUES, "settings": {"ours": {"method": "sefi", "learn": {"steps": 3}}}})
    before = {"ours": {"method": "sefi", "learn": {"steps": 3}, "tune": {"rank": 4}, "basis": {"names": None}}}
    earlier = RunFolder(tmp_path / "earlier")
    earlier.begin(RunInfo.model_validate({**VALUES, "settings": before}))
    earlier.begin(now)
    before["ours"]["learn"]["steps"] = 4
    earlier.info_file.write_text(RunInfo.model_validate({**VALUES, "settings": before}).dump())
    with pytest.raises(ConfigError, match="differs in settings"):
        earlier.begin(now)


def test_a_run_does_not_go_on_without_a_setting_that_it_was_begun_with(tmp_path):
    now = {"method": "dreambooth", "learn": {"steps": 3}, "tune": {"rank": 4}}
    of_others = {**now, "learn": {"steps": 3, "residual_init": True}}  # which methods that learn tokens have
    for number, (gone, goes_on) in enumerate([(of_others, True), ({**now, "learn": {"steps": 3, "gone": 1}}, False)]):
        folder = RunFolder(tmp_path / str(number))
        folder.begin(RunInfo.model_validate({**VALUES, "settings": {"ours": gone}}))
        with nullcontext() if goes_on else pytest.raises(ConfigError, match="differs in settings"):
            folder.begin(RunInfo.model_validate({**VALUES, "settings": {"ours": now}}))


def test_another_run_is_refused_by_what_differs(folder):
    with pytest.raises(ConfigError, match=r"another run, which differs in suite\.name, suite\.seeds, tau\."):
        folder.begin(RunInfo.model_validate({**VALUES, "suite": SUITE | {"name": "t", "seeds": [9]}, "tau": 0.5}))


def test_a_run_does_not_go_on_with_other_files_to_learn_with(tmp_path):
    files = {"settings": {"ours": {"basis.names": "aa"}}, "evaluators": {"clip": "bb", "face_detection.onnx": "cc"}}
    known, unknown = VALUES | {"learning_files": files}, VALUES | {"learning_files": None}
    for number, first in enumerate((known, unknown)):
        folder = RunFolder(tmp_path / str(number))
        folder.begin(RunInfo.model_validate(first))
        for then in (known, unknown):
            folder.begin(RunInfo.model_validate(then))
    other = {"settings": {"ours": {"basis.names": "ab"}}, "evaluators": {"clip": "bb"}}
    with pytest.raises(ConfigError, match=r"differs in basis\.names of ours, evaluator face_detection\.onnx\."):
        RunFolder(tmp_path / "0").begin(RunInfo.model_validate(VALUES | {"learning_files": other}))
    RunFolder(tmp_path / "1").begin(RunInfo.model_validate(VALUES | {"learning_files": other}))


def test_what_is_no_run_or_a_newer_one_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="is no benchmark run"):
        RunFolder(tmp_path).read_info()
    folder.info_file.write_text(json.dumps({"schema": RUN_SCHEMA + 1}))
    with pytest.raises(ConfigError, match="newer sefi"):
        folder.read_info()
    folder.info_file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        folder.read_info()


def test_a_cell_that_was_made_twice_counts_once(folder):
    for one in (sample(0, id=0.5), sample(1), sample(0, id=0.7)):
        folder.add(one)
    assert folder.read_samples() == [sample(0, id=0.5), sample(1)]


def test_what_was_recorded_since_is_read_without_the_line_that_is_being_written(folder):
    folder.add(sample(0))
    place = folder.measure_size()
    assert folder.read_samples_after(place) == ([], place)
    for one in (sample(1), sample(2)):
        folder.add(one)
    whole = folder.measure_size()
    with folder.samples_file.open("ab") as file:
        file.write(b'{"subject": "ada", "wa')
    assert folder.read_samples_after(place) == ([sample(1), sample(2)], whole)
    assert folder.read_samples_after(whole) == ([], whole)


def test_only_one_run_works_in_a_folder(folder):
    with (
        folder.lock(),
        pytest.raises(ConfigError, match="Another run is at work"),
        RunFolder(folder.path).lock(),
    ):
        pass
    with folder.lock():
        folder.add(sample(0))


def test_a_file_in_the_place_of_the_lock_stays_as_it_is(tmp_path):
    (tmp_path / ".lock").write_text("precious")
    with RunFolder(tmp_path).lock():
        pass
    assert (tmp_path / ".lock").read_text() == "precious"


def spoil(folder, line, at):
    """Put a line into the record as its line `at`, counted from 1."""
    lines = folder.samples_file.read_bytes().splitlines(keepends=True)
    folder.samples_file.write_bytes(b"".join([*lines[: at - 1], line, *lines[at - 1 :]]))


@pytest.mark.parametrize(
    "line", [b'{"subject": 3}\n', b'{"a": "' + b"x" * 2**18 + b'"}\n'], ids=["no record", "too long"]
)
@pytest.mark.parametrize("read", [0, 1, 3], ids=lambda n: f"{n} read before")
def test_a_damaged_line_is_named_by_its_number_in_the_file(folder, monkeypatch, line, read):
    monkeypatch.setattr(run, "CHUNK", 100)
    for n in range(read):
        folder.add(sample(n))
    place = folder.measure_size()
    for n in range(2):
        folder.add(sample(n))
    spoil(folder, b'{"half": \n', read + 1)  # a line that a kill cut counts
    spoil(folder, line, read + 3)
    for call, remedy in (
        (folder.read_samples, "Remove that line"),
        (lambda: folder.read_samples_after(place), "Stop the run. Remove"),
    ):
        with pytest.raises(ConfigError, match=rf"is damaged: line {read + 3}: ") as caught:
            call()
        assert caught.value.remedy.startswith(remedy)


def test_an_image_of_another_run_has_its_own_remedy(folder):
    folder.add(sample(0, subject="bob"))
    with pytest.raises(ConfigError, match="no subject 'bob'") as caught:
        folder.read_samples()
    assert "lines of such images" in caught.value.remedy


def test_an_image_of_a_seed_that_was_not_asked_for_changes_no_mean(folder):
    for seed in (0, 1, 2, 3):
        folder.add(sample(seed, id=0.5 if seed < 3 else 1.0))
    with pytest.raises(ConfigError, match=r"no seed 3 in run\.json"):
        folder.read_samples()


def test_a_file_system_without_locks_is_no_other_run(folder, monkeypatch):
    def none(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run, "take_lock", none)
    with folder.lock():
        folder.add(sample(0))


FOLDERS = ["pictures", "photos", "identities", "attention", "report"]


def test_these_are_the_folders_of_a_run(folder):
    assert [path.name for path in folder.list_folders()] == FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_files_of_others_is_no_run(tmp_path, name):
    (tmp_path / name).mkdir()
    run = RunFolder(tmp_path)
    run.check()
    (tmp_path / name / "mine.html").write_text("mine")
    with pytest.raises(OutputError, match=f"{name}' exists and belongs to no run"):
        run.check()
    with pytest.raises(OutputError, match="belongs to no run"):
        run.begin(INFO)
    assert not run.info_file.exists()


@pytest.mark.parametrize("name", ["run.json", "cells.jsonl", ".lock"])
def test_what_a_run_adds_to_is_a_file_of_its_folder(folder, tmp_path, name):
    """A pipe there was waited for without end, and a line of each image was added to what a link led to."""
    outside, path = tmp_path / "notes.txt", folder.path / name
    outside.write_text("mine\n")
    folder.check()
    away = (lambda: path.symlink_to(outside), lambda: path.symlink_to(tmp_path / "none"))
    for make in (lambda: os.mkfifo(path), path.mkdir, *away):
        path.unlink(missing_ok=True)
        make()
        with pytest.raises(OutputError, match=f"{name}' is no file of a run"):
            folder.check()
        path.rmdir() if path.is_dir() else path.unlink()
    inside = folder.path / "elsewhere"
    inside.touch()
    path.symlink_to(inside)
    folder.check()


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_run_writes_into_is_a_folder_of_its_own(folder, tmp_path, name):
    """A link was followed: images, identities and figures of a run were written to wherever it led."""
    outside, inside, path = tmp_path / "outside", folder.path / "inside", folder.path / name
    outside.mkdir()
    inside.mkdir()
    if path.is_dir():
        path.rmdir()
    links = [lambda to=to: path.symlink_to(to) for to in (outside, tmp_path / "none", "none", name)]
    for make in (*links, path.touch, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(OutputError, match=f"{name}' is no folder of a run"):
            folder.check()
        with pytest.raises(OutputError, match=f"{name}' is no folder of a run"):
            folder.begin(INFO)
        path.unlink()
    path.symlink_to(inside)
    folder.check()
    assert list(outside.iterdir()) == []


def test_the_folder_of_a_run_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder.path)
    RunFolder(tmp_path / "link").begin(INFO)
