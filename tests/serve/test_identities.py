"""Identities of a folder by name: new, changed and removed files are noticed; names are no paths."""

import os
from datetime import date
from hashlib import sha256
from http import HTTPStatus

import pytest
import torch
from hypothesis import HealthCheck, given, settings as examples, strategies as st
from tests.hosts.conftest import make_identity
from tests.serve.conftest import NAMES

from sefi.core.errors import IdentityError, SefiError
from sefi.identity.file import Identity

limits = pytest.importorskip("sefi.serve.limits")


@pytest.fixture
def opened(make_service):
    return make_service().folder


def save(identity, folder, name=None):
    identity.save(folder / f"{name or identity.name}.safetensors", overwrite=True)


def refuse(opened, name):
    with pytest.raises(SefiError) as refused:
        opened.get(name)
    return limits.choose_status(refused.value), refused.value


def test_an_identity_is_read_once_and_says_its_files_hash(opened, folder, people):
    assert opened.list_names() == NAMES
    served = opened.get("p1")
    assert torch.equal(served.identity.tokens, people["p1"].tokens)
    assert served.digest == sha256((folder / "p1.safetensors").read_bytes()).hexdigest()
    assert opened.get("p1") is served
    assert opened.loaded == 1


def test_new_changed_and_removed_files_are_noticed(opened, folder, backbone):
    before = opened.get("p2")
    save(make_identity(backbone, "p2", 5, 99), folder)
    after = opened.get("p2")
    assert not torch.equal(before.identity.tokens, after.identity.tokens)
    assert refuse(opened, "new")[0] == HTTPStatus.NOT_FOUND
    save(make_identity(backbone, "new", 5, 7), folder)
    assert opened.get("new").identity.name == "new"
    assert "new" in opened.list_names()
    (folder / "new.safetensors").unlink()
    assert refuse(opened, "new")[0] == HTTPStatus.NOT_FOUND
    assert "new" not in opened._held  # a likeness that was removed is not in memory either


@pytest.mark.parametrize(
    "name", ["../p0", "p0.safetensors", "/etc/passwd", "", "a b", "p0/../p0", "p\x000", "ä", "x" * 65]
)
def test_names_are_no_paths(opened, folder, people, name):
    save(people["p0"], folder.parent)
    assert refuse(opened, name)[0] == HTTPStatus.NOT_FOUND
    assert opened.loaded == 0


