"""`sefi score`: images of any program get the figures that `sefi bench` gives its own."""

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline
from huggingface_hub import DatasetCard, HfApi
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from sefi.benchmark.records import RunInfo
from sefi.benchmark.run import RunFolder
from sefi.benchmark.scored_folder import FolderHints
from sefi.cli.bench_setup import PHOTO_SIDE, BenchOptions
from sefi.cli.score import describe_prompts, find_words_unknown_to_clip, format_prompt_measures, make_suite
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS, RECOGNISER
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person
from tiny_portraits.text.words import parse_wanted

# Finding them on drawings takes seconds; the tests need the same ones only.
THRESHOLDS = ["--tau", "0.33", "--far-threshold", "0.6"]
NUMBERS = (3, 4)
SCORES = (
    "sha256", "faces", "id", "id_other_photo", "id_second", "id_second_other", "clip_image", "background",
    "background_others", "clip_image_others", "prompt_score", "margin", "shown", "embedding", "kind", "text",
)  # fmt: skip


def draw_person(number, view, side):
    return Image.fromarray(draw(make_portrait(make_test_person(number), number, view), side))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Two drawn people with two photos each, as the benchmark draws them."""
    folder = tmp_path_factory.mktemp("people")
    for number in NUMBERS:
        (folder / f"p{number}").mkdir()
        for view in (0, 1):
            draw_person(number, view, PHOTO_SIDE).save(folder / f"p{number}" / f"{view}.png")
    return folder


@pytest.fixture
def named(tmp_path):
    """Images of two people by their names: other portraits, which are like them and show no beach."""
    folder = tmp_path / "named"
    for number in NUMBERS:
        inner = folder / f"p{number}"
        inner.mkdir(parents=True)
        for seed in (0, 1):
            draw_person(number, 2 + seed, 96).save(inner / f"a-photo-of-p{number}-at-the-beach-{seed}.png")
            draw_person(number, 4 + seed, 96).save(inner / f"a-photo-of-p{number}-juggling-swords-{seed}.png")
    return folder


@pytest.fixture
def scored(sefi, people, named, tmp_path):
    """Score that folder; the answer as JSON, and the run's folder."""
    found = sefi("score", named, "--photos", people, *THRESHOLDS, "--out", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), tmp_path / "run"


@pytest.mark.slow
def test_a_folder_gets_figures_page_and_tables(scored):
    answer, run = scored
    assert answer["schema"] == "score/1"
    assert (answer["images"], answer["subjects"]) == (8, ["p3", "p4"])
    assert answer["evaluators"] == "drawings"
    assert answer["prompts"] == {"read": 1, "clip_only": 1}
    values = answer["values"]["named"]
    assert values["id"]["mean"] > 0.6
    assert values["id"]["n"] == 2
    assert values["id"]["low"] <= values["id"]["mean"] <= values["id"]["high"]
    assert values["shown"]["mean"] == 0  # no beach
    assert values["id_other"]["mean"] > 0.6
    assert values["id_second"]["mean"] > 0.6
    assert values["id_other_second"]["mean"] > 0.6
    assert "learn_seconds" in answer["not_computed"]
    names = {"index.html", "tables.csv", "tables.json", "tables.tex", "every-eval-ever-named.json"}
    assert names == {file.rsplit("/", 1)[1] for file in answer["files"]}
    rows = list(csv.DictReader(io.StringIO((run / "report" / "tables.csv").read_text())))
    likeness = next(row for row in rows if row["figure"] == "id" and not row["kind"])
    assert float(likeness["mean"]) == values["id"]["mean"]
    assert "nothing is known of how they were made" in (run / "report" / "index.html").read_text()
    tex = (run / "report" / "tables.tex").read_text()
    assert tex.startswith("\\begin{tabular}{l")
    assert f"{values['id']['mean']:.3f}" in tex


