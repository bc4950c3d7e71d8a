"""Identities that are too large for one file come in several, and never in a mixture of two."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import sefi.identity.file
from sefi.core.errors import IdentityError, OutputError
from sefi.core.rng import create_generator
from sefi.identity.file import (
    Identity,
    IdentityHeader,
    compute_identity_digest,
    list_identity_digests,
    read_identity,
    write_identity,
)

SMALL = 100  # bytes of a file


def identity(seed: int = 0) -> Identity:
    header = IdentityHeader(
        name="ada", method="dreambooth", stages=1, base_model="tiny:7:00", width=7, class_word="person"
    )
    shapes = {"unet.a": (5, 3), "unet.b": (7,), "unet.c": (11, 13), "text_encoder.d": (2,)}
    return Identity({n: torch.randn(s, generator=create_generator(seed, n)) for n, s in shapes.items()}, header)


def equal(one: Identity, other: Identity) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def test_a_large_identity_comes_in_several_files(tmp_path: Path) -> None:
    path = tmp_path / "ada.safetensors"
    write_identity(identity(), path, SMALL)
    assert len(list(tmp_path.iterdir())) == 3
    assert all(len(read_identity(path).header.shards) == 2 for _ in range(2))
    assert equal(read_identity(path), identity())


def test_a_small_one_stays_one_file(tmp_path: Path) -> None:
    identity().save(tmp_path / "ada.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["ada.safetensors"]
    assert read_identity(tmp_path / "ada.safetensors").header.shards == ()


def test_writing_again_leaves_no_file_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "ada.safetensors"
    write_identity(identity(), path, SMALL)
    write_identity(identity(1), path, SMALL)
    assert len(list(tmp_path.iterdir())) == 3
    assert equal(read_identity(path), identity(1))
    identity(2).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["ada.safetensors"]


def test_what_breaks_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ada.safetensors"
    write_identity(identity(), path, SMALL)
    whole = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(28, "No space left on device")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="No space left"):
        write_identity(identity(1), path, SMALL)
    assert equal(read_identity(path), identity())


@pytest.mark.parametrize("fails_at", ["the second further file", "the header"])
@pytest.mark.parametrize("there", [True, False])
def test_what_breaks_off_leaves_no_file_that_nobody_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str, there: bool
) -> None:
    path = tmp_path / "ada.safetensors"
    if there:
        write_identity(identity(), path, SMALL)
    before = sorted(tmp_path.iterdir())
    whole = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == path or (".3." in target.name and fails_at != "the header"):
            raise OSError(28, "No space left on device")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_identity(identity(1), path, SMALL)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(OutputError, match="No space left"):
        write_identity(identity(), path, SMALL)  # the same files as there are
    assert sorted(tmp_path.iterdir()) == before


def test_what_breaks_off_leaves_the_files_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, copy = tmp_path / "ada.safetensors", tmp_path / "copy.safetensors"
    write_identity(identity(), path, SMALL)
    path.rename(copy)  # names the further files, which are called for the other
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"):
        write_identity(identity(), path, SMALL)
    assert equal(read_identity(copy), identity())


@pytest.mark.parametrize("folder", ["target", "here"])
@pytest.mark.parametrize("name", ["ada.safetensors", "eve.safetensors"])
def test_one_in_several_files_is_written_through_a_link(tmp_path: Path, folder: str, name: str) -> None:
    link, target = tmp_path / "here" / "link.safetensors", tmp_path / folder / name
    for each in (link, target):
        each.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    for seed in (0, 1):
        write_identity(identity(seed), link, SMALL)
        assert link.is_symlink()
        assert {one.name for one in link.parent.iterdir()} >= {link.name}
        assert len(list(target.parent.glob(f"{target.stem}*.safetensors"))) == 3
        assert not list(tmp_path.rglob("link.*.*"))
        assert equal(read_identity(target), identity(seed))
        assert equal(read_identity(link), identity(seed))


def test_files_next_to_a_link_are_found_and_replaced(tmp_path: Path) -> None:
    """As in the hub's cache, and as earlier versions wrote through a link."""
    (tmp_path / "blobs").mkdir()
    write_identity(identity(), path := tmp_path / "link.safetensors", SMALL)
    blob = path.rename(tmp_path / "blobs" / "0123")
    path.symlink_to(blob)
    assert equal(read_identity(path), identity())
    write_identity(identity(1), path, SMALL)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [path.name]
    assert equal(read_identity(path), identity(1))
    assert len(list((tmp_path / "blobs").iterdir())) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ada.safetensors"
    write_identity(identity(), path, SMALL)
    lost = read_identity(path).header.shards[0]
    (tmp_path / lost).unlink()
    with pytest.raises(IdentityError, match=f"'{lost}' is missing"):
        read_identity(path)


@pytest.mark.parametrize("name", ["../ada.safetensors", "/etc/passwd", "", "ada.bin", "."])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ada.safetensors"
    made = identity()
    from sefi.identity.file import HEADER_KEY, write_whole

    header = made.header.model_copy(update={"shards": (name,)})
    write_whole(made.tensors, path, {HEADER_KEY: header.model_dump_json()})
    with pytest.raises(IdentityError, match="strange file"):
        read_identity(path)


@pytest.mark.parametrize("largest_hashed", [0, 1 << 20])
@pytest.mark.parametrize("largest", [SMALL, 1 << 20])
def test_it_is_known_by_one_sha256_before_it_is_written_and_after_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, largest_hashed: int
) -> None:
    monkeypatch.setattr(sefi.identity.file, "LARGEST_HASHED_FILE", largest_hashed)
    one, path = identity(), tmp_path / "ada.safetensors"
    assert list(one.tensors) != sorted(one.tensors), "the order of a network"
    write_identity(one, path, largest)
    assert compute_identity_digest(read_identity(path)) == compute_identity_digest(one)
    assert compute_identity_digest(one) != compute_identity_digest(identity(1))


def test_one_in_several_files_is_also_known_by_its_earlier_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sefi.identity.file, "LARGEST_HASHED_FILE", 0)
    write_identity(identity(), tmp_path / "ada.safetensors", SMALL)
    read = read_identity(tmp_path / "ada.safetensors")
    wanted = hashlib.sha256(read.header.model_dump_json(exclude={"widths", "prediction_type", "record"}).encode())
    for part in ("ada.safetensors", *read.header.shards):  # each file in the order of its names
        with safe_open(tmp_path / part, "pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                wanted.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    assert list(read.tensors) != sorted(read.tensors), "the order of the files"
    assert list_identity_digests(read) == [compute_identity_digest(read), wanted.hexdigest()]
    identity().save(tmp_path / "whole.safetensors")
    whole = read_identity(tmp_path / "whole.safetensors")
    assert list_identity_digests(whole) == [compute_identity_digest(whole)]
