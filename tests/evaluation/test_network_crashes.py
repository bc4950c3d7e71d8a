"""A recogniser or classifier on which OpenCV crashes is a typed error, and the program goes on."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS, ImageReader, LabelledNetwork, SFaceEncoder
from sefi.photo import detect

NETWORKS = {
    "face_recognition.onnx": ("recogniser", SFaceEncoder),
    "scene_reader.onnx": ("classifier", LabelledNetwork),
    "head_reader.onnx": ("classifier", LabelledNetwork),
}
# The first convolution's weights have another name; it moves by no pixel; the first operator is unknown.
DAMAGE = {
    "weights": (b"onnx::Conv", b"onnx:\x10Conv", signal.SIGFPE),
    "strides": (b"strides@\x02@\x02", b"strides@\x00@\x00", signal.SIGFPE),
    "operator": (b'"\x08Const', b'"\x08C\x84nst', signal.SIGSEGV),
}
# Each network and each damage once; the slow tests take all pairs.
QUICK = list(zip(NETWORKS, DAMAGE, strict=True))
PAIRS = [
    pytest.param(network, damage, marks=() if (network, damage) in QUICK else pytest.mark.slow)
    for network in NETWORKS
    for damage in DAMAGE
]


def write_damaged(folder: Path, network: str, damage: str) -> Path:
    """Write the damaged network, and its labels beside it where it has some."""
    old, new, _ = DAMAGE[damage]
    path = folder / network
    content = (EMBEDDED_EVALUATORS / network).read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    labels = EMBEDDED_EVALUATORS / Path(network).with_suffix(".json")
    if labels.exists():
        shutil.copy(labels, folder)
    return path


@pytest.mark.parametrize(("network", "damage"), PAIRS)
def test_a_network_that_crashes_opencv_is_refused(tmp_path, network, damage):
    path = write_damaged(tmp_path, network, damage)
    with pytest.raises(BackboneError, match=r"is no network of this kind: OpenCV crashes on it\.") as caught:
        NETWORKS[network][1](path)
    assert str(path) in caught.value.problem


@pytest.mark.slow
@pytest.mark.parametrize(("network", "damage"), PAIRS)
def test_without_the_trial_the_process_would_end(tmp_path, network, damage):
    """Run what the trial runs: it ends by a signal, and no `except` of the program would be reached."""
    path = write_damaged(tmp_path, network, damage)
    command = [sys.executable, "-P", str(detect.PROGRAM), NETWORKS[network][0]]
    with path.open("rb") as content:
        done = subprocess.run(command, stdin=content, capture_output=True, check=False)
    assert done.returncode == -DAMAGE[damage][2]


def test_a_reader_with_one_such_network_is_refused(tmp_path):
    head = write_damaged(tmp_path, "head_reader.onnx", "strides")
    with pytest.raises(BackboneError, match="OpenCV crashes on it"):
        ImageReader(EMBEDDED_EVALUATORS / "scene_reader.onnx", head)


def test_each_kind_is_tried_for_itself(tmp_path, monkeypatch):
    """Content that passed as a classifier may crash as a recogniser; the package's own networks are not tried."""
    shutil.copy(EMBEDDED_EVALUATORS / "scene_reader.json", tmp_path)
    path = Path(shutil.copy(EMBEDDED_EVALUATORS / "scene_reader.onnx", tmp_path))
    LabelledNetwork(path)
    tried = []
    monkeypatch.setattr(detect.subprocess, "run", lambda command, **_: tried.append(command[-1]) or done)
    done = subprocess.CompletedProcess([], 0)
    LabelledNetwork(path)
    assert tried == []
    SFaceEncoder(path)
    assert tried == ["recogniser"]
    for network, (_, kind) in NETWORKS.items():
        kind(EMBEDDED_EVALUATORS / network)
    assert tried == ["recogniser"]


@pytest.mark.parametrize(("network", "kind"), [(n, kind) for n, (_, kind) in NETWORKS.items()])
def test_a_trial_that_takes_too_long_is_refused(tmp_path, monkeypatch, network, kind):
    monkeypatch.setattr(detect, "LONGEST_TRIAL", 0.01)
    path = tmp_path / network
    path.write_bytes((EMBEDDED_EVALUATORS / network).read_bytes() + b"\0")  # content that was not tried before
    with pytest.raises(BackboneError, match="OpenCV needs more than 0 seconds for one image"):
        kind(path)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_that_opencv_refuses_by_itself(tmp_path, network):
    """The trial passes what ends with OpenCV's own error; opening it here gives the typed one."""
    path = tmp_path / network
    path.write_bytes(np.random.default_rng(3).bytes(997))
    with pytest.raises(BackboneError, match="is no network of this kind") as caught:
        NETWORKS[network][1](path)
    assert isinstance(caught.value.__cause__, cv2.error)
