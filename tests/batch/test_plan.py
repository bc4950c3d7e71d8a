"""What a folder or a table asks for: who it is, what cannot be, and what makes an item another one."""

import csv
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings as example_settings, strategies as st
from tests.batch.conftest import CONSENT, make_photos

from sefi.batch.plan import (
    COLUMNS,
    BatchItem,
    ItemProblem,
    ItemRecord,
    ItemState,
    ModelSource,
    find_problem,
    format_failures,
    hash_photo,
    hash_values,
    make_item_name,
    make_plan,
    read_item_record,
    read_people,
    write_item_record,
)
from sefi.core.config import override
from sefi.core.errors import ConfigError, OutputError, PhotoError
from sefi.core.progress import SilentProgress
from sefi.core.prompts import check_name
from sefi.methods import PRESETS

TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters=";"), max_size=12).map(str.strip)


def plan(settings, table=None, **changes):
    return make_plan(replace(settings, **changes), table, SilentProgress())


def write_table(folder, *rows, header="name,photo,class_word,consent,seed,face"):
    path = folder / "people.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def key_of(settings, name="ada", **changes):
    return next(item.key for item in plan(settings, **changes).items if item.name == name)


# ------------------------------------------------------------------ the folder


def test_each_photo_and_each_folder_of_photos_is_somebody(settings):
    make_photos(settings.photos / "cy & co", ("2", "10"))
    (settings.photos / "empty").mkdir()
    make_photos(settings.photos / "cy & co" / "2026")
    (settings.photos / "notes.txt").write_text("of my own")
    (settings.photos / ".hidden.png").write_bytes(b"")
    for name in ("cy & co/3.tif", "empty/1.tif", "empty/.hidden", "dora.tiff"):
        (settings.photos / name).write_bytes(b"")
    found = plan(settings)
    assert {item.name: [photo.name for photo in item.photos] for item in found.items} == {
        "ada": ["ada.png"],
        "bob": ["bob.png"],
        "cy-co": ["10.png", "2.png"],
    }
    assert found.ignored == ("cy & co/2026/", "cy & co/3.tif", "dora.tiff", "empty/1.tif", "notes.txt")
    assert not found.problems


def test_a_folder_of_other_formats_alone_says_so(settings):
    for photo in settings.photos.iterdir():
        photo.rename(photo.with_suffix(".tif"))
    (settings.photos / "notes.txt").touch()
    with pytest.raises(PhotoError, match=r"has no photos; of formats that are not read: ada.tif, bob.tif\."):
        plan(settings)


def test_a_folder_of_folders_of_photos_says_that_they_are_not_read(settings):
    for photo in settings.photos.iterdir():
        photo.unlink()
    (settings.photos / "family").mkdir()
    make_photos(settings.photos / "family" / "ada")
    with pytest.raises(PhotoError, match=r"has no photos; folders in folders, which are not read: family/ada\."):
        plan(settings)


def test_a_photo_whose_name_gives_none_says_so(settings):
    make_photos(settings.photos, ["李"])
    [problem] = plan(settings).problems
    assert problem.problem == "'李.png' has no letter a to z and no digit, so no name can be made of it."
    assert "--from" in problem.remedy


@pytest.fixture
def forbid(monkeypatch):
    """Let a folder refuse to be listed, as those of another user do; whoever runs the tests may read every one."""
    listed = Path.iterdir

    def forbid(folder):
        def refuse_or_list(path):
            if path == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(Path, "iterdir", refuse_or_list)

    return forbid


def test_a_folder_that_cannot_be_read_is_a_problem_and_stops_nothing(settings, forbid):
    (settings.photos / "lost+found").mkdir()
    make_photos(settings.photos, ["lost-found"])
    forbid(settings.photos / "lost+found")
    found = plan(settings)
    assert [item.name for item in found.items] == ["ada", "bob", "lost-found"]
    [problem] = found.problems
    assert (problem.name, problem.photos) == ("lost-found", ("lost+found",))
    assert problem.problem == f"'{settings.photos / 'lost+found'}' cannot be read: Permission denied."


