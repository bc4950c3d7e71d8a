"""Requests and answers: the images of `sefi generate`, limits, errors as JSON, keys, health and metrics."""

import asyncio
import base64
import gc
import io
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.serve.conftest import NAMES, QUICK

import sefi
from sefi.core.config import override
from sefi.core.errors import ConfigError, GenerationError

app_module = pytest.importorskip("sefi.serve.app")
KEY = "a-key-of-many-letters"


def draw(client, prompt="a photo of <p0> at the beach", accept="*/*", **more):
    return client.post("/v1/generate", json={"prompt": prompt, **more}, headers={"accept": accept})


def check_error(answer, status, *words):
    assert answer.status_code == status, answer.text
    record = answer.json()
    assert set(record) == {"schema", "error", "try"}
    assert record["schema"] == "error/1"
    assert record["error"]
    assert record["try"]
    for word in words:
        assert word in record["error"] + record["try"]
    return record


# ------------------------------------------------------------------ images


def test_the_answer_is_the_file_that_generate_writes(make_client, backbone, people):
    client = make_client()
    answer = draw(client, seed=11)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-sefi-seed"] == "11"
    (image,) = sefi.generate("a photo of <p0> at the beach", people["p0"], backbone=backbone, config=QUICK, seed=11)
    assert answer.content == image.encode().content


def test_settings_of_a_request_are_those_of_generate(make_client, backbone, people):
    client = make_client()
    given = {"steps": 5, "guidance_scale": 2.5, "scheduler": "euler", "width": 16, "height": 32}
    given |= {"negative_prompt": "snow", "identity_strength": 0.5}
    prompt = "a photo of <p1> and (<p2>:1.2)"
    answer = draw(client, prompt, seed=2, **given)
    mine = [people["p1"], people["p2"]]
    (image,) = sefi.generate(prompt, mine, backbone=backbone, config=QUICK, seed=2, **given)
    assert answer.content == image.encode().content
    assert Image.open(io.BytesIO(answer.content)).size == (16, 32)


def test_several_images_and_notes_come_as_json(make_client, backbone, people):
    client = make_client()
    answer = draw(client, "a photo of <p2> holding a cup", count=3, seed=5, guidance_scale=0.5)
    record = answer.json()
    assert set(record) == {"images", "base_model", "notes"}
    assert [one["seed"] for one in record["images"]] == [5, 6, 7]
    assert record["base_model"] == backbone.fingerprint
    assert any("without guidance" in note for note in record["notes"])
    more = {"num_images": 3, "guidance_scale": 0.5}
    prompt = "a photo of <p2> holding a cup"
    made = sefi.generate(prompt, people["p2"], backbone=backbone, config=QUICK, seed=5, **more)
    for one, image in zip(record["images"], made, strict=True):
        assert set(one) == {"png", "prompt", "seed", "invisible_mark", "flagged"}
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))), np.int16)
        assert np.abs(pixels - np.asarray(image.pixels, np.int16)).max() <= 1
    single = draw(client, accept="application/json")
    assert len(single.json()["images"]) == 1


