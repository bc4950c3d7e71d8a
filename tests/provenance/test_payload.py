"""The payload names the installation and fits the words of one file only."""

import stat

import pytest
from hypothesis import given, strategies as st

from sefi.core.errors import ConfigError
from sefi.provenance.payload import (
    KEY_VARIABLE,
    compute_installation_number,
    compute_payload,
    create_installation_key,
    find_key_file,
    read_installation_key,
    split_payload,
)

KEYS = st.none() | st.binary(min_size=32, max_size=32)


@given(words=st.text(), key=KEYS)
def test_the_payload_is_32_bits_that_name_the_installation(words, key):
    payload = compute_payload(words, key)
    number, check = split_payload(payload)
    assert 0 <= payload < 2**32
    assert number == compute_installation_number(key)
    assert (number == 0) == (key is None)
    assert 0 <= check < 2**16


def test_known_payloads():
    """Written down: an image that is marked today must be known in ten years."""
    assert compute_payload("", None) == 0x0000449E
    assert compute_payload("a photo of <subject>\nSteps: 20", bytes(range(32))) == 0xD8B1E6A0


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "settings" / "installation.key"))
    assert read_installation_key() is None
    path = create_installation_key()
    key = read_installation_key()
    assert path == find_key_file()
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_installation_key()
    assert read_installation_key() == key


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_refused(tmp_path, monkeypatch, content):
    path = tmp_path / "installation.key"
    path.write_bytes(content)
    monkeypatch.setenv(KEY_VARIABLE, str(path))
    with pytest.raises(ConfigError, match="no key"):
        read_installation_key()
