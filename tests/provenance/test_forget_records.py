"""Which runs and images on record are an identity's, in every version of the records, and what is left of a record."""

import hashlib
import json
import tracemalloc

import pytest
from PIL import Image

from sefi.core.errors import OutputError
from sefi.provenance import forget_records, forget_runs
from sefi.provenance.forget_records import RunsOnRecord, read_runs
from sefi.provenance.forget_runs import (
    GoneLines,
    find_run_subjects,
    is_run_folder,
    list_run_traces,
    take_lines_out,
    take_subjects_out,
    write_other_lines,
)
from sefi.provenance.run_record import record_image
from sefi.provenance.save import encode_photo

SUITE = {"prompts": [{"text": "{} here"}], "seeds": [5], "variants": [{"label": "ours"}]}
ADA, BOB = "a" * 64, "b" * 64


def save_image(path, colour):
    Image.new("RGB", (19, 23), colour).save(path)
    return path


def make_run(folder, name, digest, colours):
    files = [save_image(folder / f"{name}-{number}.png", colour) for number, colour in enumerate(colours)]
    images = [record_image(path.name, path.read_bytes()).model_dump() for path in files]
    return {
        "images": [{"file": path.name, "prompt": f"<{name}>"} for path in files],
        "grid": None,
        "identities": [f"{name}.safetensors"],
        "run": {"kind": "generate", "identities": {name: digest}, "images": images},
    }


def test_runs_are_found_by_the_hash_and_not_by_the_name(tmp_path):
    record = tmp_path / "records.json"
    runs = [make_run(tmp_path, "ada", ADA, ["red", "blue"]), make_run(tmp_path, "bob", BOB, ["red"])]
    runs.append({**make_run(tmp_path, "cy", BOB, []), "identities": ["ada.safetensors"]})
    record.write_text(json.dumps({"schema_version": 2, "runs": runs, "more": 1}))
    found = RunsOnRecord(record, tmp_path / "ada.safetensors", frozenset([ADA]), read_runs(record) or [])
    assert [one.path.name for one in found.list_images(found.list_ours())[0]] == ["ada-0.png", "ada-1.png"]
    found.take_out()
    assert json.loads(record.read_text()) == {"schema_version": 2, "runs": runs[1:], "more": 1}


def test_an_image_that_was_changed_since_is_not_the_identitys(tmp_path):
    record = tmp_path / "records.json"
    record.write_text(json.dumps({"schema_version": 2, "runs": [make_run(tmp_path, "ada", ADA, ["red", "blue"])]}))
    save_image(tmp_path / "ada-1.png", "green")
    found = RunsOnRecord(record, tmp_path / "ada.safetensors", frozenset([ADA]), read_runs(record) or [])
    ours = found.list_ours()
    assert [[one.path.name for one in traces] for traces in found.list_images(ours)] == [["ada-0.png"], ["ada-1.png"]]
    red = hashlib.sha256(bytes([255, 0, 0]) * (19 * 23)).hexdigest()
    assert red in found.list_pixel_digests(ours)


class CountingEntry(dict):
    """What a record says of an image; counts how often it is compared with another."""

    comparisons = 0

    def __eq__(self, other):
        CountingEntry.comparisons += 1
        return super().__eq__(other)

    __hash__ = None


def test_images_of_a_long_run_are_split_without_comparing_them_and_read_once(tmp_path, monkeypatch):
    run = make_run(tmp_path, "ada", ADA, ["red", "blue"])
    run["run"]["settings"] = {"method": "sefi"}
    others = [{"file": f"bob-{number}.png", "prompt": "<bob>"} for number in range(200)]
    run["images"] = [CountingEntry(one) for one in [*others, *run["images"]]]
    save_image(tmp_path / "ada-1.png", "green")
    digests, whole = [], forget_records.compute_file_digest
    monkeypatch.setattr(forget_records, "compute_file_digest", lambda path: digests.append(path.name) or whole(path))
    found = RunsOnRecord(tmp_path / "records.json", tmp_path / "a", frozenset([ADA]), [run], lambda _: True)
    assert found.find_others(run) == {one["file"] for one in others}
    assert [[one.path.name for one in traces] for traces in found.list_images([run])] == [["ada-0.png"], ["ada-1.png"]]
    assert CountingEntry.comparisons == 0
    assert digests == ["ada-0.png", "ada-1.png"]