@pytest.mark.slow
def test_requests_at_once_share_batches_and_mix_no_people(make_client, backbone, people):
    client = make_client(batch=5, wait=1.0)
    answers = {}

    def ask(name, seed):
        answers[name, seed] = draw(client, f"a photo of <{name}>", seed=seed)

    threads = [threading.Thread(target=ask, args=(name, seed)) for seed in (1, 2) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for (name, seed), answer in answers.items():
        (alone,) = sefi.generate(f"a photo of <{name}>", people[name], backbone=backbone, config=QUICK, seed=seed)
        pixels = np.asarray(Image.open(io.BytesIO(answer.content)), np.int16)
        assert np.abs(pixels - np.asarray(alone.pixels, np.int16)).max() <= 1, name
    metrics = read_metrics(client)
    assert metrics["sefi_images_total"] == 10
    assert metrics["sefi_batch_images_count"] < 10


def test_the_mark_is_left_out_where_the_server_says_so(make_service, make_client, backbone, people):
    client = make_client(make_service(options={"mark": False}))
    (image,) = sefi.generate("a photo of <p0>", people["p0"], backbone=backbone, config=QUICK)
    assert draw(client, "a photo of <p0>").content == image.encode(mark=False).content


class Checker:
    """Flags everything."""

    def __init__(self):
        self.loaded = 0

    def load(self):
        self.loaded += 1

    def find_flagged(self, images, device):
        return [True] * len(images)


def test_the_safety_checker_makes_images_black_unless_it_is_left_out(make_service, make_client, backbone):
    from dataclasses import replace

    checker = Checker()
    checked = replace(backbone, safety_checker=checker)
    client = make_client(make_service(model=checked))
    answer = draw(client)
    assert answer.headers["x-sefi-flagged"] == "true"
    assert checker.loaded == 1
    image = Image.open(io.BytesIO(answer.content))
    assert np.asarray(image).max() == 0
    assert "Safety checker: flagged" in image.text["parameters"]
    client = make_client(make_service(model=checked, options={"use_checker": False}))
    answer = draw(client)
    assert answer.headers["x-sefi-flagged"] == "false"
    assert np.asarray(Image.open(io.BytesIO(answer.content))).max() > 0


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("prompt", "more", "status", "word"),
    [
        ("a photo of <nobody>", {}, 404, "nobody"),
        ("a photo of <../p0>", {}, 422, "placeholder"),
        ("a photo of <p0", {}, 422, "placeholder"),
        ("", {}, 422, "prompt"),
        ("snow " * 300, {}, 422, "characters"),
        ("a dog", {"negative_prompt": "<p0>"}, 422, "negative"),
        ("a dog", {"negative_prompt": "snow " * 300}, 422, "characters"),
        ("a dog", {"count": 9}, 422, "images"),
        ("a dog", {"steps": 101}, 422, "steps"),
        ("a dog", {"steps": 0}, 422, "steps"),
        ("a dog", {"width": 25}, 422, "multiples"),
        ("a dog", {"width": 2048, "height": 2048}, 422, "pixels"),
        ("a dog", {"scheduler": "ddin"}, 422, "ddim"),
        ("a dog", {"guidance_scale": 1, "negative_prompt": "snow"}, 422, "guidance"),
        ("a dog", {"seed": -1}, 422, "seed"),
        ("a dog", {"colour": "red"}, 422, "A request has no 'colour'"),
        ("a dog", {"step": 4}, 422, "Did you mean 'steps'?"),
        ("a dog", {"num_inference_steps": 4}, 422, "Did you mean 'steps'?"),
        ("a dog", {"x" * 10_000: 4}, 422, "A request has no 'xxx"),
        ("snow [red:blue]", {}, 422, "Brackets"),
        ("snow <lora:ink:1>", {}, 422, "adapter"),
        (7, {}, 422, "prompt"),
        ("snow " * 150, {}, 422, "tokens"),
        ("a dog", {"negative_prompt": "snow " * 150, "guidance_scale": 4}, 422, "tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused_as_json(make_client, prompt, more, status, word):
    error = check_error(draw(make_client(), prompt, **more), status, word)
    assert "--" not in error["error"] + error["try"]  # a client gives no options


def test_what_has_too_many_tokens_takes_no_room_in_the_queue(make_service, make_client):
    service = make_service()
    client = make_client(service)
    check_error(draw(client, "snow " * 150), 422, "150 tokens")
    assert len(service.queue) == 0
    assert read_metrics(client)["sefi_batch_images_count"] == 0


@pytest.mark.slow
def test_a_long_prompt_changes_no_other_clients_image(make_service, make_client, backbone, people):
    client = make_client(make_service(batch=4, wait=1.0))
    long = "a photo of <p1> " + "at the beach and in the snow " * 4
    requests = {"a photo of <p0>": "p0", "a photo of <p2> smiling": "p2", long: "p1"}
    answers = {}
    threads = [
        threading.Thread(target=lambda prompt=prompt: answers.update({prompt: draw(client, prompt, seed=3)}))
        for prompt in requests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for prompt, name in requests.items():
        (alone,) = sefi.generate(prompt, people[name], backbone=backbone, config=QUICK, seed=3)
        pixels = np.asarray(Image.open(io.BytesIO(answers[prompt].content)), np.int16)
        assert np.abs(pixels - np.asarray(alone.pixels, np.int16)).max() <= 1, name


def test_a_prompts_chunks_are_its_own_or_those_of_a_longer_negative_prompt(make_service):
    service = make_service()
    for prompt, avoided, chunks in (("a dog", "", 1), ("a dog " * 8, "", 2), ("a dog", "snow " * 31, 3)):
        request = app_module.GenerateRequest(prompt=prompt, negative_prompt=avoided, guidance_scale=4)
        assert [task.chunks for task in service.prepare(request)] == [chunks]


@pytest.mark.parametrize(
    ("settings", "limits", "words"),
    [
        (["generate.clip_skip=50"], {}, "clip_skip 50"),
        (["generate.steps=500"], {}, "500 steps"),
        (["generate.steps=2000"], {"steps": 5000}, "2000 denoising steps"),
        (["generate.width=65"], {}, "multiples"),
        (["generate.width=1600", "generate.height=1600"], {}, "pixels"),
        (["generate.negative_prompt=<p0>"], {}, "names <p0>"),
        (["generate.negative_prompt=snow [red:blue]"], {}, "Brackets"),
        ([f"generate.negative_prompt={'snow ' * 150}"], {}, "tokens"),
        (["generate.negative_prompt=snow", "generate.guidance_scale=1"], {}, "guidance"),
    ],
)
def test_settings_that_no_request_can_use_are_refused_at_the_start(make_service, settings, limits, words):
    service = make_service(**limits)
    service.check()
    object.__setattr__(service.options, "config", override(QUICK, settings))
    with pytest.raises(ConfigError, match=words) as refused:
        service.check()
    assert "--set generate." in refused.value.remedy


def test_bodies_that_are_no_request(make_client):
    client = make_client()
    post = client.post
    kind = {"content-type": "application/json"}
    simple = {"content-type": "text/plain"}  # what a page of another site may send without asking first
    for content, headers in ((b"{", kind), (b"[]", kind), (b'{"prompt": "a dog"}', simple)):
        answer = post("/v1/generate", content=content, headers=headers)
        check_error(answer, 422, "no JSON object")
        assert "content-type: application/json" in answer.json()["try"]
    check_error(post("/v1/generate", content=b'{"prompt": "a dog", "guidance_scale": NaN}', headers=kind), 422)
    check_error(post("/v1/generate", content=b" " * (64 << 10) + b"{}", headers=kind), 413, "bytes")

    def stream():
        for _ in range(70):
            yield b" " * 1024

    check_error(post("/v1/generate", content=stream(), headers=kind), 413, "bytes")
    for length in ("\xb2", "9" * 5000, "-1"):  # digits for Python's `isdigit`, or more than `int` reads
        stated = kind | {"content-length": length.encode("latin-1")}
        check_error(post("/v1/generate", content=b"{}", headers=stated), 413, "bytes")
    check_error(client.get("/v1/generate"), 405)
    check_error(client.get("/v1/../etc"), 404)


def test_an_expired_consent_is_forbidden(make_client, people, folder):
    from sefi.identity.file import Identity

    stated = "by=Jane; for=self; scope=tests; date=2020-01-02; expires=2020-02-03"
    header = people["p0"].header.model_copy(update={"name": "gone", "consent": stated})
    Identity(people["p0"].tensors, header).save(folder / "gone.safetensors")
    check_error(draw(make_client(), "a photo of <gone>"), 403, "expired")


def test_other_hosts_names_and_missing_keys_are_refused(make_service, make_client):
    client = make_client(make_service(options={"key": KEY}))
    for path in ("/v1/identities", "/metrics", "/openapi.json", "/nothing"):
        check_error(client.get(path), 401, "Authorization")
    check_error(draw(client), 401)
    for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer", "Bearer \xe4"):
        check_error(client.get("/v1/identities", headers={"authorization": wrong.encode("latin-1")}), 401)
    assert client.get("/v1/identities", headers={"authorization": f"bearer {KEY}"}).json() == {"identities": NAMES}
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    check_error(client.get("/healthz", headers={"host": "evil.example"}), 421)
    assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
    open_client = make_client(make_service(options={"key": KEY, "local": False}))
    assert open_client.get("/healthz", headers={"host": "drawings.example"}).status_code == 200


def hold_workers(service, monkeypatch):
    """Let every batch wait for an event; return it, and one that says that a batch began."""
    free, begun = threading.Event(), threading.Event()
    for worker in service.workers:
        real = worker.draw

        def wait(batch, real=real):
            begun.set()
            assert free.wait(60)
            return real(batch)

        monkeypatch.setattr(worker, "draw", wait)
    return free, begun


def start_drawing(client, answers, **more):
    thread = threading.Thread(target=lambda: answers.append(draw(client, **more)))
    thread.start()
    return thread


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_full_queue_is_429_with_the_seconds_to_wait(make_service, make_client, monkeypatch):
    service = make_service(queue=2, batch=1)
    client, answers = make_client(service), []
    free, begun = hold_workers(service, monkeypatch)
    threads = [start_drawing(client, answers)]
    assert begun.wait(30)
    threads += [start_drawing(client, answers) for _ in range(2)]
    wait_until(lambda: len(service.queue) == 2)
    refused = draw(client)
    check_error(refused, 429, "wait already")
    assert int(refused.headers["retry-after"]) >= 1
    free.set()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert read_metrics(client)['sefi_requests_total{status="429"}'] == 1


def test_a_request_that_takes_too_long_is_504_and_dropped(make_service, make_client, monkeypatch):
    service = make_service(seconds=1, batch=1)  # enough for the first to be begun, also on a busy machine
    client = make_client(service)
    free, begun = hold_workers(service, monkeypatch)
    first = []
    thread = start_drawing(client, first)
    assert begun.wait(30)
    check_error(draw(client), 504, "within 1 s")
    thread.join(60)
    assert first[0].status_code == 504
    assert all(ticket.abandoned for ticket in service.queue._waiting)
    free.set()
    wait_until(lambda: len(service.queue) == 0)
    assert read_metrics(client).get("sefi_images_total", 0) <= 1  # what waited was never begun


def test_a_server_that_is_stopped_finishes_and_refuses(make_service, make_client, monkeypatch):
    service = make_service(batch=1)
    client, answers = make_client(service), []
    free, begun = hold_workers(service, monkeypatch)
    threads = [start_drawing(client, answers)]
    assert begun.wait(30)
    threads.append(start_drawing(client, answers))
    wait_until(lambda: len(service.queue) == 1)
    service.stop()
    check_error(draw(client), 503, "stopped")
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    free.set()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_failing_image_is_500_and_the_next_is_generated(make_service, make_client, monkeypatch):
    service = make_service()
    client = make_client(service)
    real = service.workers[0].draw
    errors = [GenerationError("No numbers.", "Learn again."), ZeroDivisionError("secret")]

    def fail(batch):
        if errors:
            raise errors.pop(0)
        return real(batch)

    monkeypatch.setattr(service.workers[0], "draw", fail)
    check_error(draw(client), 500, "No numbers.", "Learn again.")
    assert "secret" not in check_error(draw(client), 500, "log")["error"]
    assert draw(client).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_worker_that_has_ended_is_not_healthy(make_service, make_client):
    service = make_service()
    client = make_client(service)
    service.queue.close()
    service.workers[0].thread.join(30)
    assert client.get("/healthz").status_code == 503


# ------------------------------------------------------------------ clients that leave


def test_a_client_that_leaves_gives_its_images_up(make_service, monkeypatch, caplog):
    """On the application itself: a test client never leaves."""
    service = make_service(batch=1)
    app, sent = app_module.create_app(service), []
    service.start()
    free, begun = hold_workers(service, monkeypatch)
    body = json.dumps({"prompt": "a photo of <p0>", "count": 3}).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/generate", "raw_path": b"/v1/generate", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip

    async def leave():
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not begun.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(leave())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"]
    assert sent[0]["status"] == 499
    assert all(ticket.abandoned for ticket in service.queue._waiting)
    free.set()
    service.stop()
    service.workers[0].thread.join(30)
    assert service.metrics.registry.get_sample_value("sefi_batch_images_count") == 1
    assert service.metrics.registry.get_sample_value("sefi_requests_total", {"status": "499"}) == 1


# ------------------------------------------------------------------ what else is answered


def read_metrics(client):
    text = client.get("/metrics").text
    pairs = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_metrics_count_and_name_nobody(make_client):
    client = make_client()
    draw(client)
    draw(client, "a photo of <nobody>")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = read_metrics(client)
    assert found['sefi_requests_total{status="200"}'] == found['sefi_requests_total{status="404"}'] == 1
    assert found["sefi_images_total"] == found["sefi_batch_images_count"] == found["sefi_identity_loads"] == 1
    assert found["sefi_waiting_images"] == 0
    assert not any(name in answer.text for name in (*NAMES, "nobody", "beach"))


def test_every_request_to_generate_is_counted_whoever_answers_it(make_service, make_client):
    client = make_client(make_service(options={"key": KEY}))
    kind = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}

    def post(content, **changed):
        return client.post("/v1/generate", content=content, headers={**kind, **changed}).status_code

    asked = [
        post(b'{"prompt": "a dog"}'),
        post(b"{"),
        post(b'{"prompt": "<nobody>"}'),
        post(b'{"prompt": "a dog"}', authorization="Bearer no"),
        post(b'{"prompt": "a dog"}', host="evil.example"),
        post(b" " * (65 << 10)),
    ]
    assert asked == [200, 422, 404, 401, 421, 413]
    client.get("/v1/identities", headers=kind)
    client.get("/nothing", headers=kind)
    figures = client.get("/metrics", headers=kind).text
    counted = re.findall(r'sefi_requests_total\{status="(\d+)"\} (\S+)', figures)
    assert sorted(counted) == [(str(status), "1.0") for status in sorted(asked)]
    assert "sefi_request_seconds_count 6.0" in figures


def test_a_folder_that_is_gone_is_503(make_client, folder):
    client = make_client()
    shutil.rmtree(folder)
    for answer in (client.get("/v1/identities"), draw(client)):  # nobody is called missing
        error = check_error(answer, 503, "folder of identities")
        assert str(folder) not in error["error"] + error["try"]


def test_the_names_are_listed(make_client, folder):
    client = make_client()
    (folder / "no name.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    assert client.get("/v1/identities").json() == {"identities": NAMES}


def test_openapi_describes_requests_answers_and_errors(make_client):
    client = make_client()
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/healthz", "/readyz", "/metrics", "/v1/identities", "/v1/generate"}
    generate = described["paths"]["/v1/generate"]["post"]
    assert {"image/png", "application/json"} <= set(generate["responses"]["200"]["content"])
    failures = {"400", "401", "403", "404", "413", "421", "422", "429", "500", "503", "504"}
    assert set(generate["responses"]) == {"200"} | failures
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)) == failures
    request = described["components"]["schemas"]["GenerateRequest"]
    assert request["required"] == ["prompt"]
    assert request["additionalProperties"] is False
    error = described["components"]["schemas"]["ErrorAnswer"]
    assert set(error["properties"]) == {"schema", "error", "try"}
    assert client.get("/docs").status_code == 404  # it would load scripts from another server


def test_settings_that_the_server_was_started_with_are_the_defaults(make_service, make_client, backbone, people):
    service = make_service()
    object.__setattr__(service.options, "config", override(QUICK, ["generate.steps=4", "generate.scheduler=euler"]))
    answer = draw(make_client(service), "a photo of <p0>")
    config = override(QUICK, ["generate.steps=4", "generate.scheduler=euler"])
    (image,) = sefi.generate("a photo of <p0>", people["p0"], backbone=backbone, config=config)
    assert answer.content == image.encode().content
