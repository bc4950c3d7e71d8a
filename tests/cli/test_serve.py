"""`sefi serve`: what is refused before a model is opened, and the program itself, asked over a real connection."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.conftest import save_model_folder
from tests.diffusion.test_safety_checker import save_checker

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
ROOT = Path(__file__).parents[2]
KEY = "a-key-of-many-letters"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "identities"
    folder.mkdir()
    return folder


def test_what_is_refused_before_a_model_is_opened(refused, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sefi.cli.loading.load_backbone", lambda *_, **__: pytest.fail("a model was opened"))
    monkeypatch.delenv("SEFI_API_KEY", raising=False)
    serve = ("serve", "--port", 0, "--identities")
    assert "no folder" in refused(*serve, tmp_path / "nowhere")
    assert "--host 0.0.0.0" in refused(*serve, folder, "--host", "0.0.0.0")
    assert "settled when" in refused(*serve, folder, "--set", "learn.steps=3")
    short = tmp_path / "short.txt"
    short.write_text("secret\n")
    assert "16 to 1000" in refused(*serve, folder, "--api-key-file", short)
    assert "cannot be read" in refused(*serve, folder, "--api-key-file", tmp_path / "nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Nothing can listen" in refused("serve", "--identities", folder, "--port", taken.getsockname()[1])


@pytest.fixture
def silent(monkeypatch):
    """Fail where the program says that it listens."""
    monkeypatch.delenv("SEFI_API_KEY", raising=False)
    monkeypatch.setattr("sefi.cli.serve.report_start", lambda *_, **__: pytest.fail("it said that it listens"))


def test_settings_are_refused_once_the_model_is_open(refused, folder, model_folder, silent):
    serve = ("serve", "--port", 0, "--identities", folder, "--model")
    assert "clip_skip 50" in refused(*serve, model_folder, "--set", "generate.clip_skip=50")
    assert "500 steps" in refused(*serve, model_folder, "--set", "generate.steps=500")
    assert "multiples" in refused(*serve, model_folder, "--set", "generate.width=65")
    assert "names <ada>" in refused(*serve, model_folder, "--set", "generate.negative_prompt=<ada>")


@pytest.mark.slow
def test_a_damaged_safety_checker_is_refused_before_it_listens(refused, folder, backbone, tmp_path, silent):
    damaged = save_checker(save_model_folder(backbone, tmp_path / "model"), flags=False)
    (damaged / "safety_checker" / "config.json").write_text("{")
    assert "safety_checker" in refused("serve", "--port", 0, "--identities", folder, "--model", damaged)


def test_a_key_opens_other_addresses(tmp_path, monkeypatch):
    from sefi.cli.serve import check_exposure, read_api_key

    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("SEFI_API_KEY", "another-key-of-many-letters")
    assert read_api_key(file) == KEY
    assert read_api_key(None) == "another-key-of-many-letters"
    check_exposure("0.0.0.0", KEY)
    monkeypatch.setenv("SEFI_API_KEY", "")
    assert read_api_key(None) is None
    check_exposure("127.0.0.1", None)


def start(model_folder, folder, *more):
    command = [sys.executable, "-m", "sefi", "serve", "--model", model_folder, "--identities", folder, "--port", 0]
    plain = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    server = subprocess.Popen(
        [str(word) for word in [*command, "--json", *more]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=plain,
    )  # fmt: skip
    line = server.stdout.readline()
    assert line, server.communicate()
    return server, json.loads(line)


def ask(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=800) as answer:
        return answer.read()


def wait_until_drawing(address):
    """Wait until an image waits and still does at the next look: one alone would have been taken meanwhile."""
    before = False
    for _ in range(3000):
        waits = b"sefi_waiting_images 1.0" in ask(address, "/metrics")
        if before and waits:
            return
        before = waits
        time.sleep(0.02)
    raise AssertionError("nothing waits")


def wait_until_closed(address):
    """Wait until a server that was asked to stop lets nobody connect any more."""
    for _ in range(3000):
        try:
            ask(address, "/readyz")
        except urllib.error.HTTPError:
            pass  # an answer, that it is not ready
        except (urllib.error.URLError, ConnectionError):
            return
        time.sleep(0.02)
    raise AssertionError("it still answers")


@pytest.mark.slow
@pytest.mark.loopback
def test_sigterm_finishes_what_was_taken_and_refuses_the_rest(model_folder, ada, sefi, tmp_path):
    folder = ada.parent
    server, said = start(model_folder, folder, "--max-batch", 1)
    address, answers = said["address"], {}
    assert (said["schema"], said["names"], said["workers"], said["key"]) == ("serve/1", 1, 1, False)
    assert address.startswith("http://127.0.0.1:")

    def draw(seed):
        body = {"prompt": "a photo of <ada> at the beach", "seed": seed, "steps": 60}
        answers[seed] = ask(address, "/v1/generate", body)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (4, 5)]
    for thread in threads:
        thread.start()
    wait_until_drawing(address)  # one is drawn and one waits
    server.send_signal(signal.SIGTERM)
    wait_until_closed(address)
    for thread in threads:
        thread.join(800)
    assert server.wait(60) == 0
    out, remarks = server.communicate()
    assert out == ""  # the first line was read
    assert "this machine only" in remarks
    assert "stopped" in remarks
    assert "Traceback" not in remarks
    words = ["generate", "a photo of <ada> at the beach", "-i", ada, "--model", model_folder, "--steps", 60]
    assert sefi(*words, "--seed", 4, "--out", tmp_path / "out").exit_code == 0
    (file,) = (tmp_path / "out").glob("*-4.png")
    assert answers[4] == file.read_bytes()
    assert answers[5] != answers[4]


@pytest.mark.slow
@pytest.mark.loopback
def test_a_second_ctrl_c_ends_the_server_at_once_and_says_so(model_folder, ada):
    server, said = start(model_folder, ada.parent, "--max-batch", 1, "--max-steps", 1000)
    lost = []

    def draw(seed):
        with pytest.raises((urllib.error.URLError, ConnectionError)) as error:
            ask(said["address"], "/v1/generate", {"prompt": "a photo of <ada>", "seed": seed, "steps": 1000})
        lost.append(error.value)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (4, 5)]
    for thread in threads:
        thread.start()
    wait_until_drawing(said["address"])
    server.send_signal(signal.SIGINT)
    wait_until_closed(said["address"])  # two signals that come at once are one
    assert server.poll() is None
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 130
    for thread in threads:
        thread.join(60)
    assert len(lost) == 2
    _, remarks = server.communicate()
    assert remarks.splitlines()[-1] == "stopped at once: requests that were not finished have no answer"
    assert "Traceback" not in remarks


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.loopback
def test_eight_clients_for_ten_seconds_see_no_mixed_face_and_no_error(monkeypatch):
    """The short form of `python experiments/serving.py load`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    spec = importlib.util.spec_from_file_location("serving", ROOT / "experiments" / "serving.py")
    serving = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving)
    found = serving.run_load(clients=8, people=5, seconds=10.0, steps=2)
    assert (found["mixed"], found["errors"], found["exit_code"]) == (0, 0, 0)
    assert found["images"] >= 8
    assert found["largest_difference_to_alone"] <= 1
    assert found["smallest_difference_between_people"] > 20  # a mixed face would be seen
    assert found["images_per_batch"] > 1
