"""OpenCV's face recogniser is fetched only when asked for, and only the known file is believed."""

import hashlib
import shutil

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent
from skimage import data

from sefi.core.errors import BackboneError, ConfigError
from sefi.evaluation import encoders
from sefi.evaluation.encoders import (
    EMBEDDED_EVALUATORS,
    RECOGNISER,
    SFACE_FILE,
    SFACE_REPOSITORY,
    SurestFace,
    find_face_networks,
    find_sface,
)
from sefi.methods.base import require_face_networks
from sefi.photo.detect import PHOTOGRAPH_DETECTOR

COMMIT = "3d7082438a6e4551e840c9b2bb60b71e8da4b524"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def cached(cache):
    """The same with the embedded model's recogniser under SFace's name."""
    folder = cache / f"models--{SFACE_REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return shutil.copy(EMBEDDED_EVALUATORS / RECOGNISER, folder / "snapshots" / COMMIT / SFACE_FILE)


def test_without_the_file_nothing_is_found_or_fetched(cache):
    assert find_sface() is None
    assert find_face_networks(None) is None
    with pytest.raises(BackboneError, match="could not be downloaded"):
        find_sface(allow_download=True)
    with pytest.raises(ConfigError, match="reads the photo with a face recogniser") as error:
        require_face_networks("Celeb Basis", None)
    assert "--download" in error.value.remedy
    with pytest.raises(BackboneError, match="no face recogniser"):
        SurestFace.load(None)


def test_looking_into_the_cache_asks_nobody(tmp_path, monkeypatch):
    # The hub's library asks its server for a list of programs where it has none of today, files of the cache or not.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none.json"))
    monkeypatch.setattr(_detect_agent, "_registry", None)
    assert find_sface() is None  # a connection would fail the test: tests/blocked


@pytest.mark.parametrize("allow_download", [False, True])
def test_another_file_of_this_name_is_refused(cached, allow_download):
    with pytest.raises(BackboneError, match="not the face recogniser that is known here"):
        find_sface(allow_download=allow_download)


def test_the_file_in_the_cache_is_used_on_photographs(cached, monkeypatch):
    content = (EMBEDDED_EVALUATORS / RECOGNISER).read_bytes()
    monkeypatch.setattr(encoders, "SFACE_SHA256", hashlib.sha256(content).hexdigest())
    assert find_face_networks(None) == (PHOTOGRAPH_DETECTOR, find_sface())
    require_face_networks("Celeb Basis", None)
    face = SurestFace.load(None)(data.astronaut())
    assert face is not None
    assert np.linalg.norm(face) == pytest.approx(1, abs=1e-5)


@pytest.mark.net
def test_the_hub_has_the_known_file(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_sface(allow_download=True) is not None
