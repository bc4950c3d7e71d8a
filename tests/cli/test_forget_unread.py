"""Nothing is forgotten where it cannot be read whose images there are."""

import shutil
from pathlib import Path

import pytest


@pytest.mark.parametrize("record", ["images/records.json", "bench/run.json"])
def test_nothing_is_removed_where_a_record_of_images_cannot_be_read(home, sefi, ada, monkeypatch, record):
    monkeypatch.chdir(home)
    shutil.copy(ada, "ada.safetensors")
    path = home / record
    path.parent.mkdir()
    path.write_text('{"runs": []}')
    whole = Path.open

    def fail(file, *arguments, **options):
        if file.name == path.name:
            raise OSError(5, "Input/output error")
        return whole(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        found = sefi("forget", "ada", "--yes")
    assert found.exit_code == 2
    assert "cannot be read" in found.stderr
    assert (home / "ada.safetensors").is_file()
    assert sefi("forget", "ada", "--yes").exit_code == 0
    assert not (home / "ada.safetensors").exists()