def test_an_error_that_names_a_file_of_no_utf8_can_be_written(settings, forbid):
    closed = settings.photos / "zo\udceb"
    closed.mkdir()
    forbid(closed)
    [problem] = plan(settings).problems
    assert problem.problem == f"'{settings.photos}/zo\\udceb' cannot be read: Permission denied."


def test_a_folder_of_photos_that_cannot_be_read_is_refused(settings, forbid):
    forbid(settings.photos)
    with pytest.raises(PhotoError, match=r"cannot be read: Permission denied"):
        plan(settings)


def test_two_photos_of_one_name_are_one_item_and_one_problem(settings):
    os.link(settings.photos / "ada.png", settings.photos / "ADA.jpg")
    found = plan(settings)
    assert [item.name for item in found.items] == ["ADA", "bob"]
    assert [one.photos for one in found.problems] == [("ada.png",)]


@given(st.text(max_size=90))
@example_settings(max_examples=40)
def test_a_name_made_of_a_files_is_one_that_prompts_take(text):
    name = make_item_name(text)
    if name:
        check_name(name)


def test_a_folder_without_photos_is_refused(settings, tmp_path):
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "missing"):
        with pytest.raises(PhotoError):
            plan(settings, photos=folder)


# ------------------------------------------------------------------ the table


def test_a_table_says_who_is_in_which_photos(settings, tmp_path):
    table = write_table(
        tmp_path,
        "rex,ada.png; bob.png,old dog,,7,",
        "bo,ada.png,cat,by=Bo; for=pet; scope=all; date=2026-03-04,,".replace(",by=Bo", ',"by=Bo').replace(
            "03-04,", '03-04",'
        ),
        ",,,,,",
        "bo,bob.png,,,,",
    )
    rex, bo = plan(settings, table, seed=5).items
    assert [photo.name for photo in rex.photos] == [photo.name for photo in bo.photos] == ["ada.png", "bob.png"]
    assert (rex.config.learn.class_word, rex.seed, rex.consent) == ("old dog", 7, CONSENT)
    assert (bo.config.learn.class_word, bo.seed) == ("cat", 5)
    assert bo.consent == "by=Bo; for=pet; scope=all; date=2026-03-04"


@given(
    st.lists(st.tuples(TEXT.filter(bool), TEXT.filter(bool), TEXT), min_size=1, max_size=7, unique_by=lambda r: r[0])
)
@example_settings(max_examples=40)
def test_what_a_program_wrote_as_csv_is_read_back(tmp_path_factory, rows):
    text = io.StringIO()
    csv.writer(text).writerows([("name", "photo", "class_word"), *rows])
    path = tmp_path_factory.mktemp("table") / "people.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    assert [(one.name, one.photos[0], one.values.get("class_word", "")) for one in read_people(path)] == rows


@pytest.mark.parametrize(
    "content",
    [
        b"name,photo,colour\nada,ada.png,red\n",
        b"name\nada\n",
        b"name,photo,name\nada,ada.png,ada\n",
        b"name;photo\nada;ada.png\n",
        b"name,photo\nada,ada.png,7\n",
        b"name,photo\nada\n",
        b'name,photo\n"ada,ada.png\n',
        b"name,photo\n\xff,ada.png\n",
        b"",
    ],
)
def test_a_table_of_another_form_is_refused_as_a_whole(settings, tmp_path, content):
    path = tmp_path / "people.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"people\.csv") as refusal:
        plan(settings, path)
    assert all(words in refusal.value.remedy for words in ("UTF-8", "commas", "name,photo"))


def test_a_column_between_tabs_is_named_as_it_is(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"it has a column 'name\\tphoto'"):
        plan(settings, write_table(tmp_path, "ada\tada.png", header="name\tphoto"))


def test_a_table_that_is_not_there_is_no_matter_of_its_lines(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"There is no table") as refusal:
        plan(settings, tmp_path / "people.csv")
    assert "--from" in refusal.value.remedy


def test_a_table_that_is_too_large_is_not_read(settings, tmp_path):
    path = tmp_path / "people.csv"
    path.touch()
    os.truncate(path, 1 << 34)
    with pytest.raises(ConfigError):
        plan(settings, path)