@pytest.mark.slow
def test_two_folders_are_compared_in_a_study_and_scored_once(sefi, people, named, tmp_path):
    shutil.copytree(named, tmp_path / "other")
    words = ["score", named, f"theirs={tmp_path / 'other'}", "--photos", people, *THRESHOLDS, "--out", tmp_path / "run"]
    found = sefi(*words, "--references", "--only", "p3")
    assert found.exit_code == 0, found.output
    assert "left out, as not asked for: p4" in found.stderr
    assert "One subject" in found.stdout
    assert "readers looked for what 1 of 2 prompts ask" in found.stdout
    assert found.stderr.count("CLIP does not know 'juggling', 'swords'") == 1
    samples = RunFolder(tmp_path / "run").read_samples()
    counts = {label: sum(one.variant == label for one in samples) for label in ("named", "theirs", "photo pasted")}
    assert counts == {"named": 4, "theirs": 4, "photo pasted": 2}
    assert max(one.id for one in samples if one.variant == "photo pasted") > 0.99
    before = (tmp_path / "run" / "cells.jsonl").read_bytes()
    assert sefi(*words, "--references", "--only", "p3").exit_code == 0
    assert (tmp_path / "run" / "cells.jsonl").read_bytes() == before
    assert sefi("bench", "report", tmp_path / "run").exit_code == 0
    study = sefi("study", "build", tmp_path / "run", "--count", 2, "--out", tmp_path / "study.html", "--json")
    assert study.exit_code == 0, study.output
    assert sorted(json.loads(study.stdout)["variants"]) == ["named", "theirs"]
    file = next((tmp_path / "other" / "p3").iterdir())
    draw_person(3, 9, 96).save(file)
    changed = sefi(*words, "--references", "--only", "p3", "--json")
    assert "differs in folders" in json.loads(changed.stdout)["error"]


@pytest.mark.parametrize(
    ("wanted", "evaluators", "expected"),
    [
        ([["scene", "beach"]], ("clip", "scene_reader"), "what 1 of 1 prompts ask (shown); CLIP scored all"),
        ([], ("clip", "scene_reader"), "CLIP's score alone, as none asks for"),
        ([], ("clip",), "CLIP's score alone, as the embedded readers know drawings only"),
        ([], (), "nothing says whether they are followed"),
    ],
)
def test_it_is_said_what_tells_whether_prompts_are_followed(wanted, evaluators, expected):
    values = {
        "schema": 1,
        "suite": {
            "name": "score",
            "prompts": [{"text": "{} at the beach", "kind": "scene", "wanted": wanted}],
            "variants": [{"label": "ours"}],
            "seeds": [0],
        },
        "subjects": [],
        "model": {"name": "none", "fingerprint": "none"},
        "evaluators": {name: {"file": name, "sha256": "0"} for name in evaluators},
    }
    assert expected in format_prompt_measures(RunInfo.model_validate(values))


@pytest.mark.parametrize(
    ("drawings", "clip", "expected"),
    [(True, None, ["moonlit", "quay"]), (True, Path("clip"), []), (False, None, []), (False, Path("clip"), [])],
)
def test_words_that_the_embedded_clip_does_not_know_are_found(drawings, clip, expected):
    """Weights and the subject's place are no words; another CLIP reads any word in pieces."""
    texts = ["a photo of {} on a (moonlit quay:1.2)", "{} at the beach", "Quay, {}"]
    prompts = describe_prompts(texts, drawings=drawings)
    suite = make_suite({"ours": None}, prompts, [0], FolderHints())
    model = "tiny-portraits" if drawings else "none"
    options = BenchOptions(suite, Path("run"), model, None, None, None, clip, None, False, "cpu", "float32")
    assert find_words_unknown_to_clip(suite.prompts, options) == expected


@pytest.mark.slow
def test_any_word_for_people_has_faces(sefi, people, named, scored, tmp_path):
    words = ["--photos", people, *THRESHOLDS, "--class-word", "woman", "--out", tmp_path / "women", "--json"]
    found = sefi("score", named, *words)
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)["values"]["named"]
    for name in ("id", "face", "verified", "background"):
        assert values[name] == scored[0]["values"]["named"][name]