@given(name=st.text(max_size=20))
@examples(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leaves_the_folder(opened, folder, name):
    try:
        path = opened.find_file(name)
    except SefiError:
        return
    assert path.parent == folder


def test_links_that_leave_the_folder_are_none(opened, folder, people):
    outside = folder.parent / "outside.safetensors"
    save(people["p0"], folder.parent, "outside")
    (folder / "linked.safetensors").symlink_to(outside)
    assert refuse(opened, "linked")[0] == HTTPStatus.NOT_FOUND
    (folder / "again.safetensors").symlink_to("p0.safetensors")
    assert opened.list_names() == ["again", *NAMES]
    (folder / "round.safetensors").symlink_to("round.safetensors")
    assert refuse(opened, "round")[0] == HTTPStatus.NOT_FOUND


def test_a_file_that_cannot_be_served_says_why(opened, folder, people, backbone):
    save(people["p0"], folder, "other")
    assert refuse(opened, "other")[0] == HTTPStatus.UNPROCESSABLE_ENTITY
    (folder / "broken.safetensors").write_bytes(b"12345678")
    status, error = refuse(opened, "broken")
    assert (status, type(error)) == (HTTPStatus.UNPROCESSABLE_ENTITY, IdentityError)
    header = people["p0"].header.model_copy(update={"name": "heavy", "method": "dreambooth"})
    save(Identity({"unet.weight": torch.zeros(3)}, header), folder)
    assert "more than tokens" in refuse(opened, "heavy")[1].problem
    with (folder / "large.safetensors").open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert "more than tokens" in refuse(opened, "large")[1].problem
    kept = {**people["p0"].tensors, "basis.coefficients": torch.zeros(3)}
    header = people["p0"].header.model_copy(update={"name": "celeb", "method": "celeb-basis"})
    save(Identity(kept, header), folder)  # what a method keeps for readers beside its tokens is no weight of the model
    assert set(opened.get("celeb").identity.tensors) == set(kept)
    opened.get("p0")  # the model is known from now on; what is of another one, or too long, is refused all the same
    long = Identity({"tokens": people["p0"].tokens * 1e7}, people["p0"].header.model_copy(update={"name": "long"}))
    save(long, folder)
    assert "norm" in refuse(opened, "long")[1].problem
    foreign = people["p0"].header.model_copy(update={"name": "foreign", "base_model": "sd1:24:0123456789abcdef"})
    save(Identity(people["p0"].tensors, foreign), folder)
    assert "another model" in refuse(opened, "foreign")[1].problem


def test_only_regular_files_are_listed_and_read(opened, folder):
    (folder / "directory.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "round.safetensors").symlink_to("round.safetensors")
    (folder / "gone.safetensors").symlink_to("nowhere.safetensors")
    (folder / "linked.safetensors").symlink_to("p0.safetensors")
    assert opened.list_names() == sorted([*NAMES, "linked"])
    for name in ("directory", "pipe", "round", "gone"):  # a pipe would be waited for
        assert refuse(opened, name)[0] == HTTPStatus.NOT_FOUND


def test_errors_do_not_say_where_the_folder_is(opened, folder, people):
    header, end = b'{"__metadata__":{"name":"short"}}', b"rest"
    contents = {
        "broken": b"12345678",
        "empty": b"",
        "short": len(header).to_bytes(8, "little") + header + end,
        "text": b"{}" * 40,
    }
    for name, content in contents.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    save(people["p0"], folder, "other")
    for name in (*contents, "other", "nobody"):
        error = refuse(opened, name)[1]
        assert name in error.problem
        assert str(folder) not in error.problem + error.remedy
    (folder / "p0.safetensors").unlink()
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(limits.ServeError, match="cannot be read") as refused:
        opened.list_names()
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert str(folder) not in str(refused.value)


class MayDay(date):
    """The calendar of one day: a real one may end within the test."""

    @classmethod
    def today(cls):
        return cls(2026, 5, 1)


def test_an_expired_consent_is_refused_on_the_day_after(opened, folder, people, monkeypatch):
    monkeypatch.setattr("sefi.provenance.consent.date", MayDay)
    for name, last in (("gone", "2026-04-30"), ("today", "2026-05-01")):
        header = people["p0"].header.model_copy(
            update={"name": name, "consent": f"by=Jane; for=self; scope=tests; date=2020-01-02; expires={last}"}
        )
        save(Identity(people["p0"].tensors, header), folder)
    assert opened.get("today")
    for _ in range(2):  # also when it is held already
        status, error = refuse(opened, "gone")
        assert status == HTTPStatus.FORBIDDEN
        assert "expired" in error.problem
        assert "--expired-consent" not in error.remedy


def test_those_that_were_asked_for_last_are_held(make_service, folder):
    opened = make_service().folder
    opened.most = 2
    for name in ("p0", "p1", "p0", "p2", "p0", "p1"):
        opened.get(name)
    assert list(opened._held) == ["p0", "p1"]
    assert opened.loaded == 4


@pytest.mark.parametrize(("fit", "held"), [(3, ["p1", "p2", "p0"]), (2, ["p2", "p0"]), (0, ["p0"])])
def test_what_is_held_is_bounded_by_its_bytes(make_service, folder, fit, held):
    opened = make_service().folder
    opened.most_bytes = fit * opened.get("p0").size
    for name in ("p0", "p1", "p2", "p0"):
        opened.get(name)
    assert list(opened._held) == held


def test_a_file_of_the_same_time_and_size_is_another_by_its_number(opened, folder, backbone):
    path = folder / "p0.safetensors"
    before, status = opened.get("p0"), path.stat()
    save(make_identity(backbone, "p0", 5, 77), folder)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert opened.get("p0") is not before