def make_shared_run(folder):
    """Make the run of ada and bob with an image of each, and one that nobody says the prompt of."""
    run = make_run(folder, "ada", ADA, ["red", "blue", "green"])
    run["images"] = [{"file": "ada-0.png", "prompt": "<ada>"}, {"file": "ada-1.png", "prompt": "<bob>"}]
    run["images"].append({"file": "ada-2.png", "prompt": None})
    run["run"] |= {"identities": {"ada": ADA, "bob": BOB}, "settings": {"method": "sefi"}}
    return run


def test_an_image_shows_somebody_else_alone_only_where_its_prompt_says_so(tmp_path):
    run = make_shared_run(tmp_path)
    found = RunsOnRecord(tmp_path / "records.json", tmp_path / "a", frozenset([ADA]), [run], lambda _: True)
    assert found.find_others(run) == {"ada-1.png"}
    assert [one.path.name for one in found.list_images([run])[0]] == ["ada-0.png", "ada-2.png"]
    colours = [(255, 0, 0), (0, 128, 0)]  # of what shows ada, as bytes
    assert found.list_pixel_digests([run]) == {hashlib.sha256(bytes(one) * (19 * 23)).hexdigest() for one in colours}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (["a.safetensors", "b.safetensors"], ["b.safetensors"]),
        (["a.safetensors"], []),
        (["x.safetensors", "a.safetensors", "b.safetensors"], []),
    ],
)
def test_what_is_left_of_a_run_names_no_file_that_may_be_the_identitys(tmp_path, files, left):
    run = {**make_shared_run(tmp_path), "identities": files}
    found = RunsOnRecord(tmp_path / "records.json", tmp_path / "a", frozenset([ADA]), [run], lambda _: True)
    rest = found.drop_identity(run)
    assert rest is not None
    assert (rest["identities"], rest["run"]["identities"]) == (left, {"bob": BOB})
    assert [one["file"] for one in rest["images"]] == [one["file"] for one in rest["run"]["images"]] == ["ada-1.png"]


@pytest.mark.parametrize("alone", [True, False])
def test_records_of_before_are_read_by_the_path(tmp_path, monkeypatch, alone):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "ada.safetensors").touch()
    encode_photo(Image.new("RGB", (19, 23)), [ADA]).write(tmp_path / "out" / "x.png")
    run = {"images": [{"file": "out/x.png"}], "identities": ["../ada.safetensors"], "grid": "out/grid.png"}
    record = tmp_path / "out" / "records.json"
    record.write_text(json.dumps(run if alone else {"schema_version": 1, "runs": [run]}))
    found = RunsOnRecord(record, tmp_path / "ada.safetensors", frozenset([ADA]), read_runs(record) or [])
    assert [one.path.name for one in found.list_images(found.list_ours())[0]] == ["x.png"]
    found.take_out()
    assert not record.exists()
    record.write_text(json.dumps({"schema_version": 1, "runs": [{**run, "identities": ["bob.safetensors"]}]}))
    found = RunsOnRecord(record, tmp_path / "ada.safetensors", frozenset([ADA]), read_runs(record) or [])
    assert not found.list_ours()


def make_benchmark(folder, subjects):
    folder.mkdir()
    keys = [key for group in subjects for key in group.split("+")]
    info = {"schema": 2, "suite": SUITE, "subjects": subjects, "photos": {key: ["0" * 16] for key in keys}}
    (folder / "run.json").write_text(json.dumps(info))
    lines = [json.dumps({"subject": group, "text": "line\u2028end"}, ensure_ascii=False) for group in subjects]
    (folder / "cells.jsonl").write_text("\n".join([*lines, '{"subject": "ada", "cut']), encoding="utf-8")
    return folder


