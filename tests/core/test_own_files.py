"""A command replaces unasked what it wrote itself, and nothing else."""

import json

import pytest

from sefi.core import files, own_files
from sefi.core.errors import OutputError
from sefi.core.files import FileKind, make_text_writer
from sefi.core.own_files import RECORD, OwnFiles

KINDS = {"index.html": FileKind.HTML, "table.csv": FileKind.TEXT}
STRANGE = ("../index.html", "/tmp/index.html", "sub/index.html", "index.html/", "./index.html", "..", ".", "", "a\0b")
PAGE, OTHER = "<!doctype html>1", "<!doctype html>2"


@pytest.fixture
def own(tmp_path):
    made = OwnFiles(tmp_path, KINDS)
    made.check()
    made.write("index.html", make_text_writer(PAGE))
    return made


def page(own):
    return (own.folder / "index.html").read_text()


def test_what_was_written_is_replaced_unasked(own):
    for text in (OTHER, PAGE, PAGE):
        again = OwnFiles(own.folder, KINDS)
        again.check()
        again.write("index.html", make_text_writer(text))
        assert page(own) == text
    assert sorted(path.name for path in own.folder.iterdir()) == [RECORD, "index.html"]


@pytest.mark.parametrize("act", ["check", "write"])
def test_what_was_changed_stays_unless_asked(own, act):
    (own.folder / "index.html").write_text("<!doctype html>mine")
    with pytest.raises(OutputError, match="was changed since sefi wrote it"):
        own.check() if act == "check" else own.write("index.html", make_text_writer(OTHER))
    assert page(own) == "<!doctype html>mine"
    asked = OwnFiles(own.folder, KINDS, overwrite=True)
    asked.check()
    asked.write("index.html", make_text_writer(OTHER))
    assert page(own) == OTHER
    own.check()


@pytest.mark.parametrize("act", ["check", "write"])
@pytest.mark.parametrize(("text", "sentence"), [("a,b", "exists."), ("<!doctype html>", "is an HTML page, not a text")])
def test_what_somebody_else_wrote_stays(own, act, text, sentence):
    (own.folder / "table.csv").write_text(text)
    with pytest.raises(OutputError, match=sentence):
        own.check() if act == "check" else own.write("table.csv", make_text_writer("c,d"))
    assert (own.folder / "table.csv").read_text() == text


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_kind_stays_even_when_asked(own, overwrite):
    (own.folder / "index.html").write_text("my notes")
    with pytest.raises(OutputError, match="is a text file, not an HTML page"):
        OwnFiles(own.folder, KINDS, overwrite=overwrite).check()
    assert page(own) == "my notes"


def test_a_folder_that_the_user_names_is_not_renewed(own):
    with pytest.raises(OutputError, match=r"index\.html' exists"):
        OwnFiles(own.folder, KINDS, renew=False).check()


def test_an_input_is_no_output(own):
    with pytest.raises(OutputError, match="is an input"):
        OwnFiles(own.folder, KINDS, inputs=[own.folder / "index.html"]).check()


@pytest.mark.parametrize("published", [False, True])
def test_a_kill_between_record_and_file_locks_nobody_out(own, monkeypatch, published):
    whole = files.publish_file

    def killed(*args, **more):
        if args[1].name == "index.html":
            if published:
                whole(*args, **more)
            raise KeyboardInterrupt
        whole(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish_file", killed)
        for text in (OTHER, OTHER + "3"):
            with pytest.raises(KeyboardInterrupt):
                own.write("index.html", make_text_writer(text))
    assert page(own) == (OTHER + "3" if published else PAGE)
    own.check()
    own.write("index.html", make_text_writer(OTHER))
    assert page(own) == OTHER


def test_a_file_that_appears_meanwhile_stays(own):
    def write(partial):
        partial.write_text("c,d")
        (own.folder / "table.csv").write_text("a,b")

    with pytest.raises(OutputError, match=r"table\.csv' exists"):
        own.write("table.csv", write)
    assert (own.folder / "table.csv").read_text() == "a,b"


def test_a_page_that_is_changed_meanwhile_stays(own):
    def write(partial):
        partial.write_text(OTHER)
        (own.folder / "index.html").write_text("<!doctype html>mine")

    with pytest.raises(OutputError, match="was changed"):
        own.write("index.html", write)
    assert page(own) == "<!doctype html>mine"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema_version": 2, "files": {}}', '{"schema_version": 1, "files": 3}',
     '{"schema_version": 1, "files": {"index.html": 3}}', '{"schema_version": 1, "files": {"index.html": [3]}}',
     *(json.dumps({"schema_version": 1, "files": {name: ["0"]}}) for name in STRANGE)],
)  # fmt: skip
def test_a_damaged_record_is_refused(own, text):
    (own.folder / RECORD).write_text(text)
    with pytest.raises(OutputError, match=r"\.sefi-files\.json' is no record") as caught:
        own.check()
    assert "--overwrite" in caught.value.remedy
    assert page(own) == PAGE


def test_the_record_holds_each_digest_once(own):
    own.write("index.html", make_text_writer(PAGE))
    record = json.loads((own.folder / RECORD).read_text())
    assert record == {
        "schema_version": 1,
        "files": {"index.html": [own_files.hash_own_file(own.folder / "index.html")]},
    }