@pytest.mark.slow
def test_folders_with_other_cases_are_not_compared_and_it_is_said(sefi, people, named, tmp_path):
    shutil.copytree(named, tmp_path / "other")
    for seed in (0, 1):
        (tmp_path / "other" / "p4" / f"a-photo-of-p4-at-the-beach-{seed}.png").unlink()
    shutil.copy(next((named / "p3").iterdir()), named / "p3" / "a\x1b-1.png")
    words = ["score", named, f"theirs={tmp_path / 'other'}", "--photos", people, *THRESHOLDS, "--out", tmp_path / "run"]
    found = sefi(*words, "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    reason = "theirs: no image of 1 of 4 cases, such as p4 with 'a photo of {} at the beach'."
    assert answer["not_comparable"] == [reason]
    assert answer["unknown_words"] == ["juggling", "swords"]
    assert answer["unreadable"] == {"named": ["p3/a\\x1b-1.png"], "theirs": []}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert reason.replace("'", "&#39;") in page
    assert r"\textbf" not in (tmp_path / "run" / "report" / "tables.tex").read_text()
    for again in (words, ["bench", "report", tmp_path / "run"]):
        assert reason in sefi(*again).stdout


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_no_prompt_seed_or_subject(sefi, people, named, tmp_path):
    broken = ["p3/a-painting-of-p3-9.png", "p3/a-photo-of-p3-8.png", "p4/a-photo-of-p4-7.png"]
    shutil.rmtree(named / "p4")
    (named / "p4").mkdir()
    for name in broken:
        (named / name).write_bytes(b"no image")
    found = sefi("score", named, "--photos", people, *THRESHOLDS, "--out", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["unreadable"] == {"named": broken}
    assert (answer["images"], answer["subjects"]) == (4, ["p3"])
    assert answer["prompts"] == {"read": 1, "clip_only": 1}
    info = RunFolder(tmp_path / "run").read_info()
    prompts = ["a photo of {} at the beach", "a photo of {} juggling swords"]
    assert ([one.text for one in info.suite.prompts], info.suite.seeds) == (prompts, (0, 1))
    texts = [one.text for one in RunFolder(tmp_path / "run").read_samples()]
    assert sorted(texts) == sorted(2 * [text.format("person") for text in prompts])


@pytest.mark.slow
def test_two_processes_score_the_same(sefi, people, named, tmp_path):
    for jobs in (1, 2):
        words = ["--photos", people, *THRESHOLDS, "--jobs", jobs, "--out", tmp_path / f"run{jobs}"]
        found = sefi("score", named, *words, "--json")
        assert found.exit_code == 0, found.output
    assert scores_of(tmp_path / "run1", "named") == scores_of(tmp_path / "run2", "named")
    tables = [(tmp_path / f"run{jobs}" / "report" / "tables.csv").read_text() for jobs in (1, 2)]
    assert tables[0] == tables[1]


def test_a_folder_of_stock_diffusers_is_scored(sefi, backbone, people, tmp_path):
    schedule = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet,
        scheduler=schedule, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    folder, prompts = tmp_path / "stock", ("a photo of sks person in the snow", "a drawing of sks person, smiling")
    folder.mkdir()
    lines = []
    for number, prompt in enumerate(prompts):
        image = pipe(prompt, num_inference_steps=2, height=48, width=40).images[0]
        image.save(folder / f"image_{number}.jpg")
        lines.append({"image": f"image_{number}.jpg", "prompt": prompt, "seed": 7})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    long, _ = " ".join(["a photo of sks person in the snow", *["and more snow"] * 30]), image.save(folder / "long.bmp")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"image": "long.bmp", "prompt": long, "seed": 7}))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    broken = json.dumps({"image": "broken.jpg", "prompt": prompts[0], "seed": 8})
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + broken + "\n")
    words = ["score", folder, "--subject", people / "p3" / "0.png", "--subject-word", "sks person", *THRESHOLDS]
    found = sefi(*words, "--out", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["unreadable"] == {"stock": ["broken.jpg"]}
    assert (answer["images"], answer["prompts"]) == (3, {"read": 2, "clip_only": 1})
    # The embedded model's CLIP reads 32 tokens, which is told before it scores.
    assert answer["cut_prompts"] == [long.replace("sks person", "{}")]
    assert found.stderr.count("so scored by the beginning") == 1
    assert long.replace("sks person", "{}") in found.stderr
    samples = RunFolder(tmp_path / "run").read_samples()
    texts = ["a photo of person in the snow", "a drawing of person, smiling", long.replace("sks ", "")]
    assert [one.text for one in samples] == texts
    assert all(one.id == 0 and one.faces == 0 and one.prompt_score is not None for one in samples)  # noise
    assert (
        "1 files cannot be read and are left out, such as broken.jpg"
        in (tmp_path / "run" / "report" / "index.html").read_text()
    )


@pytest.mark.slow
def test_dreambench_plus_needs_no_photos_of_its_own(sefi, tmp_path):
    subjects = [f"live_subject_human_{number:02}_person" for number in NUMBERS]
    for number, subject in zip(NUMBERS, subjects, strict=True):
        for stem, text in (("0_0", "a person on a horse"), ("1_0", f"a photo of a person {number}")):
            for kind, view, side in (("src_image", 0, PHOTO_SIDE), ("tgt_image", 1, 96)):
                (tmp_path / "dbpp" / kind / subject).mkdir(parents=True, exist_ok=True)
                draw_person(number, view, side).save(tmp_path / "dbpp" / kind / subject / f"{stem}.jpg", quality=95)
            (tmp_path / "dbpp" / "text" / subject).mkdir(parents=True, exist_ok=True)
            (tmp_path / "dbpp" / "text" / subject / f"{stem}.txt").write_text(text)
    found = sefi("score", tmp_path / "dbpp", *THRESHOLDS, "--out", tmp_path / "run", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["subjects"] == subjects
    assert answer["images"] == 4  # two prompts of three each
    assert answer["values"]["dbpp"]["id"]["mean"] > 0.6
    report = sefi("bench", "report", tmp_path / "run", "--json")
    assert json.loads(report.stdout)["finished"]


BENCH = """
about = "Two people, hardly learned."
subjects = 2
first = 3
seeds = [5, 6]
settings = ["learn.steps=1", "learn.batch=1", "views.latent_pool=1", "generate.steps=2"]
prompts = [
    {text = "a photo of {} at the beach", kind = "scene", wanted = [["scene", "beach"]]},
    {text = "a painting of {}", kind = "style", wanted = [["style", "painting"]]},
]

[[variants]]
label = "ours"
"""


@pytest.fixture(scope="module")
def bench_run(tmp_path_factory):
    """A small run of the benchmark on drawings."""
    from typer.testing import CliRunner

    from sefi.cli.app import app

    folder = tmp_path_factory.mktemp("bench")
    (folder / "suite.toml").write_text(BENCH)
    words = ["bench", "run", folder / "suite.toml", *THRESHOLDS, "--device", "cpu", "--out", folder / "run", "--json"]
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return folder


def list_images(run, folder):
    """Copy the images of a run into a folder with a list, as another program might leave them."""
    folder.mkdir()
    lines = []
    for number, one in enumerate(RunFolder(run).read_samples()):
        shutil.copy(run / one.image, folder / f"{number}.png")
        text = one.text.replace("person", f"<{one.subject}>")
        lines.append({"image": f"{number}.png", "prompt": text, "subject": one.subject, "seed": one.seed})
    (folder / "images.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def scores_of(run, label):
    samples = [one for one in RunFolder(run).read_samples() if one.variant == label]
    return {(one.subject, one.text, one.seed): {name: getattr(one, name) for name in SCORES} for one in samples}


@pytest.mark.slow
def test_scoring_the_images_of_a_run_gives_the_run_s_figures(sefi, bench_run, people, tmp_path):
    folder = list_images(bench_run / "run", tmp_path / "images")
    words = ["score", folder, "--photos", people, *THRESHOLDS, "--out", tmp_path / "run", "--json"]
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    expected = scores_of(bench_run / "run", "ours")
    assert len(expected) == 8
    assert scores_of(tmp_path / "run", "images") == expected
    assert sefi("bench", "report", bench_run / "run").exit_code == 0
    tables = json.loads((bench_run / "run" / "report" / "tables.json").read_text())
    values = tables["all"]["values"]["ours"]
    costs = {"learn_seconds", "class_seconds", "draw_seconds", "trained", "added", "peak_mb"}
    own = json.loads(found.stdout)["values"]["images"]
    assert own == {name: value for name, value in values.items() if name not in costs}
    assert own["id"] is not None
    assert own["diversity"] is not None
    first, second = (RunFolder(folder).read_info() for folder in (bench_run / "run", tmp_path / "run"))
    assert first.photos == second.photos
    assert first.evaluators == second.evaluators


@pytest.mark.slow
def test_a_suite_compares_its_own_variants_with_a_folder(sefi, bench_run, tmp_path):
    folder = list_images(bench_run / "run", tmp_path / "images")
    shutil.copytree(bench_run / "run", tmp_path / "run")
    suite = tmp_path / "suite.toml"
    suite.write_text(f'{BENCH}\n[[variants]]\nlabel = "theirs"\nimages = "{folder}"\n')
    words = ["bench", "run", suite, *THRESHOLDS, "--device", "cpu", "--out", tmp_path / "both", "--json"]
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    assert scores_of(tmp_path / "both", "theirs") == scores_of(tmp_path / "both", "ours")
    report = json.loads(sefi("bench", "report", tmp_path / "both", "--json").stdout)
    assert report["finished"]
    assert report["images"] == 16
    lines = (folder / "images.jsonl").read_text().splitlines()
    (folder / "images.jsonl").write_text("\n".join(lines[1:]))
    words[words.index(tmp_path / "both")] = tmp_path / "fewer"
    found = sefi(*words)
    assert found.exit_code == 0, found.output
    assert "theirs: 1 of 8 images are missing; the run cannot be finished" in found.stderr
    report = json.loads(sefi("bench", "report", tmp_path / "fewer", "--json").stdout)
    assert (report["images"], report["planned"], report["finished"]) == (15, 16, False)


EVALUATION = {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library"}
OPTIONAL = {"evaluation_timestamp", "detailed_evaluation_results", "dedupe_identity"}


def check_details(tree):
    """Check that additional details are texts, as everywhere in the schema."""
    for name, value in tree.items():
        if name == "additional_details":
            assert all(isinstance(text, str) for text in value.values())
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                check_details(inner)


@pytest.mark.slow
def test_results_fit_the_schema_of_every_eval_ever(scored):
    answer, run = scored
    # The rules of eval.schema.json 0.2.1, written down here once more.
    record = json.loads((run / "report" / "every-eval-ever-named.json").read_text())
    assert EVALUATION | {"evaluation_results"} <= set(record) <= EVALUATION | OPTIONAL | {"evaluation_results"}
    assert record["schema_version"] == "0.2.1"
    assert record["source_metadata"]["source_type"] in ("documentation", "evaluation_run")
    assert record["source_metadata"]["evaluator_relationship"] in (
        "first_party", "third_party", "collaborative", "other",
    )  # fmt: skip
    assert record["source_metadata"]["source_organization_name"]
    assert {"name", "id"} <= set(record["model_info"])
    assert {"name", "version"} <= set(record["eval_library"])
    assert record["retrieved_timestamp"].isdecimal()
    check_details(record)
    for result in record["evaluation_results"]:
        assert set(result) == {"evaluation_name", "source_data", "metric_config", "score_details"}
        assert result["source_data"]["source_type"] == "other"
        assert result["source_data"]["dataset_name"]
        config, details = result["metric_config"], result["score_details"]
        assert isinstance(config["lower_is_better"], bool)
        assert config["score_type"] == "continuous"
        assert config["min_score"] <= details["score"] <= config["max_score"]
        value = answer["values"]["named"][result["evaluation_name"]]
        assert details["score"] == value["mean"]
        interval = details["uncertainty"]["confidence_interval"]
        assert (interval["lower"], interval["upper"], interval["confidence_level"]) == (
            value["low"],
            value["high"],
            0.95,
        )
        assert details["uncertainty"]["num_samples"] == value["n"]
    names = {result["evaluation_name"]: result["metric_config"] for result in record["evaluation_results"]}
    assert {"id", "prompt", "shown", "background"} <= set(names)
    assert names["background"]["lower_is_better"]
    assert "copy" not in names  # neither direction is better


@pytest.mark.slow
def test_a_run_is_published_without_images_and_uploaded_only_when_asked(sefi, refused, scored, tmp_path, monkeypatch):
    _, run = scored
    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda _, *words, **given: calls.append(("create", words, given)))
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=True))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **given: calls.append(("upload", given)) or "address")
    out = tmp_path / "card"
    found = sefi("bench", "publish", run, "--out", out, "--title", "My table", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["pushed"] is None
    assert not calls
    card = DatasetCard.load(out / "README.md")
    assert card.data.pretty_name == "My table"
    assert card.data.to_dict()["configs"] == [{"config_name": "samples", "data_files": "samples.jsonl"}]
    likeness = json.loads((run / "report" / "tables.json").read_text())["all"]["values"]["named"]["id"]["mean"]
    assert f"{likeness:.3f}" in card.text
    assert "no interval goes beyond what single subjects have" in card.text
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert not {"embedding", "image", "maps"} & set(lines[0])
    (out / "secret.txt").write_text("mine")
    again = sefi("bench", "publish", run, "--out", out, "--push", "ada/results", "--json")
    assert json.loads(again.stdout)["pushed"] == "address"
    (_, create_words, create), (_, upload) = calls
    assert create_words == ("ada/results",)
    assert (create["repo_type"], create["private"]) == ("dataset", True)
    assert upload["repo_type"] == "dataset"
    assert "secret.txt" not in upload["allow_patterns"]
    assert not [path for path in out.rglob("*") if path.suffix == ".png"]
    assert "--public" in refused("bench", "publish", run, "--out", out, "--public")
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=False))
    assert "is public" in refused("bench", "publish", run, "--out", out, "--push", "ada/results")


