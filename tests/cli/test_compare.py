"""`sefi compare`: whatever is changed alone, on a command line or in a file, is the first difference that it names."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sefi.cli.app import app
from sefi.cli.compare import format_comparison, load_comparable
from sefi.core.config import list_setting_fields
from sefi.core.text import dump_json
from sefi.identity.file import Identity
from sefi.methods import get_preset
from sefi.provenance.compare import ComparedFact, ResultComparison, compare_results

PROMPT = "a photo of <ada> in snow"
BOX = "3,4,40,40"


def run_program(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def learn(out, photo, model, *words, name="ada"):
    fixed = ("--name", name, "--model", model, "--device", "cpu", "--out", out, "--overwrite")
    box = () if "--box" in words else ("--box", BOX)
    steps = () if "--steps" in words else ("--steps", 2)
    consent = ("--consent", "by=Jane Doe; for=synthetic; scope=tests; date=2026-01-02")
    return run_program("learn", photo, *fixed, *box, *steps, *consent, *words, "--json")


def generate(out, ada, model, *words, prompt=PROMPT):
    steps = () if "--steps" in words else ("--steps", 3)
    fixed = ("-i", ada, "--model", model, "--device", "cpu", "--out", out)
    fixed = fixed if "<ada>" in prompt else fixed[2:]
    return run_program("generate", prompt, *fixed, *steps, *words, "--json")


@pytest.fixture
def compare(sefi):
    """Compare two paths; the answer, whose exit code fits."""

    def run(*words):
        found = sefi("compare", *words, "--json")
        assert found.exit_code in (0, 1), found.output
        answer = json.loads(found.stdout)
        assert answer["equal"] == (found.exit_code == 0) == (answer["first"] is None)
        return answer

    return run


@pytest.fixture(scope="module")
def other_model(model_folder, tmp_path_factory):
    """The tiny model with other weights behind the first convolution, which its fingerprint is made of."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder, folder)
    file = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(file)
    save_file(
        {name: weight if name.startswith("conv_in") else weight * 1.1 for name, weight in weights.items()},
        file,
        metadata={"format": "pt"},
    )
    return folder


