"""`sefi study`: a page from a run's folder, and the outcome from answers files."""

import json
import re
import struct
import zlib
from itertools import product

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sefi.cli.error_reporting import ReportingGroup
from sefi.cli.study import app as study_app

SUBJECTS, VARIANTS, PROMPTS, SEEDS = ("ada", "bob"), ("ours", "rival", "third"), ("beach", "cup", "snow"), (7, 8)


@pytest.fixture
def study():
    """Run `sefi study ...`; a stand-alone program around it, so that this holds wherever it is hung in."""
    program = typer.Typer(cls=ReportingGroup)
    program.add_typer(study_app, name="study")

    def run(*words):
        return CliRunner().invoke(program, ["study", *map(str, words)])

    return run


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of 2 subjects, 3 variants, 3 prompts and 2 seeds, its images plain colours."""
    folder = tmp_path / "run"
    for name in ("pictures", "photos"):
        (folder / name).mkdir(parents=True)
    for shade, subject in enumerate(SUBJECTS):
        Image.new("RGB", (96, 96), (0, shade, 200)).save(folder / f"photos/{subject}.png")
    prompts = [{"text": f"{{}} {word}", "kind": "scene", "wanted": [["scene", word]]} for word in PROMPTS]
    variants = [{"label": label, "about": "", "control": None} for label in VARIANTS]
    suite = {"name": "tiny", "prompts": prompts, "variants": variants, "seeds": SEEDS}
    about = {"schema": 1, "suite": suite, "subjects": list(SUBJECTS), "model": {"name": "tiny"}}
    (folder / "run.json").write_text(json.dumps(about))
    cells = [cell(folder, *one) for one in product(SUBJECTS, VARIANTS, range(3), SEEDS)]
    (folder / "cells.jsonl").write_text("".join(json.dumps(one) + "\n" for one in cells))
    return folder


def cell(folder, subject, variant, prompt, seed):
    file = f"pictures/{subject}-{variant}-{prompt}-{seed}.png"
    colour = (90 * VARIANTS.index(variant), 100 * prompt, seed + 90 * SUBJECTS.index(subject))
    Image.new("RGB", (96, 96), colour).save(folder / file)
    known = {"subject": subject, "variant": variant, "prompt": prompt, "seed": seed, "kind": "scene", "image": file}
    return {**known, "text": f"person {PROMPTS[prompt]}", "sha256": file, "shown": None, "prompt_score": 0.2}


def data_of(page):
    return json.loads(re.search(r'id="study">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def choose(data, rater, prefer):
    """The answers of somebody who takes this variant wherever it is shown, and passes every check."""
    code = next(code for code, variant in data["key"]["variants"].items() if variant == prefer)
    answers = []
    for one in data["comparisons"]:
        order = [shown["code"] for shown in one["shown"]]
        chosen = data["key"]["checks"].get(one["name"], code)
        answers.append(
            {
                "question": one["question"],
                "comparison": one["name"],
                "order": order,
                "chosen": chosen,
                "milliseconds": 3000,
            }
        )
    return {"schema": 1, "study": data["study"], "rater": rater, "answers": answers, "key": data["key"]}


def test_build_writes_one_page_and_reports_its_questions(study, run_folder, tmp_path):
    out = tmp_path / "study.html"
    found = study("build", run_folder, "--out", out, "--count", 4, "--checks", 1, "--json")
    assert found.exit_code == 0, found.output
    told, data = json.loads(found.stdout), data_of(out)
    assert told["comparisons"] == {"prompt": 5, "identity": 5, "quality": 4}
    assert (told["checks"], sorted(told["variants"])) == (2, sorted(VARIANTS))
    assert (told["page"], told["bytes"], told["study"]) == (str(out), out.stat().st_size, data["study"])
    assert len(data["comparisons"]) == 14
    assert "note:" not in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "study.html"]


def test_build_says_that_a_run_has_too_few_images_for_the_checks(study, run_folder, tmp_path):
    found = study("build", run_folder, "--out", tmp_path / "study.html", "--count", 4, "--checks", 400, "--json")
    assert found.exit_code == 0, found.output
    assert f"note: {json.loads(found.stdout)['checks']} attention checks, not 800" in found.stderr


def test_the_same_seed_builds_the_same_bytes(study, run_folder, tmp_path):
    pages = [tmp_path / f"{n}.html" for n in range(3)]
    for page, seed in zip(pages, (1, 1, 2), strict=True):
        assert study("build", run_folder, "--out", page, "--seed", seed).exit_code == 0
    first, again, other = (page.read_bytes() for page in pages)
    assert first == again != other


def test_only_the_named_variants_are_shown(study, run_folder, tmp_path):
    out = tmp_path / "study.html"
    assert study("build", run_folder, "--out", out, "--variants", "third", "--ways", "ours").exit_code == 0
    data = data_of(out)
    assert sorted(data["key"]["variants"].values()) == ["ours", "third"]
    assert {len(one["shown"]) for one in data["comparisons"]} == {2}


def test_analyse_says_who_won(study, run_folder, tmp_path):
    page, files = tmp_path / "study.html", [tmp_path / f"{n}.json" for n in range(3)]
    study("build", run_folder, "--out", page, "--count", 5)
    for file, prefer in zip(files, ("ours", "ours", "third"), strict=True):
        file.write_text(json.dumps(choose(data_of(page), file.stem, prefer)))
    found = study("analyse", *files, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["raters"], told["left_out"], set(told["questions"])) == (3, 0, {"prompt", "identity", "quality"})
    quality = told["questions"]["quality"]
    assert quality["answers"] == 15
    assert {variant: round(x["value"], 4) for variant, x in quality["shares"].items()} == {
        "ours": 0.6667,
        "third": 0.3333,
        "rival": 0,
    }
    # Two of three agree every time: observed 10 of 15 values' pairs, expected 2 * 10 * 5 / 14.
    assert quality["alpha"] == pytest.approx(1 - 10 / (100 / 14))
    assert sorted(quality["strengths"], key=lambda w: -quality["strengths"][w]["value"]) == [
        "ours",
        "third",
        "rival",
    ]
    text = study("analyse", *files).stdout
    assert "3 raters" in text
    assert text.count("; intervals over 3 raters\n") == 3
    assert text.endswith("Intervals of fewer than 6 raters are too narrow.\n")
    assert quality["shares"]["ours"]["n"] == quality["strengths"]["ours"]["n"] == 3
    assert re.search(r"  ours   share 0\.67 \[\d\.\d\d, 1\.00\]  strength \+\d\.\d\d \[", text)


def test_analyse_counts_raters_of_thousands_of_answers(study, tmp_path):
    """From 1,030 answers on, the number of variants in which they can fall is above the largest float."""
    order = ["A", "B"]
    answers = [
        {"question": "quality", "comparison": f"q{n}", "order": order[:: 1 if n % 2 else -1], "chosen": "A"}
        | {"milliseconds": 2000}
        for n in range(1031)
    ]
    sheet = {"schema": 1, "study": "s", "rater": "r", "answers": answers}
    sheet["key"] = {"variants": {"A": "ours", "B": "rival"}, "checks": {}}
    (tmp_path / "r.json").write_text(json.dumps(sheet))
    found = study("analyse", tmp_path / "r.json", "--draws", 100, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["questions"]["quality"]["shares"]["ours"]["value"] == 1
    sheet["answers"] = [one | {"chosen": one["order"][0]} for one in answers]
    (tmp_path / "r.json").write_text(json.dumps(sheet))
    error = refused(study("analyse", tmp_path / "r.json", "--json"))
    assert "chose place 1 of 2 in 1031 of 1031 answers" in error


def test_analyse_says_how_many_were_left_out_and_null_for_what_it_cannot_know(study, run_folder, tmp_path):
    page, files = tmp_path / "study.html", [tmp_path / f"{n}.json" for n in range(2)]
    study("build", run_folder, "--out", page, "--count", 1)
    good, bad = (choose(data_of(page), name, "rival") for name in ("r", "s"))
    for one in bad["answers"]:
        one["chosen"] = next(code for code in one["order"] if code != good["key"]["checks"].get(one["comparison"]))
    for file, content in zip(files, (good, bad), strict=True):
        file.write_text(json.dumps(content))
    told = json.loads(study("analyse", *files, "--json").stdout)
    assert (told["raters"], told["left_out"]) == (1, 1)
    reason = "passed 0 of 12 attention checks, as a blind rater would with a probability of 1.00"
    assert told["excluded"] == [{"rater": "s", "reason": reason}]
    quality = told["questions"]["quality"]
    assert quality["shares"]["rival"] == {"value": 1, "low": None, "high": None, "n": 1}
    assert (quality["alpha"], quality["resampled"]) == (None, "comparisons")
    text = study("analyse", *files).stdout
    assert f"1 rater; 1 left out\n  s: {reason}" in text
    assert "share 1.00 [unknown]" in text
    assert "no agreement can be computed" in text


def refused(found):
    assert found.exit_code == 2, found.output
    told = json.loads(found.stdout)
    assert told["try"]
    return told["error"]


def test_build_refuses_what_is_no_run_or_has_nothing_to_compare(study, run_folder, tmp_path):
    out = ("--out", tmp_path / "study.html", "--json")
    assert "no benchmark run" in refused(study("build", tmp_path, *out))
    assert "here is 1" in refused(study("build", run_folder, "--variants", "ours", *out))
    assert "no variant 'mine'" in refused(study("build", run_folder, "--variants", "mine", *out))
    (run_folder / "cells.jsonl").write_text("")
    assert "no images" in refused(study("build", run_folder, *out))
    assert not (tmp_path / "study.html").exists()


def test_build_refuses_images_that_are_missing_damaged_or_outside_the_run(study, run_folder, tmp_path):
    words = ("build", run_folder, "--out", tmp_path / "study.html", "--count", 50, "--json")
    image = run_folder / "pictures/bob-third-2-8.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(study(*words))
    image.write_bytes(whole)
    (run_folder / "photos/ada.png").unlink()
    assert "no image photos/ada.png" in refused(study(*words))
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere.png")
    lines = (run_folder / "cells.jsonl").read_text().replace("pictures/bob-third-2-8.png", "../elsewhere.png")
    (run_folder / "cells.jsonl").write_text(lines)
    Image.new("RGB", (9, 9)).save(run_folder / "photos/ada.png")
    assert "no image ../elsewhere.png" in refused(study(*words))


def put_picture(run_folder, name):
    """Let the record of one image name another file."""
    lines = (run_folder / "cells.jsonl").read_text().splitlines()
    changed = json.loads(lines[-1]) | {"image": name}
    (run_folder / "cells.jsonl").write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")


@pytest.mark.parametrize("name", ["x" * 256, "x" * 300, "p/" * 149 + "x", "/dev/zero", "circle.png"])
def test_build_refuses_names_that_are_no_image_of_the_run(study, run_folder, tmp_path, name):
    (run_folder / "circle.png").symlink_to("circle.png")
    put_picture(run_folder, name)
    error = refused(study("build", run_folder, "--out", tmp_path / "study.html", "--count", 50, "--json"))
    assert error.startswith("The run has no image ")
    assert error.isprintable()
    assert not (tmp_path / "study.html").exists()


def test_build_refuses_huge_images_and_other_formats_before_decoding(study, run_folder, tmp_path):
    words = ("build", run_folder, "--out", tmp_path / "study.html", "--count", 50, "--json")
    put_picture(run_folder, "pictures/other.png")
    image = run_folder / "pictures/other.png"
    image.write_bytes(png_of(40_000, 40_000))
    assert "other.png is damaged" in refused(study(*words))
    image.write_bytes(png_of(9000, 9000))  # below the size at which Pillow takes it for a bomb
    assert "it has 9000 x 9000 pixels" in refused(study(*words))
    Image.new("RGB", (9, 9)).save(image, "JPEG")
    assert "other.png is damaged" in refused(study(*words))


def png_of(width, height):
    """The head of a PNG that states a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def test_analyse_refuses_what_is_no_answers_file_or_of_another_study(study, run_folder, tmp_path):
    pages, files = ([tmp_path / f"{n}.{kind}" for n in range(2)] for kind in ("html", "json"))
    for seed, (page, file) in enumerate(zip(pages, files, strict=True)):
        study("build", run_folder, "--out", page, "--seed", seed)
        file.write_text(json.dumps(choose(data_of(page), f"r{seed}", "ours")))
    assert "different studies" in refused(study("analyse", *files, "--json"))
    assert "same rater" in refused(study("analyse", files[0], files[0], "--json"))
    assert "holds no answers" in refused(study("analyse", run_folder / "run.json", "--json"))
    assert "cannot be read" in refused(study("analyse", tmp_path / "none.json", "--json"))
