"""A run's folder: cut lines are no cells, and another run is refused."""

import json

import pytest

from sefi.bench.records import RunFolder
from sefi.core.errors import ConfigError

SUITE = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "ways": [{"label": "ours"}], "seeds": [0, 1, 2]}
ABOUT = {
    "schema": 1,
    "suite": SUITE,
    "subjects": ["ada"],
    "model": {"name": "tiny"},
    "versions": {"torch": "1"},
    "tau": None,
}


def cell(seed, **more):
    files = {"kind": "plain", "text": "person", "picture": f"pictures/{seed}.png", "sha256": "00"}
    return {"subject": "ada", "way": "ours", "prompt": 0, "seed": seed, **files, **more}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.begin(ABOUT)
    return made


def test_cells_come_back_in_order(folder):
    cells = [cell(n) for n in range(3)]
    for one in cells:
        folder.add(one)
    assert folder.cells() == cells
    assert folder.about() == ABOUT


def test_a_line_cut_by_a_kill_is_dropped_and_spoils_no_other(folder):
    folder.add(cell(0))
    whole = folder.cells_file.read_bytes()
    folder.cells_file.write_bytes(whole + b'{"way": "ours", "se')
    folder.add(cell(2))
    assert [c["seed"] for c in folder.cells()] == [0, 2]


def test_the_same_run_goes_on_also_with_other_libraries(folder):
    folder.begin({**ABOUT, "versions": {"torch": "2"}})
    assert folder.about()["versions"] == {"torch": "1"}


def test_another_run_is_refused_by_what_differs(folder):
    with pytest.raises(ConfigError, match="suite, tau differ"):
        folder.begin({**ABOUT, "suite": {"name": "t"}, "tau": 0.5})


def test_what_is_no_run_or_a_newer_one_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="is no benchmark run"):
        RunFolder(tmp_path).about()
    folder.about_file.write_text(json.dumps({"schema": 2}))
    with pytest.raises(ConfigError, match="newer sefi"):
        folder.about()
    folder.about_file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        folder.about()


def test_a_cell_that_was_made_twice_counts_once(folder):
    for one in (cell(0, id=0.5), cell(1), cell(0, id=0.7)):
        folder.add(one)
    assert folder.cells() == [cell(0, id=0.5), cell(1)]


def test_what_was_recorded_since_is_read_without_the_line_that_is_being_written(folder):
    folder.add(cell(0))
    place = folder.size()
    assert folder.cells_after(place) == ([], place)
    for one in (cell(1), cell(2)):
        folder.add(one)
    whole = folder.size()
    with folder.cells_file.open("ab") as file:
        file.write(b'{"subject": "ada", "wa')
    assert folder.cells_after(place) == ([cell(1), cell(2)], whole)
    assert folder.cells_after(whole) == ([], whole)


def test_only_one_run_works_in_a_folder(folder):
    with (
        folder.alone(),
        pytest.raises(ConfigError, match="Another run is at work"),
        RunFolder(folder.path).alone(),
    ):
        pass
    with folder.alone():
        folder.add(cell(0))


def test_a_file_in_the_place_of_the_lock_stays_as_it_is(tmp_path):
    (tmp_path / ".lock").write_text("precious")
    with RunFolder(tmp_path).alone():
        pass
    assert (tmp_path / ".lock").read_text() == "precious"