@pytest.fixture(scope="module")
def other_photo(portrait, tmp_path_factory):
    """Another photo of the same size."""
    path = tmp_path_factory.mktemp("photo") / "other.png"
    Image.open(portrait).transpose(Image.Transpose.ROTATE_180).point(lambda level: level // 2).save(path)
    return path


@pytest.fixture(scope="module")
def learned(portrait, model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "ada.safetensors"
    learn(path, portrait, model_folder)
    return path


# ------------------------------------------------------------------ identities


def test_learning_again_is_equal_to_the_byte(compare, learned, portrait, model_folder, tmp_path):
    again = tmp_path / "again.safetensors"
    answer = learn(again, portrait, model_folder)
    found = compare(learned, again)
    assert found["equal"]
    assert found["unknown"] == []
    assert found["kind"] == "an identity"
    assert again.read_bytes() == learned.read_bytes()
    assert learned.stat().st_size < 40_000
    assert answer["run"]["preset"] == "default"
    assert answer["run"]["settings"]["learn"]["steps"] == 2


LEARNED_CHANGES = {
    "seed": (("--seed", 7), ("seed", "seed")),
    "steps": (("--steps", 3), ("settings", "learn.steps")),
    "rate": (("--set", "learn.learning_rate=0.002"), ("settings", "learn.learning_rate")),
    "class word": (("--class-word", "dog"), ("settings", "learn.class_word")),
    "method": (("--method", "textual-inversion"), ("settings", "method")),
    "crop": (("--box", "3,4,38,38"), ("photo", "crop 1.side")),
    "dtype": (("--dtype", "bfloat16"), ("machine", "dtype")),
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("change", LEARNED_CHANGES)
def test_a_changed_option_of_learning_is_named_first(compare, learned, portrait, model_folder, tmp_path, change):
    words, expected = LEARNED_CHANGES[change]
    other = tmp_path / "other.safetensors"
    learn(other, portrait, model_folder, *words)
    found = compare(learned, other)
    assert (found["first"]["cause"], found["first"]["name"]) == expected
    assert found["differences"][-1]["cause"] in ("tensors", "metrics")
    assert not found["unexplained"]


@pytest.mark.slow
def test_another_model_is_named_first(compare, learned, portrait, other_model, tmp_path):
    other = tmp_path / "other.safetensors"
    learn(other, portrait, other_model)
    found = compare(learned, other)
    assert (found["first"]["cause"], found["first"]["name"]) == ("model", "signature.unet")


def test_where_the_model_lies_changes_no_byte(learned, portrait, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "elsewhere")
    learn(tmp_path / "ada.safetensors", portrait, tmp_path / "elsewhere")
    assert (tmp_path / "ada.safetensors").read_bytes() == learned.read_bytes()


def test_another_photo_is_suggested_where_nothing_else_differs(
    compare, sefi, learned, other_photo, model_folder, tmp_path
):
    other = tmp_path / "other.safetensors"
    learn(other, other_photo, model_folder)
    found = compare(learned, other)
    # Until an identity has a hash of its photo, the tokens alone differ.
    assert found["first"]["cause"] in ("photo", "tensors")
    assert found["unexplained"] == (found["first"]["cause"] == "tensors")
    assert "another photo" in sefi("compare", learned, other).stdout or not found["unexplained"]


@pytest.mark.slow
def test_what_learning_started_from_is_named_first(compare, sefi, learned, portrait, model_folder, tmp_path):
    words = ("--set", "learn.expansion=direct")
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    learn(plain, portrait, model_folder, *words)
    answer = learn(other, portrait, model_folder, *words, "--init", learned)
    found = compare(plain, other)
    assert found["first"]["cause"] == "init"
    inspected = json.loads(sefi("inspect", learned, "--json").stdout)
    assert found["first"]["b"] == "ada"
    assert found["differences"][1]["b"] == inspected["tokens_sha256"]
    assert answer["run"]["identities"] == {"ada": answer["run"]["identities"]["ada"]}
    assert json.loads(sefi("inspect", other, "--json").stdout)["record"]["init"]["name"] == "ada"


@pytest.mark.slow
def test_threads_are_named_first(compare, learned, portrait, model_folder, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        learn(tmp_path / "other.safetensors", portrait, model_folder)
    finally:
        torch.set_num_threads(threads)
    found = compare(learned, tmp_path / "other.safetensors")
    assert (found["first"]["cause"], found["first"]["name"]) == ("machine", "threads")


def change_header(identity, **changes):
    return Identity(identity.tensors, identity.header.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"library_versions": {"torch": "2.0.0"}}, ("versions", "torch")),
        ({"base_model": "tiny:24:0000000000000000"}, ("model", "fingerprint")),
        ({"seed": 5}, ("seed", "seed")),
        ({"name": "bea"}, ("name", "name")),
        ({"consent": "Ada agreed."}, ("consent", "consent")),
    ],
    ids=lambda value: "-".join(value),
)
def test_a_changed_entry_of_the_header_is_named_first(compare, learned, tmp_path, changes, expected):
    other = tmp_path / "other.safetensors"
    change_header(Identity.load(learned), **changes).save(other)
    found = compare(learned, other)
    assert (found["first"]["cause"], found["first"]["name"]) == expected
    assert not [one for one in found["differences"] if one["cause"] != expected[0]]


def find_another_value(name, value, field):
    """A value of a setting that differs and is allowed."""
    special = {
        "learn.templates": ["a drawing of {}"], "views.max_scale": 0.9, "learn.class_word": "dog",
        "generate.negative_prompt": "hat", "generate.width": 64, "generate.height": 64,
        "learn.photo_words": "at the beach",
    }  # fmt: skip
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    if value is None:
        return 2
    if isinstance(value, str):
        choices = [one for one in getattr(field.annotation, "__args__", ()) if one != value]
        return choices[0]
    if isinstance(value, int):
        return value + 1 if name != "learn.attention_option" else 1
    return value / 2 if value else 0.25


NEED_ANOTHER = {"learn.encoder", "learn.noise_freedom"}  # and cannot be changed alone
SETTINGS = {
    name: field for name, field in list_setting_fields(type(get_preset("default"))).items() if name not in NEED_ANOTHER
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changed_alone_is_named_first(learned, tmp_path, name):
    identity = Identity.load(learned)
    section, _, last = name.partition(".")
    settings = json.loads(json.dumps(identity.header.settings))
    value = find_another_value(name, settings[section].get(last, SETTINGS[name].default), SETTINGS[name])
    settings[section][last] = value
    tensors, changes = {"tokens": identity.tokens + 0.5}, {"settings": settings}
    if name == "learn.stages":
        changes["stages"], tensors["tokens"] = value, torch.zeros(value, *identity.tokens.shape[1:])
    other = tmp_path / "other.safetensors"
    change_header(Identity(tensors, identity.header), **changes).save(other)
    found = compare_results(load_comparable(learned, -1), load_comparable(other, -1))
    assert (found.differences[0].cause, found.differences[0].name) == ("settings", name)
    assert [fact.cause for fact in found.differences] == ["settings", "tensors"]


def test_the_tensor_that_differs_most_is_placed(compare, sefi, learned, tmp_path):
    identity = Identity.load(learned)
    tokens = identity.tokens.clone()
    tokens[3, 1, 7] += 0.5
    tokens[0, 0, 2] += 0.125
    replace(identity, tensors={"tokens": tokens}).save(tmp_path / "other.safetensors")
    found = compare(learned, tmp_path / "other.safetensors")
    assert found["first"]["detail"] == f"2 of {tokens.numel()} numbers differ, most by 0.5: stage 3, value, number 7"
    assert found["unexplained"]
    text = sefi("compare", learned, tmp_path / "other.safetensors").stdout
    assert text.startswith("first difference: tensors: tokens: 2 of ")
    assert "nothing else on record differs: another photo" in text


def test_an_identity_of_before_there_were_records_is_compared_in_what_it_states(compare, learned, tmp_path):
    identity = Identity.load(learned)
    few = {name: identity.header.library_versions[name] for name in ("torch", "diffusers", "transformers")}
    change_header(identity, record=None, schema_version=2, library_versions=few).save(tmp_path / "old.safetensors")
    found = compare(learned, tmp_path / "old.safetensors")
    assert found["equal"]
    assert {one["cause"] for one in found["unknown"]} == {"versions", "machine", "photo"}


def test_salted_hashes_of_photos_are_not_said_to_be_on_one_side_only():
    salted = ComparedFact("photo", "hash", "12ab", "34cd", is_unknown=True)
    text = format_comparison(ResultComparison((), (salted,), 9), "identity")
    assert "salted hash (photo):" in text
    assert not [line for line in text.splitlines() if line.startswith("stated by one side only")]


def test_the_identity_says_nothing_of_the_photo_or_the_place(learned, portrait, model_folder):
    content = learned.read_bytes()
    assert portrait.name.encode() not in content
    assert str(model_folder).encode() not in content
    assert b"/tmp" not in content


# ------------------------------------------------------------------ runs of images


@pytest.fixture(scope="module")
def files(learned, portrait, other_photo, tmp_path_factory):
    """Images to start from under one name, and the first run."""
    folder = tmp_path_factory.mktemp("files")
    for name, photo in (("one", portrait), ("two", other_photo)):
        (folder / name).mkdir()
        shutil.copy(photo, folder / name / "start.png")
    return folder


@pytest.fixture(scope="module")
def drawn(learned, model_folder, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    generate(folder, learned, model_folder, "--init-image", files / "one" / "start.png")
    return folder


GENERATED_CHANGES = {
    "seed": (("--seed", 7), ("seed", "seed")),
    "steps": (("--steps", 4), ("settings", "steps")),
    "guidance": (("--guidance-scale", 3), ("settings", "guidance_scale")),
    "scheduler": (("--scheduler", "euler"), ("settings", "scheduler")),
    "negative prompt": (("--negative-prompt", "dog"), ("settings", "negative_prompt")),
    "count": (("--count", 2), ("settings", "count")),
    "identity strength": (("--identity-strength", 0.5), ("settings", "identity_strength")),
    "batch size": (("--batch-size", 1), ("settings", "batch_size")),
    "width": (("--width", 32), ("settings", "width")),
    "clip skip": (("--clip-skip", 2), ("settings", "clip_skip")),
    "preset": (("--preset", "paper"), ("preset", "preset")),
    "strength": (("--strength", 0.5), ("inputs", "strength")),
    "dtype": (("--dtype", "bfloat16"), ("machine", "dtype")),
}


@pytest.mark.parametrize("change", GENERATED_CHANGES)
def test_a_changed_option_of_generation_is_named_first(compare, drawn, learned, model_folder, files, tmp_path, change):
    words, expected = GENERATED_CHANGES[change]
    generate(tmp_path / "out", learned, model_folder, "--init-image", files / "one" / "start.png", *words)
    found = compare(drawn, tmp_path / "out")
    assert (found["first"]["cause"], found["first"]["name"]) == expected
    assert not found["unexplained"]


def test_generating_again_is_equal_and_a_second_run_is_compared_with_the_first(
    compare, refused, drawn, learned, model_folder, files, tmp_path
):
    for seed in (0, 5):
        init = ("--init-image", files / "one" / "start.png")
        answer = generate(tmp_path / "out", learned, model_folder, *init, "--seed", seed)
    assert answer["records"] == str(tmp_path / "out" / "records.json")
    assert compare(drawn, tmp_path / "out", "--runs", "1,1")["equal"]
    assert compare(tmp_path / "out", tmp_path / "out")["first"]["name"] == "seed"  # its last two
    assert compare(tmp_path / "out" / "records.json", tmp_path / "out", "--runs", "2,2")["equal"]
    assert "has 2 run(s)" in refused("compare", drawn, tmp_path / "out", "--runs", "1,3")
    assert "no two runs" in refused("compare", drawn, drawn, "--runs", "0,1")


def test_a_number_of_a_run_is_refused_where_there_are_no_runs(refused, learned, tmp_path):
    assert "no effect on an identity" in refused("compare", learned, learned, "--runs", "1,2")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert "no effect on an image" in refused("compare", tmp_path / "a.png", tmp_path / "a.png", "--runs", "1,2")


@pytest.mark.slow
def test_another_prompt_identity_model_and_image_are_named_first(
    compare, drawn, learned, model_folder, other_model, files, portrait, tmp_path
):
    start = ("--init-image", files / "one" / "start.png")
    generate(tmp_path / "prompt", learned, model_folder, *start, prompt="a drawing of <ada>")
    assert compare(drawn, tmp_path / "prompt")["first"]["cause"] == "prompts"
    (tmp_path / "in").mkdir()
    other = tmp_path / "in" / "ada.safetensors"
    learn(other, portrait, model_folder, "--seed", 3)
    generate(tmp_path / "identity", other, model_folder, *start)
    first = compare(drawn, tmp_path / "identity")["first"]
    assert (first["cause"], first["name"]) == ("identities", "sha256.ada")
    plain = "a photo of person"
    for name, model in (("one", model_folder), ("two", other_model)):
        generate(tmp_path / name, learned, model, prompt=plain)
    first = compare(tmp_path / "one", tmp_path / "two")["first"]
    assert (first["cause"], first["name"]) == ("model", "signature")
    generate(tmp_path / "image", learned, model_folder, "--init-image", files / "two" / "start.png")
    first = compare(drawn, tmp_path / "image")["first"]
    assert (first["cause"], first["name"]) == ("inputs", "sha256.init_image")
    generate(tmp_path / "plain", learned, model_folder)
    first = compare(drawn, tmp_path / "plain")["first"]
    assert (first["cause"], first["name"]) == ("inputs", "init_image")


def test_a_name_of_what_agrees_is_no_difference(compare, learned, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "renamed")
    answers = [
        generate(tmp_path / "one", learned, model_folder),
        generate(tmp_path / "two", learned, tmp_path / "renamed", "--preset", "fast"),
    ]
    assert [answer["run"]["preset"] for answer in answers] == ["default", "fast"]
    assert [answer["run"]["model"]["source"] for answer in answers] == [model_folder.name, "renamed"]
    assert compare(tmp_path / "one", tmp_path / "two")["equal"]


def test_a_changed_image_of_a_run_is_found(compare, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "out")
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    (image,) = [one for one in records["runs"][0]["run"]["images"] if one["file"] != "grid.png"]
    with Image.open(drawn / image["file"]) as file:
        pixels = np.asarray(file).copy()
    pixels[5, 7] ^= 1
    Image.fromarray(pixels).save(tmp_path / "out" / image["file"])
    image["pixels_sha256"] = "0" * 64
    (tmp_path / "out" / "records.json").write_text(json.dumps(records))
    found = compare(drawn, tmp_path / "out")
    assert found["unexplained"]
    assert found["first"]["detail"].startswith("1 of 576 pixels differ, most by 1 of 255; all in 1 x 1 pixels from")


def test_the_record_holds_hashes_and_no_path(drawn, learned, model_folder, files):
    import hashlib

    text = (drawn / "records.json").read_text()
    assert not [part for part in (str(drawn), str(learned.parent), str(model_folder), str(files)) if part in text]
    (run,) = json.loads(text)["runs"]
    assert run["run"]["identities"] == {"ada": hashlib.sha256(learned.read_bytes()).hexdigest()}
    assert {one["file"]: one["sha256"] for one in run["run"]["images"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn.glob("*.png")
    }
    assert run["run"]["model"]["source"] == model_folder.name
    assert run["run"]["versions"]["torch"] == torch.__version__


def test_a_record_of_before_is_compared_in_what_it_states(compare, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "old")
    (run,) = json.loads((drawn / "records.json").read_text())["runs"]
    del run["run"]
    run["images"] = [{**one, "file": f"pictures/{one['file']}"} for one in run["images"]]
    (tmp_path / "old" / "records.json").write_text(json.dumps({"schema_version": 1, "runs": [run]}))
    found = compare(drawn, tmp_path / "old")
    assert found["equal"], found["first"]
    assert {"versions", "machine", "preset"} <= {one["cause"] for one in found["unknown"]}


# ------------------------------------------------------------------ benchmark runs and images


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"versions": {"sefi": "0.2.0", "torch": "2.13.0"}}, ("versions", "sefi")),
        ({"device": "cuda"}, ("machine", "device")),
        ({"model": {"name": "/a/tiny", "fingerprint": "tiny:192:f"}}, ("model", "fingerprint")),
        ({"tau": 0.25}, ("settings", "tau")),
        ({"settings": {"ours": {"method": "sefi", "learn": {"steps": 3}}}}, ("settings", "ours.learn.steps")),
        ({"learning_files": {"evaluators": {"clip": "1"}}}, ("inputs", "evaluator clip")),
        ({"learning_files": {"evaluators": {}}}, ("inputs", "evaluator clip")),
        ({"learning_files": None}, None),
        ({"photos": {name: ["1"] for name in ("ada", "bob", "eve")}}, ("photo", "hash.ada")),
    ],
    ids=["equal", "versions", "device", "model", "tau", "settings", "files", "file", "former", "photos"],
)
def test_a_changed_fact_of_a_benchmark_run_is_named_first(compare, synthetic, tmp_path, changes, expected):
    base = {"device": "cpu", "photos": {name: ["0"] for name in ("ada", "bob", "eve")}}
    base["learning_files"] = {"evaluators": {"clip": "0"}}
    samples = synthetic.make_samples()
    synthetic.write_run(tmp_path / "one", synthetic.make_run(**base), samples)
    slower = [sample.model_copy(update={"draw_seconds": 9.0, "learn_seconds": 9.0}) for sample in samples]
    synthetic.write_run(tmp_path / "two", synthetic.make_run(**base | changes), slower)
    found = compare(tmp_path / "one", tmp_path / "two" / "run.json")
    assert found["kind"] == "a benchmark run"
    if expected is None:
        assert found["equal"]
    else:
        assert (found["first"]["cause"], found["first"]["name"]) == expected


