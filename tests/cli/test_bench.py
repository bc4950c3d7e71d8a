"""`sefi bench`, end to end on a tiny model without evaluators."""

import json
import os
import signal
import threading
import time
from importlib.resources import files
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image
from tests.suites import SUITE

from sefi.backbone.open import MODELS
from sefi.benchmark.run import RunFolder
from sefi.core.prompts import CHARACTERS
from sefi.diffusion import sampling
from sefi.evaluation.encoders import DETECTOR, RECOGNISER
from sefi.photo.detect import Face
from sefi.training.loop import Trainer
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person

ONE_PROMPT = """
[[prompts]]
text = "a photo of {} at the beach"
kind = "scene"
"""


@pytest.fixture
def asked(model_folder, tmp_path):
    """What every call of `sefi bench run` is told here."""
    suite, photos = tmp_path / "dogs.toml", tmp_path / "photos"
    suite.write_text(SUITE)
    photos.mkdir()
    for n, name in enumerate(("rex", "bello")):
        pixels = np.random.default_rng(n).integers(0, 255, (41, 37, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.png")
    return [suite, "--model", model_folder, "--photos", photos, "--device", "cpu", "--out", tmp_path / "run"]


def test_a_run_is_made_once_and_reported(sefi, asked, tmp_path):
    for made in (4, 0):
        found = sefi("bench", "run", *asked, "--json")
        assert found.exit_code == 0, found.output
        record = {"schema": "bench run/2", "run": str(tmp_path / "run"), "made": made, "images": 4, "mark": True}
        record |= {"planned": 4, "failed": []}
        assert json.loads(found.stdout) == record
    text = (tmp_path / "run" / "run.json").read_text()
    assert str(tmp_path) not in text
    recorded = json.loads(text)["record"]
    assert (recorded["kind"], recorded["device"], recorded["threads"]) == ("bench", "cpu", torch.get_num_threads())
    assert recorded["model"]["signature"]
    found = sefi("bench", "report", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert (answer["images"], answer["not_comparable"]) == (4, [])
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "not computed" in page
    assert "rex" in page
    assert json.loads((tmp_path / "run" / "report" / "tables.json").read_text())
    assert (tmp_path / "run" / "report" / "tables.csv").read_text().count("\n") > 1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_for_one_subject_stops_no_other_and_is_made_by_the_next_run(sefi, asked, tmp_path, jobs):
    found = sefi("bench", "run", *asked, "--json")
    assert found.exit_code == 0, found.output
    run = RunFolder(tmp_path / "run")
    lines = run.samples_file.read_text().splitlines(keepends=True)
    run.samples_file.write_text("".join(line for line in lines if json.loads(line)["variant"] == "word"))
    identity = run.identities / "rex--ours.safetensors"
    whole = identity.read_bytes()
    identity.write_bytes(whole[:100])
    found = sefi("bench", "run", *asked, "--jobs", jobs, "--json")
    assert found.exit_code == 1, found.output
    answer = json.loads(found.stdout)
    assert (answer["made"], answer["images"], answer["planned"]) == (1, 3, 4)
    [failed] = answer["failed"]
    assert (failed["subject"], failed["variant"]) == ("rex", "ours")
    assert str(identity) in failed["problem"]
    assert failed["try"]
    assert json.loads(sefi("bench", "report", tmp_path / "run", "--json").stdout)["finished"] is False
    assert "3 of 4 images, not finished" in sefi("bench", "report", tmp_path / "run").stdout
    found = sefi("bench", "run", *asked)
    assert found.exit_code == 1, found.output
    assert f"0 images made, 3 of 4 in '{tmp_path / 'run'}'\nnot made: rex, ours: " in found.stdout
    identity.write_bytes(whole)
    found = sefi("bench", "run", *asked, "--json")
    assert (found.exit_code, json.loads(found.stdout)["made"]) == (0, 1), found.output
    hashes = [
        {json.loads(line)["sha256"] for line in some} for some in (lines, run.samples_file.read_text().splitlines())
    ]
    assert hashes[0] == hashes[1]


def test_a_variant_that_cannot_learn_is_refused_before_anything_is_made(sefi, asked, tmp_path):
    suite = asked[0]
    suite.write_text(SUITE + '\n[[variants]]\nlabel = "FastComposer"\npreset = "fastcomposer"\n')
    found = sefi("bench", "run", *asked)
    assert found.exit_code == 2
    assert "FastComposer knows a subject by the face of a person, and 'dog' is none" in found.stderr
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.slow
def test_two_processes_make_the_same_images(sefi, asked, tmp_path):
    found = sefi("bench", "run", *asked, "--json")
    assert found.exit_code == 0, found.output
    shared = [*asked[:-1], tmp_path / "shared"]
    found = sefi("bench", "run", *shared, "--jobs", 2, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["made"] == 4

    def images(folder):
        lines = (tmp_path / folder / "cells.jsonl").read_text().splitlines()
        return {(c["subject"], c["variant"]): c["sha256"] for c in map(json.loads, lines)}

    assert images("shared") == images("run")


def test_the_suites_are_listed(sefi):
    found = sefi("bench", "list", "--json")
    assert found.exit_code == 0, found.output
    suites = json.loads(found.stdout)["suites"]
    assert {"quick", "table1", "table2", "slots", "portraits", "cats"} <= set(suites)
    lines = sefi("bench", "list").stdout.splitlines()
    assert len({line.index(about) for line, about in zip(lines, suites.values(), strict=True)}) == 1  # one column


def test_what_cannot_be_run_is_refused(sefi, refused, asked, tmp_path, model_folder):
    assert "no suite" in refused("bench", "run", "nothing", "--out", tmp_path / "run")
    assert "no drawn people" in refused("bench", "run", "quick", "--model", model_folder, "--out", tmp_path / "run")
    assert "no benchmark run" in refused("bench", "report", tmp_path)
    people = [asked[0].with_name("people.toml"), *asked[1:]]
    people[0].write_text(SUITE.replace('kind = "dog"', 'kind = "person"'))
    assert "No face was found" in refused("bench", "run", *people)  # the package's own detector looks for them
    assert "no folder" in refused("bench", "run", *asked[:3], "--photos", tmp_path / "none", "--out", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("class_word", ["person", "dog"])
def test_the_named_detector_finds_every_face(sefi, asked, tmp_path, monkeypatch, class_word):
    """Also the face that settings ask for, in the square that is learned; of a dog none is looked for."""
    suite, detector, opened = asked[0], tmp_path / "detector.onnx", []
    detector.touch()
    face = Face(0.0, 0.0, 8.0, 8.0, ((0.0, 0.0),) * 5, 0.9)
    for module in ("sefi.api", "sefi.benchmark.evaluators"):
        found_by = lambda path, module=module: opened.append((module, path)) or (lambda _rgb: [face])  # noqa: E731
        monkeypatch.setattr(f"{module}.YuNetDetector", found_by)
    asking = '"learn.steps=1", "learn.outside_weight=0.5"' if class_word == "person" else '"learn.steps=1"'
    suite.write_text(SUITE.replace('"dog"', f'"{class_word}"').replace('"learn.steps=2"', asking))
    found = sefi("bench", "run", *asked, "--detector", detector, "--json")
    assert found.exit_code == 0, found.output
    in_what_is_learned = [("sefi.api", detector)] * (2 if class_word == "person" else 0)  # of each subject
    assert opened == [("sefi.benchmark.evaluators", detector), *in_what_is_learned]


@pytest.mark.slow
def test_a_run_of_something_else_is_not_mixed_in(sefi, refused, asked):
    found = sefi("bench", "run", *asked, "--json")
    assert found.exit_code == 0, found.output
    asked[0].write_text(SUITE.replace("seeds = [5]", "seeds = [7]"))
    assert "differs in suite.seeds" in refused("bench", "run", *asked)


@pytest.mark.slow
def test_table_1_on_a_model_of_ones_own(sefi, tmp_path):
    # A folder of a model brings no evaluators and no names of its own: this one serves as somebody's Stable Diffusion.
    whole = (files("sefi.benchmark") / "suites" / "table1-sd.toml").read_text(encoding="utf-8")
    suite = tmp_path / "table1-sd.toml"
    suite.write_text(whole.replace('prompt_lists = ["paper"]', "").replace("[100, 101]", "[5]") + ONE_PROMPT)
    for n in (200, 201):
        folder = tmp_path / "people" / f"p{n}"
        folder.mkdir(parents=True)
        for view in (0, 1):
            Image.fromarray(draw(make_portrait(make_test_person(n), n, view), 192)).save(folder / f"{view}.png")
    evaluators = MODELS / "evaluators"
    given = [
        "--model", MODELS / "tiny-portraits", "--photos", tmp_path / "people", "--device", "cpu",
        "--detector", evaluators / DETECTOR, "--recogniser", evaluators / RECOGNISER, "--clip", evaluators / "clip",
    ]  # fmt: skip
    few = ("learn.steps=1", "learn.batch=1", "tune.prior_images=1", "generate.steps=2", f"basis.names={CHARACTERS}")
    lacking = sefi("bench", "run", suite, *given, "--out", tmp_path / "run")
    assert lacking.exit_code == 2
    assert "--evaluators" in lacking.stderr or "list of the names" in lacking.stderr
    settings = [word for setting in few for word in ("--set", setting)]
    found = sefi("bench", "run", suite, *given, *settings, "--judges", evaluators, "--out", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert all(config["learn"]["steps"] == 1 for config in told["settings"].values())
    samples = RunFolder(tmp_path / "run").read_samples()
    assert {sample.variant for sample in samples} == {variant["label"] for variant in told["suite"]["variants"]}
    assert all(sample.id is not None and sample.prompt_score is not None for sample in samples)


@pytest.mark.slow
def test_workers_that_are_killed_from_outside_cost_a_run_nothing(sefi, asked, tmp_path):
    def kill_workers():
        while not list((tmp_path / "run").glob("identities/*.safetensors")):
            time.sleep(0.01)
        for worker in active_children():
            os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_workers, daemon=True)
    killer.start()
    # Images take long enough for the workers to be at work when they are killed, however late that is noticed.
    found = sefi("bench", "run", *asked, "--jobs", 2, "--set", "generate.steps=100", "--json")
    killer.join(0)
    assert not killer.is_alive()
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert (answer["made"], answer["failed"]) == (4, [])
    assert "note: a worker was killed (exit code -9), perhaps for want of memory; another makes " in found.stderr
    samples, _ = RunFolder(tmp_path / "run").read_samples_after(0)  # also one that is there twice
    assert len(samples) == len({sample.key for sample in samples}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("where", ["learning", "generating"])
def test_sigterm_says_how_far_a_run_is_and_it_goes_on(sefi, asked, tmp_path, monkeypatch, where):
    owner, name = {"learning": (Trainer, "take_step"), "generating": (sampling, "decode_images")}[where]
    whole, calls = getattr(owner, name), []

    def stop(*words, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return whole(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        found = sefi("bench", "run", *asked, "--json")
    assert found.exit_code == 143, found.output
    unfinished = list((tmp_path / "run").rglob("*.checkpoint"))
    if where == "learning":
        assert json.loads(found.stdout)["error"] == f"Stopped at step 2 of 2; the training is saved in {unfinished[0]}."
    else:  # the plain word's image, which is that of both subjects, came first
        assert json.loads(found.stdout)["error"] == f"Interrupted: 2 of 4 images are in '{tmp_path / 'run'}'."
        assert not unfinished
    found = sefi("bench", "run", *asked, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["images"] == 4