@pytest.mark.parametrize(
    "row",
    [
        "a da,ada.png,,,,",
        "BOB,ada.png,,,,",
        "eve,../secret.png,,,,",
        "eve,/etc/hostname,,,,",
        "eve,link.png,,,,",
        "eve,missing.png,,,,",
        "eve,,,,,",
        "eve,ada.png,,,-1,",
        "eve,ada.png,,,9999999999999999999,",
        "eve,ada.png,,,,0",
        "eve,ada.png,,,,1",  # a dog has no face
        "eve,ada.png;bob.png,woman,,,1",
        "eve,ada.png,,by=Eve,,",
        'eve,ada.png,,"by=E; for=self; scope=x; date=2020-01-01; expires=2020-02-02",,',
        "eve,ada.png,,,1,\neve,bob.png,,,2,",
    ],
)
def test_a_row_that_cannot_be_is_a_problem_and_the_others_are_items(settings, tmp_path, row):
    (tmp_path / "secret.png").write_bytes(b"")
    (settings.photos / "link.png").symlink_to(tmp_path / "secret.png")
    found = plan(settings, write_table(tmp_path, "bob,bob.png,,,,", row))
    assert [item.name for item in found.items] == ["bob"]
    [problem] = found.problems
    assert problem.name == row.split(",")[0]
    assert "--face" not in problem.problem + problem.remedy  # a batch has a column for it
    if problem.photos in (("link.png",), ("../secret.png",), ("/etc/hostname",)):
        assert "leads out of the folder" in problem.problem


def test_settings_are_checked_with_the_class_word_of_each_row(settings, tmp_path):
    """The command's own word is refused for these; rows may have others."""
    config = override(settings.config, ["learn.outside_weight=0.5"])
    found = plan(settings, write_table(tmp_path, "ada,ada.png,woman,,,", "bob,bob.png,,,,"), config=config)
    assert [item.name for item in found.items] == ["ada"]
    [problem] = found.problems
    assert problem.name == "bob"
    assert problem.problem == "learn.outside_weight needs a face, and 'dog' is no word for a person."


def test_a_photo_of_the_folder_may_be_named_by_its_whole_path(settings, tmp_path, monkeypatch):
    make_photos(settings.photos / "more", ["cy"])
    (tmp_path / "link").symlink_to(settings.photos)
    whole, linked = settings.photos / "ada.png", tmp_path / "link" / "more" / "cy.png"
    table = write_table(tmp_path, f"ada,{whole};{linked},,,,", "bob,more/../bob.png,,,,")
    monkeypatch.chdir(tmp_path)
    for folder in (settings.photos, Path("photos"), tmp_path / "link"):
        ada, bob = plan(settings, table, photos=folder).items
        assert ada.photo_names == ("ada.png", str(Path("more") / "cy.png"))
        assert bob.photo_names == ("more/../bob.png",)
        assert all(photo.is_file() for photo in (*ada.photos, *bob.photos))


def test_consent_is_needed_in_each_row_or_for_all_but_on_the_embedded_model(settings, tmp_path):
    table = write_table(tmp_path, f'ada,ada.png,,"{CONSENT}",,', "bob,bob.png,,,,")
    assert [one.name for one in plan(settings, table, consent=None).problems] == ["bob"]
    assert not plan(settings, table).problems
    assert not plan(settings, table, consent=None, model=ModelSource("tiny-portraits", is_embedded=True)).problems


# ------------------------------------------------------------------ keys and records


def test_a_key_changes_with_what_decides_the_result_and_with_nothing_else(settings):
    before = key_of(settings)
    same = ModelSource("test", is_embedded=False, device="cuda:1", download=True)
    assert key_of(settings, model=same, tries=9, preview="a {} at the beach", mark=False) == before
    other = [
        {"seed": 1},
        {"config": override(settings.config, ["learn.steps=4"])},
        {"consent": CONSENT.replace("tests", "all")},
        {"crop": False},
        {"model": replace(settings.model, name="another")},
        {"model": replace(settings.model, dtype="float16")},
    ]
    keys = [key_of(settings, **changes) for changes in other]
    (settings.photos / "ada.png").write_bytes((settings.photos / "bob.png").read_bytes())
    assert len({before, *keys, key_of(settings)}) == len(other) + 2
    assert key_of(settings) != key_of(settings, "bob")