def test_what_cannot_be_scored_is_refused(sefi, refused, people, named, tmp_path):
    given = ["--photos", people, *THRESHOLDS, "--out", tmp_path / "run"]
    assert "There is no folder of images" in refused("score", tmp_path / "none", *given)
    assert "There is no photo of 'p3'" in refused("score", named, "--out", tmp_path / "run")
    assert "There is no photo" in refused("score", named, "--subject", tmp_path / "none.png")
    assert "called 'p3'" in refused("score", named, *given, "--subject", f"p3={people / 'p4' / '0.png'}")
    assert "the same name" in refused("score", named, named, *given)
    for name in ("photo-pasted", "Other Subject"):
        words = ["score", f"{name}={named}", *given, "--references"]
        assert "two variants are called" in refused(*words)
    assert "write NAME=IMAGES" in sefi("score", f"photo-pasted={named}", *given, "--references").stderr
    assert "no image of a subject" in refused("score", named, *given, "--only", "x*")
    assert "no list of prompts" in refused("score", named, *given, "--prompts", people)
    assert "one folder" in refused("score", named, "--photos", people, "--out", named)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    problem = refused("score", named, "--subject", f"p3={tmp_path / 'black.png'}", "--drawings", *THRESHOLDS)
    assert "black.png" in problem
    found = sefi("score", named, "--subject", f"p3={tmp_path / 'black.png'}", "--drawings", *THRESHOLDS)
    assert "--class-word" in found.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_photographs_get_their_own_evaluators(sefi, people, named, tmp_path):
    model = Dinov2Model(Dinov2Config(hidden_size=15, num_attention_heads=3, num_hidden_layers=1, image_size=14))
    model.save_pretrained(tmp_path / "dino")
    BitImageProcessorPil(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}).save_pretrained(
        tmp_path / "dino"
    )
    words = ["score", named, "--photos", people, "--photographs", "--class-word", "dog", "--out", tmp_path / "run"]
    found = sefi(*words, "--references", "--dino", tmp_path / "dino", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["evaluators"] == "photographs"
    assert answer["prompts"]["read"] == 0
    assert answer["not_computed"]["prompt"] == "the run has no CLIP"
    assert answer["values"]["photo pasted"]["dino"]["mean"] == pytest.approx(1, abs=1e-6)
    assert answer["values"]["named"]["dino"]["mean"] < 1
    assert RunFolder(tmp_path / "run").read_info().evaluators["clip"] is None


@pytest.mark.slow
def test_evaluators_that_are_named_are_used(sefi, people, named, tmp_path):
    own = ["--detector", EMBEDDED_EVALUATORS / DETECTOR, "--recogniser", EMBEDDED_EVALUATORS / RECOGNISER]
    words = [*own, "--clip", EMBEDDED_EVALUATORS / "clip", "--photographs", "--out", tmp_path / "run", "--json"]
    found = sefi("score", named, "--photos", people, *words)
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)["values"]["named"]
    assert values["id"]["mean"] > 0.6
    assert values["prompt"] is not None
    assert "shown" not in values  # readers are the embedded model's only
    info = RunFolder(tmp_path / "run").read_info()
    assert (info.tau, info.far_threshold) == (0.23, None)  # the paper's


def test_sentences_say_what_readers_must_see():
    assert parse_wanted("A painting of {} wearing a hat and reading a book.") == (
        ("style", "painting"), ("attribute", "hat"), ("action", "book"),
    )  # fmt: skip
    assert parse_wanted("a photo of {}") == ()
    assert parse_wanted("a photo of a {} in a suit, at sunset") == (("garment", "suit"), ("light", "sunset"))
    for strange in ("a photo of {} in a red shirt", "{} smiling", "a photo of nobody", "a photo of {} in snowboots"):
        assert parse_wanted(strange) is None