def test_scores_and_images_of_a_benchmark_run_are_effects(compare, synthetic, tmp_path):
    samples = synthetic.make_samples()
    synthetic.write_run(tmp_path / "one", synthetic.make_run(), samples)
    changed = [samples[0].model_copy(update={"id": 0.25, "sha256": "00"}), *samples[2:]]
    synthetic.write_run(tmp_path / "two", synthetic.make_run(), changed)
    found = compare(tmp_path / "one", tmp_path / "two")
    assert found["unexplained"]
    assert [one["cause"] for one in found["differences"][:2]] == ["images", "images"]
    assert found["differences"][1]["detail"] == "only one side has it"
    assert found["differences"][2]["name"].endswith(".id")


@pytest.mark.parametrize("kind", ["path", "link"])
def test_a_record_leads_to_no_image_outside_its_run(compare, synthetic, tmp_path, kind):
    samples = synthetic.make_samples()
    synthetic.write_run(tmp_path / "one", synthetic.make_run(), samples)
    synthetic.write_run(tmp_path / "two", synthetic.make_run(), samples)
    private = tmp_path / "private.png"
    Image.new("RGB", (96, 96)).save(private)
    name = "../private.png"
    if kind == "link":
        name = "link.png"
        (tmp_path / "two" / name).symlink_to(private)
    changed = [samples[0].model_copy(update={"sha256": "00", "image": name}), *samples[1:]]
    (tmp_path / "two" / "cells.jsonl").write_text("".join(one.dump() + "\n" for one in changed))
    (found,) = compare(tmp_path / "one", tmp_path / "two")["differences"]
    assert found["detail"] == "hashes of pixels differ; a file is missing"