def test_another_model_in_a_folder_is_noticed_by_its_files(settings, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "unet.safetensors").write_bytes(b"1234")
    source = replace(settings.model, name=str(model))
    before = key_of(settings, model=source)
    (model / "unet.safetensors").write_bytes(b"12345")
    assert key_of(settings, model=source) != before


def test_another_content_of_a_named_file_makes_another_item(settings, tmp_path):
    names, detector = tmp_path / "names.txt", tmp_path / "faces.onnx"
    detector.write_bytes(b"1234")
    names.write_text("ada lane\n")
    for changes, file in (
        ({"config": override(PRESETS["cross-init"], [f"basis.names={names}"])}, names),
        ({"detector": detector, "config": override(settings.config, ["learn.class_word=person"])}, detector),
    ):
        before = key_of(settings, **changes)
        assert key_of(settings, **changes) == before
        file.write_bytes(file.read_bytes()[::-1])  # of the same size
        assert key_of(settings, **changes) != before


def test_what_names_no_file_has_the_key_of_earlier_versions(settings):
    """So nobody is learned again."""
    source = ["test", [], "auto", True, [None, None]]
    digest = hash_photo(settings.photos / "ada.png")
    values = ["ada", [digest], settings.config.model_dump(mode="json"), 0, None, CONSENT, source]
    assert key_of(settings) == hash_values(values)


def make_record(**facts):
    return ItemRecord(**{"name": "ada", "key": "a" * 64, "state": ItemState.STARTED, "tries": 3, **facts})


def test_tries_count_that_did_not_come_further_and_did_not_end_with_the_whole_batch(settings):
    item = BatchItem("ada", (), settings.config, key="a" * 64)

    def is_tried(step=0, **facts):
        return find_problem(make_record(**facts), item, settings, step) is None

    assert is_tried(tries=2)
    assert not is_tried(alone=True)
    assert is_tried(alone=True, step=1)
    assert not is_tried(alone=True, step=1, tries=4)
    assert is_tried(alone=False)  # the workers' parent was killed, or it would have said so
    assert not is_tried(state=ItemState.FAILED)
    assert not is_tried(state=ItemState.REFUSED, tries=1, any_style=True)
    assert is_tried(state=ItemState.REFUSED, tries=1)  # with --any-style now
    assert is_tried(state=ItemState.FAILED, key="b" * 64)
    assert is_tried(state=ItemState.WAITING)


def test_a_record_is_read_back_and_a_damaged_one_is_an_error(settings):
    record = make_record(remarks=("small",), run={"kind": "learn"}, seconds=1.5)
    write_item_record(settings.folder, record)
    assert read_item_record(settings.folder, "ada") == record
    assert read_item_record(settings.folder, "bob") is None
    path = settings.folder / "records" / "ada.json"
    for text in ("{", "{}", path.read_text().replace('"tries"', '"trials"')):
        path.write_text(text)
        with pytest.raises(OutputError):
            read_item_record(settings.folder, "ada")


def test_a_record_holds_any_error_and_says_that_it_is_cut(settings):
    record = make_record().change(
        problem="x" * 20_000, remedy="zo\udceb", photos=("y" * 20_000,), state=ItemState.FAILED
    )
    write_item_record(settings.folder, record)
    found = read_item_record(settings.folder, "ada")
    assert (len(found.problem), found.problem[-2:], found.remedy) == (10_000, "x…", "zo\\udceb")
    assert (len(found.photos[0]), found.state) == (10_000, ItemState.FAILED)


def test_the_table_of_failures_is_no_formula_and_no_control_code():
    problems = [
        ItemProblem("zoe", ("=1+1.png", "b\x1b.png"), "It is, well, damaged.", "Copy it.", 3),
        ItemProblem("-ann", ("a.png",), "x", "y", put_aside=False),
    ]
    rows = list(csv.reader(io.StringIO(format_failures(problems))))
    assert rows[0] == ["name", "photo", "tries", "put_aside", "problem", "try"]
    assert rows[1:] == [
        ["'-ann", "a.png", "0", "no", "x", "y"],
        ["zoe", "'=1+1.png;b\\x1b.png", "3", "yes", "It is, well, damaged.", "Copy it."],
    ]
    assert set(COLUMNS[:2]) <= {"name", "photo"}
