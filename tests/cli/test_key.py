"""`sefi key`: whether there is a key, its number, and how one is made."""

import json

import pytest

from sefi.provenance.payload import compute_installation_number


@pytest.fixture
def key_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SEFI_KEY_FILE", str(tmp_path / "my.key"))
    return tmp_path / "my.key"


def test_without_a_key_the_number_is_everybodys(sefi, key_file):
    answer = json.loads(sefi("key", "--json").stdout)
    assert answer == {"schema": "key/1", "file": str(key_file), "exists": False, "number": 0}
    assert "sefi key --create" in sefi("key").stdout
    assert not key_file.exists()


def test_a_key_is_made_once_and_never_shown(sefi, key_file, refused):
    answer = json.loads(sefi("key", "--create", "--json").stdout)
    content = key_file.read_bytes()
    assert answer["exists"]
    assert answer["number"] == compute_installation_number(content) > 0
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert content.hex() not in json.dumps(answer)
    assert "is a key already" in refused("key", "--create")
    assert key_file.read_bytes() == content


def test_a_damaged_key_is_refused(refused, key_file):
    key_file.write_bytes(b"short")
    assert "is no key of an installation" in refused("key")
    assert "is no key of an installation" in refused("generate", "a photo", "--out", key_file.parent / "out")