def test_a_subject_goes_with_the_groups_that_it_is_in(tmp_path):
    folder = make_benchmark(tmp_path / "run", ["ada+bob", "cy+dora"])
    assert is_run_folder(folder)
    assert find_run_subjects(folder, [folder / "identities" / "ada--ours.safetensors"], "x", frozenset()) == ["ada"]
    assert find_run_subjects(folder, [folder / "pictures" / "ada+bob--ours--0--5.png"], "bob", frozenset()) == ["bob"]
    take_lines_out(folder, ["ada"])
    take_subjects_out(folder, ["ada"])
    info = json.loads((folder / "run.json").read_text())
    assert (info["subjects"], sorted(info["photos"])) == (["cy+dora"], ["bob", "cy", "dora"])
    rest = (folder / "cells.jsonl").read_text(encoding="utf-8")
    assert json.loads(rest) == {"subject": "cy+dora", "text": "line\u2028end"}


def test_images_of_other_programs_go_with_the_subject_and_its_groups(tmp_path):
    folder = make_benchmark(tmp_path / "run", ["ada", "ada+bob", "bob"])
    info = json.loads((folder / "run.json").read_text())
    images = [{"subject": one, "sha256": one} for one in ("ada", "ada+bob", "bob", "ada--2")]
    (folder / "run.json").write_text(json.dumps({**info, "folders": {"theirs": {"name": "x", "images": images}}}))
    take_subjects_out(folder, ["ada"])
    assert json.loads((folder / "run.json").read_text())["folders"] == {"theirs": {"name": "x", "images": images[2:]}}


def test_the_lines_of_a_subject_are_taken_out_of_a_record_of_any_size(tmp_path):
    """The record of a large run has gigabytes: one line is in memory at a time."""
    record = tmp_path / "cells.jsonl"
    lines = [json.dumps({"subject": name, "text": "x" * 4000}) + "\n" for name in ("bob", "ada") * 1000]
    record.write_text("".join(lines))
    tracemalloc.start()
    write_other_lines(record, ["ada"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record.read_text() == lines[0] * 1000
    assert peak < 2**20


def test_each_record_of_a_benchmark_is_cleared_by_itself_and_its_lines_are_parsed_once(tmp_path, monkeypatch):
    folder = make_benchmark(tmp_path / "run", ["cy+dora", "ada+bob", "bob"])
    samples, info = list(list_run_traces(folder, ["ada"]))
    assert [one.path.name for one in (samples, info)] == ["cells.jsonl", "run.json"]
    before, parsed, whole = (folder / "run.json").read_bytes(), [], GoneLines.has_line
    monkeypatch.setattr(GoneLines, "has_line", lambda gone, line: parsed.append(line) or whole(gone, line))
    samples.clear()
    lines = (folder / "cells.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["cy+dora", "bob"]
    assert (folder / "run.json").read_bytes() == before
    assert len(parsed) == len(set(parsed)) + 1  # the first of its lines is found, and then left out
    parsed.clear()
    info.clear()
    assert json.loads((folder / "run.json").read_text())["subjects"] == ["cy+dora", "bob"]
    assert parsed == []


def test_samples_that_cannot_be_read_are_named_as_what_they_are(tmp_path, monkeypatch):
    folder = make_benchmark(tmp_path / "run", ["ada"])

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(forget_runs, "find_gone_line", fail)
    with pytest.raises(OutputError, match=r"cells.jsonl' cannot be read: Input/output error. It may have lines"):
        take_lines_out(folder, ["ada"])


def test_what_is_no_benchmark_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"subjects": "ada"}')
    assert not is_run_folder(tmp_path)
    assert find_run_subjects(tmp_path, [], "ada", frozenset()) == []