def test_images_are_compared_by_words_and_pixels(compare, drawn, tmp_path):
    image = next(path for path in drawn.glob("*.png") if path.name != "grid.png")
    shutil.copy(image, tmp_path / "same.png")
    assert compare(image, tmp_path / "same.png")["equal"]
    with Image.open(image) as file:
        Image.fromarray(np.asarray(file) ^ 1).save(tmp_path / "other.png")
    found = compare(image, tmp_path / "other.png")
    assert "images" in {one["cause"] for one in found["differences"]}


def test_two_kinds_differ_in_kind(compare, learned, drawn, sefi):
    found = compare(learned, drawn)
    assert found["first"] == {
        "cause": "kind", "name": "kind", "a": "an identity", "b": "a run of images", "detail": "",
    }  # fmt: skip
    assert sefi("compare", learned, drawn).stdout.startswith("first difference: kind: kind: an identity in A, a run")
    assert sefi("compare", learned, learned).stdout.startswith("equal: ")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"words", "is a text file"),
        ("a.json", b'{"mine": 1}', "no record"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "no image that can be read"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "safetensors file of something else"),
        ("records.json", b'{"schema_version": 2, "runs": [{"images": [{}]}]}', "damaged"),
        ("records.json", b'{"schema_version": 2, "runs": [{"images": [], "run": {"kind": "dance"}}]}', "damaged"),
        ("records.json", b'{"schema_version": 2, "runs": [{"images": [], "settings": 3}]}', "damaged"),
        ("records.json", b'{"schema_version": 2, "runs": []}', "has 0 run"),
    ],
)
def test_what_cannot_be_compared_is_refused(refused, learned, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused("compare", learned, tmp_path / name)


def test_missing_files_are_refused(refused, learned, tmp_path):
    assert "no file" in refused("compare", learned, tmp_path / "none")
    assert "no run in the folder" in refused("compare", learned, tmp_path)


def test_a_long_table_is_cut_and_says_so(sefi, learned, tmp_path):
    identity = Identity.load(learned)
    metrics = {f"number {n}": float(n) for n in range(40)}
    change_header(identity, metrics=metrics).save(tmp_path / "a.safetensors")
    doubled = {name: value + 1 for name, value in metrics.items()}
    change_header(identity, metrics=doubled).save(tmp_path / "b.safetensors")
    text = sefi("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors").stdout
    assert text.count("\nmetrics  ") == 12
    assert "... and 28 more: metrics; --json has all" in text
    assert dump_json(metrics)
