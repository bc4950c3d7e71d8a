"""Identities on the hub: private unless consent is stated, with a card; what comes back is checked like any file."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants

from sefi.core.errors import IdentityError
from sefi.identity import hub
from sefi.identity.file import Identity, IdentityHeader

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def identity():
    header = IdentityHeader(
        name="ada",
        method="sefi",
        stages=3,
        base_model="sd1:768:0123",
        width=7,
        class_word="woman",
        metrics={"id": 0.61},
    )
    return Identity({"tokens": torch.arange(42.0).reshape(3, 2, 7)}, header)


class LocalHub:
    """Repositories as folders below the hub's cache; the calls of `HfApi` that are needed."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.private = cache, {}

    def folder(self, repository):
        return self.cache / f"models--{repository.replace('/', '--')}"

    def create_repo(self, repository, *, repo_type, private, exist_ok):
        assert exist_ok
        assert repo_type == "model"
        self.private.setdefault(repository, private)

    def repo_info(self, repository, *, repo_type):
        return SimpleNamespace(private=self.private[repository])

    def upload_folder(self, *, repo_id, repo_type, folder_path, allow_patterns, commit_message):
        assert commit_message
        assert (repo_type, allow_patterns) == ("model", None)
        folder = self.folder(repo_id)
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        shutil.copytree(folder_path, folder / "snapshots" / COMMIT)
        return f"https://hub.invalid/{repo_id}/commit/{COMMIT}"


def forget_first(call):
    """Return the call as a method of another class."""
    return lambda _, *words, **named: call(*words, **named)


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    found = LocalHub(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("create_repo", "repo_info", "upload_folder"):
        monkeypatch.setattr(HfApi, name, forget_first(getattr(found, name)))
    return found


def test_a_pushed_identity_comes_back_and_is_private(identity, local_hub):
    assert COMMIT in identity.push_to_hub("ada/ada")
    assert local_hub.private == {"ada/ada": True}
    again = Identity.from_pretrained("ada/ada")
    assert again.header == identity.header
    assert torch.equal(again.tokens, identity.tokens)


def test_the_card_says_what_it_is(identity, local_hub):
    identity.push_to_hub("ada/ada", consent="Ada agreed on 2026-05-01.")
    card = ModelCard.load(local_hub.folder("ada/ada") / "snapshots" / COMMIT / "README.md")
    assert card.data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert card.data.library_name == "sefi"
    for text in ("Ada agreed on 2026-05-01.", "- id: 0.61", "<ada>", 'from_pretrained("ada/ada"', "woman"):
        assert text in card.text
    assert Identity.from_pretrained("ada/ada").header.consent == "Ada agreed on 2026-05-01."


def test_what_is_uploaded_does_not_say_where_files_lie(identity, local_hub):
    settings = {"learn": {"steps": 3}, "basis": {"names": "/home/ada/secret/names.txt"}}
    known = Identity(identity.tensors, identity.header.model_copy(update={"settings": settings}))
    known.push_to_hub("ada/ada")
    card = ModelCard.load(local_hub.folder("ada/ada") / "snapshots" / COMMIT / "README.md")
    assert '"names": "names.txt"' in card.text
    files = [file for file in local_hub.folder("ada/ada").rglob("*") if file.is_file()]
    assert len(files) >= 2
    assert not [file.name for file in files if b"secret" in file.read_bytes()]
    assert Identity.from_pretrained("ada/ada").header.settings["basis"] == {"names": "names.txt"}


def test_a_likeness_is_public_only_with_consent(identity, local_hub):
    with pytest.raises(IdentityError, match="agreed"):
        identity.push_to_hub("ada/ada", private=False)
    with pytest.raises(IdentityError, match="agreed"):
        identity.push_to_hub("ada/ada", private=False, consent="  ")
    assert local_hub.private == {}
    identity.push_to_hub("ada/ada", private=False, consent="Ada agreed.")
    assert local_hub.private == {"ada/ada": False}


def test_a_private_identity_does_not_go_into_a_public_repository(identity, local_hub):
    local_hub.private["ada/ada"] = False
    with pytest.raises(IdentityError, match="is public"):
        identity.push_to_hub("ada/ada")
    assert not local_hub.folder("ada/ada").exists()


@pytest.mark.parametrize("repository", ["ada/nothing", "a b", "../../etc", ""])
@pytest.mark.parametrize("allow_download", [False, True])
def test_what_is_not_there_is_refused(local_hub, repository, allow_download):
    with pytest.raises(IdentityError):
        Identity.from_pretrained(repository, allow_download=allow_download)


def test_without_a_connection_the_hub_is_refused_with_a_reason(identity, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def break_connection(*_arguments, **_named):
        raise RuntimeError("no route to host")  # an error of the HTTP client's own, as the hub's library lets through

    for name in ("create_repo", "model_info"):
        monkeypatch.setattr(HfApi, name, break_connection)
    with pytest.raises(IdentityError, match="could not be written: no route to host"):
        identity.push_to_hub("ada/ada", token="hf_none")
    with pytest.raises(IdentityError, match="could not be downloaded: no route to host"):
        Identity.from_pretrained("ada/ada", allow_download=True)


def test_sizes_are_bounded_before_anything_is_fetched():
    files = [SimpleNamespace(rfilename="identity.safetensors", size=90), SimpleNamespace(rfilename="other", size=999)]
    info = SimpleNamespace(siblings=files)
    hub.check_sizes(info, "ada/ada", 90)
    with pytest.raises(IdentityError, match="90 bytes, more than the 89"):
        hub.check_sizes(info, "ada/ada", 89)


def test_an_identity_is_shown_in_one_line(identity):
    assert repr(identity) == "<Identity 'ada': woman, sefi, 3 stages, sd1:768:0123>"
