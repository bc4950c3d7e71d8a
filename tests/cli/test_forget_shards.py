"""The weights of an identity in several files go with it; those that another identity names too stay."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import list_names

from sefi.identity.file import Identity, write_identity


@pytest.fixture
def work(home, ada):
    """A folder with `ada.safetensors` and two further files of it."""
    folder = home / "work"
    write_large(ada, "ada")
    assert len(list_names(folder)) == 3
    return folder


def write_large(ada, name, shift=0.0):
    """Write an identity in three files; return the names of the further ones."""
    known, path = Identity.load(ada), Path(f"{name}.safetensors")
    weights = {f"weight-{number}": torch.linspace(-1, 1, 900) * (number + 2) + shift for number in range(2)}
    header = known.header.model_copy(update={"name": name})
    write_identity(Identity({"tokens": known.tokens + shift, **weights}, header), path, 4000)
    return list(Identity.load(path).header.shards)


def test_a_copy_of_the_identity_is_no_other_that_names_its_files(work, forget):
    shutil.copy("ada.safetensors", "copy.safetensors")
    answer = forget("ada")
    assert (list_names(work), answer["unproven"]) == ([], [])


def test_the_copy_is_forgotten_with_the_files_that_both_name(work, forget):
    shutil.copy("ada.safetensors", "copy.safetensors")
    answer = forget("copy")
    assert (list_names(work), answer["unproven"]) == ([], [])


def test_files_that_a_killed_writing_left_are_further_files_too(work, forget, ada):
    for shard in write_large(ada, "bob", 3.0):
        (work / shard).rename(shard.replace("bob", "ada"))  # the identity that names them was not written any more
    (work / "bob.safetensors").unlink()
    (work / "ada.2.txt").write_text("of my own")
    (work / "adam.2.0123456789ab.safetensors").write_bytes(b"of adam")
    forget("ada")
    assert list_names(work) == ["ada.2.txt", "adam.2.0123456789ab.safetensors"]


def test_without_the_identity_its_further_files_are_found(work, forget):
    (work / "ada.safetensors").unlink()
    forget("ada")
    assert list_names(work) == []


def test_files_that_another_identity_names_stay_and_are_named(work, forget, ada):
    shutil.copy("ada.safetensors", "earlier.safetensors")
    before = Identity.load("ada.safetensors").header.shards
    now = write_large(ada, "ada", 0.5)
    assert not set(before) & set(now)
    answer = forget("ada")
    assert list_names(work) == sorted([*before, "earlier.safetensors"])
    assert sorted(one["file"] for one in answer["unproven"]) == sorted(str(work / name) for name in before)
    assert Identity.load("earlier.safetensors").name == "ada"  # whole
    answer = forget("earlier")
    assert list_names(work) == sorted(before)  # a header can name any file; these were named for `ada`
    assert sorted(one["file"] for one in answer["unproven"]) == sorted(str(work / name) for name in before)
    forget("ada")
    assert list_names(work) == []


def test_of_a_copy_in_another_folder_the_further_files_go_too(work, forget):
    other = work.parent / "other"
    shutil.copytree(work, other)
    forget("ada", "--in", other)
    assert (list_names(work), list_names(other)) == ([], [])


def test_the_other_weights_of_a_copy_with_a_very_long_name_go_too(work, forget, ada):
    """The names of further files repeat at most 200 bytes of a stem."""
    path = work.parent / "other" / f"{'a' * 230}.safetensors"
    path.parent.mkdir()
    known = Identity.load(ada)
    weights = {f"weight-{number}": torch.linspace(-1, 1, 900) * (number + 7) for number in range(2)}
    write_identity(Identity({"tokens": known.tokens, **weights}, known.header), path, 4000)
    assert len(list_names(path.parent)) == 3
    answer = forget("ada", "--in", path.parent)
    assert (list_names(path.parent), answer["unproven"]) == ([], [])
