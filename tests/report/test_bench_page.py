"""The page of a run is one file that asks nobody for anything, and says what was picked, lost and not computed."""

import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sefi.benchmark.records import Sample
from sefi.benchmark.statistics import estimate_interval
from sefi.benchmark.table_files import format_value
from sefi.benchmark.tables import compute_differences, make_table, make_tables_by_kind
from sefi.core.errors import ConfigError
from sefi.provenance.metadata import SOURCE_TYPE, read_source_type
from sefi.report.bench_images import (
    choose_best_and_worst,
    encode_photo_jpeg_uri,
    format_scores,
    make_sheets,
    read_small_image,
)
from sefi.report.bench_page import (
    count_failures,
    draw_kind_bars,
    list_differing_settings,
    list_shared_settings,
    make_difference_view,
    make_view,
    render_bench_page,
)

EMPTY = {"meta", "img", "br"}


class Reading(HTMLParser):
    """Collects addresses and text, and checks that tags close."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.texts, self.tags = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in {"src", "href", "srcset", "action", "style"}]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture
def made(synthetic, tmp_path):
    """Run, samples and folder."""
    run, samples = synthetic.make_run(), synthetic.make_samples()
    return run, samples, synthetic.write_run(tmp_path / "run", run, samples)


@pytest.fixture(scope="module")
def page(synthetic, tmp_path_factory):
    """The page of the whole synthetic run, for the tests that change nothing."""
    run, samples = synthetic.make_run(), synthetic.make_samples()
    return render_bench_page(run, samples, synthetic.write_run(tmp_path_factory.mktemp("whole") / "run", run, samples))


def test_nothing_is_loaded_from_anywhere_and_no_script_runs(page):
    reading = Reading(page)
    assert len(reading.found) > 30
    assert all(re.match(r"data:image/(jpeg|svg\+xml);base64,", address) for address in reading.found)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "script" not in reading.tags
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


@pytest.mark.slow
def test_equal_runs_give_equal_pages_whatever_the_order_of_the_records(made, page):
    run, samples, folder = made
    assert render_bench_page(run, samples[::-1], folder) == page


def test_pages_follow_the_readers_light_and_width(page):
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert page.count("<table") == page.count('<div class="wide" tabindex="0"')


def test_the_head_says_what_was_compared(page):
    text = Reading(page).text
    assert "synthetic: 6 variants, 3 subjects \N{MULTIPLICATION SIGN} 3 prompts \N{MULTIPLICATION SIGN} 2 seeds" in text
    assert "tiny-portraits" in text


def test_numbers_are_the_tables_and_their_directions_are_shown(made, page):
    run, samples, _ = made
    text, found = Reading(page).text, make_table(samples, run)
    for metric in found.metrics:
        assert metric.about in text
        for variant in found.variants:
            assert (
                format_value(found.values[variant.label, metric.name].mean, metric.unit) in text
                or metric.part == "cost"
            )
    assert "background leakage ↓" in text


def repeat_subjects(samples):
    """The samples of three subjects and of three more with the same scores."""
    return [*samples, *(one.model_copy(update={"subject": f"{one.subject}-2"}) for one in samples)]


def test_differences_say_better_and_worse_only_where_the_interval_leaves_out_zero(made):
    run, samples, _ = made
    samples = repeat_subjects(samples)
    others = {"one token": compute_differences(samples, run, "ours", "one token")}
    shown = make_difference_view(make_table(samples, run), "t", others, ("main", "image"))
    marks = {metric.name: entry.mark for metric, entry in zip(shown.metrics, shown.lines[0].entries, strict=True)}
    assert (marks["id_prompt"], marks["prompt"], marks["id"]) == ("better", "better", "")
    turned = {"ours": compute_differences(samples, run, "one token", "ours")}
    back = make_difference_view(make_table(samples, run), "t", turned, ("main", "image"))
    assert back.lines[0].entries[0].mark == "worse"
    assert back.lines[0].entries[0].text == shown.lines[0].entries[0].text.replace("+", "-")


def test_less_of_what_should_be_low_is_better(made):
    run, samples, _ = made
    leaks = {"ours": 0.2, "one token": 0.6}
    samples = repeat_subjects([c.model_copy(update={"background": leaks.get(c.variant)}) for c in samples])
    others = {"one token": compute_differences(samples, run, "ours", "one token")}
    shown = make_difference_view(make_table(samples, run), "t", others, ("image",))
    assert (shown.metrics[0].name, shown.lines[0].entries[0].mark) == ("background", "better")


@pytest.mark.parametrize(("subjects", "mark"), [(2, ""), (4, ""), (5, ""), (6, "better"), (12, "better")])
def test_no_difference_of_fewer_than_six_subjects_is_called_better(made, subjects, mark):
    # Of five equal variants' differences all have one sign in 6 % of runs, and then no resample has another.
    run, samples, _ = made
    found = estimate_interval({f"s{n}": 0.5 + n / 100 for n in range(subjects)})
    others = {"one token": {"id": found}}
    shown = make_difference_view(make_table(samples, run), "t", others, ("main",))
    assert found.excludes_zero
    assert [entry.mark for entry in shown.lines[0].entries] == [mark]


@pytest.mark.slow
def test_what_was_not_computed_is_said_with_the_reason(synthetic, tmp_path):
    evaluators = {**synthetic.make_run().evaluators, "clip": None}
    run = synthetic.make_run(tau=None).model_copy(update={"evaluators": evaluators})
    keys = dict.fromkeys(("prompt_score", "background", "embedding"))
    samples = synthetic.change_all(synthetic.make_samples(), **keys)
    page = render_bench_page(run, samples, synthetic.write_run(tmp_path / "run", run, samples))
    text = Reading(page).text
    assert "ID(Prompt) the run has no CLIP and no tau" in text
    assert "prompt score the run has no CLIP" in text
    assert "The run has no tau" in text
    assert "nan" not in re.sub(r"data:[^\"]+", "", page)
    assert "Best and worst" not in text
    assert "Person and prompt at once" not in text


def test_a_run_of_images_alone_still_has_a_page(synthetic, tmp_path):
    run = synthetic.make_run(evaluators={}, tau=None, far_threshold=None, settings={})
    keys = ("faces", "id", "id_other_photo", "prompt_score", "shown", "background", "embedding")
    costs = ("learn_seconds", "class_seconds", "draw_seconds", "trained", "added", "peak_mb")
    samples = synthetic.change_all(synthetic.make_samples(), **dict.fromkeys(keys + costs))
    text = Reading(render_bench_page(run, samples, synthetic.write_run(tmp_path / "run", run, samples))).text
    assert "Images, chosen at random" in text
    assert "ID the run has no detector and no recogniser" in text


@pytest.mark.slow
def test_one_subject_has_numbers_and_no_interval(made):
    run, samples, folder = made
    one = [one for one in samples if one.subject == "bob" and one.variant in ("ours", "one token")]
    found = make_table(one, run)
    assert all(entry.ends == "" for line in make_view(found, "t", "main").lines for entry in line.entries)
    assert "Few subjects (1)" in Reading(render_bench_page(run, one, folder)).text


def test_a_run_without_images_is_refused(synthetic, tmp_path):
    with pytest.raises(ConfigError, match="no images"):
        render_bench_page(synthetic.make_run(), [], tmp_path)


@pytest.mark.slow
def test_a_missing_image_leaves_a_gap(made):
    run, samples, folder = made
    for file in (folder / "pictures").iterdir():
        file.unlink()
    (folder / "photos" / "ada.png").write_bytes(b"no image")
    text = Reading(render_bench_page(run, samples, folder)).text
    assert "file is gone" in text
    assert read_small_image(folder, "photos/ada.png", 64) is None


@pytest.mark.slow
def test_foreign_text_is_escaped(made):
    run, samples, folder = made
    suite = run.suite.model_copy(update={"name": "<b>bold</b>", "about": "a & b"})
    page = render_bench_page(run.model_copy(update={"suite": suite}), samples, folder)
    assert "<b>bold</b>" not in page
    assert html.escape("<b>bold</b>") in page


def test_the_sheet_is_chosen_at_random_from_its_seed_alone(synthetic, made):
    run, samples, folder = made
    sheets = [make_sheets(samples, run, folder, np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3)]
    assert sheets[0] == sheets[1]
    assert any(sheet != sheets[0] for sheet in sheets[2:])
    better = synthetic.change_all(samples, id=0.0)  # scores decide nothing
    again = make_sheets(better, run, folder, np.random.default_rng(0))
    assert [[shot.uri for _, row in s.rows for shot in row] for s in again] == [
        [shot.uri for _, row in s.rows for shot in row] for s in sheets[0]
    ]


def test_a_sheet_has_a_row_for_each_variant_and_the_photo_first(made):
    run, samples, folder = made
    sheet = make_sheets(samples, run, folder, np.random.default_rng(0))[0]
    assert [label for label, _ in sheet.rows] == ["ours", "one token", "class word"]
    assert all(len(row) == len(sheet.prompts) == 3 for _, row in sheet.rows)
    assert sheet.prompts[0] == f"a photo of <{sheet.subject}> at the beach"
    assert sheet.photos[0].uri == encode_photo_jpeg_uri(read_small_image(folder, f"photos/{sheet.subject}.png", 192))


@pytest.mark.slow
def test_an_unfinished_image_is_a_gap_in_the_sheet(made):
    run, samples, folder = made
    fewer = [one for one in samples if (one.variant, one.prompt) != ("one token", 1)]
    sheet = make_sheets(fewer, run, folder, np.random.default_rng(0))[0]
    assert [shot is None for shot in dict(sheet.rows)["one token"]] == [False, True, False]
    assert "no image" in Reading(render_bench_page(run, fewer, folder)).text


def test_prompts_that_one_subject_has_are_shown_for_it(synthetic, made):
    _, samples, folder = made
    # As in DreamBench++ every subject has prompts of its own, more than a sheet has room for.
    prompts = [{"text": f"{subject} {n}", "kind": "own"} for subject in synthetic.SUBJECTS for n in range(5)]
    numbers = {subject: 5 * n for n, subject in enumerate(synthetic.SUBJECTS)}
    own = [
        one.model_copy(update={"prompt": one.prompt + numbers[one.subject], "shown": None})
        for one in samples
        if one.variant == "ours"
    ]
    suite = {
        "name": "score",
        "prompts": prompts,
        "variants": [{"label": "ours", "images": "x"}],
        "seeds": synthetic.SEEDS,
    }
    listed = [
        {"subject": one.subject, "prompt": one.prompt, "seed": one.seed, "file": "x.png", "sha256": "0"} for one in own
    ]
    run = synthetic.make_run(suite=suite, folders={"ours": {"images": listed, "unreadable": ["cut.png"]}})
    for seed in range(4):
        for sheet in make_sheets(own, run, folder, np.random.default_rng(seed)):
            assert sheet.prompts
            assert all(text.split()[0] == sheet.subject for text in sheet.prompts)
            assert all(shot is not None for shot in dict(sheet.rows)["ours"])
    page = Reading(render_bench_page(run, own, folder)).text
    assert "1 files cannot be read and are left out, such as cut.png" in page


def test_two_subjects_of_one_image_show_both_photos(synthetic, made):
    _, samples, folder = made
    pair = synthetic.change_all(samples_of(samples, "ada"), subject="ada+bob")
    prompts = [{**p, "text": f"{p['text']} with {{}}"} for p in synthetic.PROMPTS]
    suite = {"name": "two", "prompts": prompts, "variants": synthetic.VARIANTS, "seeds": synthetic.SEEDS, "together": 2}
    run = synthetic.make_run(subjects=["ada+bob"], suite=suite)
    sheet = make_sheets(pair, run, folder, np.random.default_rng(0))[0]
    assert [photo.caption for photo in sheet.photos] == ["ada", "bob"]
    assert sheet.prompts[0] == "a photo of <ada> at the beach with <bob>"


def make_sample(**changes):
    values = {"subject": "ada", "variant": "ours", "kind": "scene", "prompt": 0, "seed": 0, "text": "person"}
    return Sample.model_validate(values | {"image": "x.png", "sha256": "00"} | changes)


def test_best_and_worst_are_by_id_where_the_prompt_was_obeyed(made):
    run, _, folder = made
    pairs = [(0.9, 0.1), (0.5, 0.3), (0.7, 0.3), (0.2, 0.25), (0.6, 0.22), (0.4, 0.4), (0.3, 0.3)]
    samples = [
        make_sample(text=str(n), seed=n, id=like, prompt_score=score, faces=1) for n, (like, score) in enumerate(pairs)
    ]
    best, worst = choose_best_and_worst([*samples, samples[0].model_copy(update={"id": None})], run, folder, "ours")
    assert [pick.image.alt for pick in best] == ["ours: 2", "ours: 1", "ours: 5"]
    assert [pick.image.alt for pick in worst] == ["ours: 3", "ours: 4", "ours: 0"]
    assert [pick.photos[0].caption for pick in worst] == ["ada"] * 3
    best, worst = choose_best_and_worst(samples[:3], run, folder, "ours")
    assert (len(best), len(worst)) == (1, 1)  # no image is both


@pytest.mark.parametrize(
    ("variant", "stated"), [("photo", None), ("same", None), ("other", None), ("ours", SOURCE_TYPE)]
)
def test_only_generated_images_among_the_best_are_called_generated(made, variant, stated):
    """Where nothing is generated yet, the best of a page are photographs."""
    run, samples, folder = made
    best, worst = choose_best_and_worst(samples, run, folder, variant)
    for one in [*best, *worst]:
        content = base64.b64decode(one.image.uri.partition(",")[2])
        assert read_source_type(Image.open(io.BytesIO(content))) == stated


def test_captions_show_what_is_known():
    def told_of(**changes):
        return format_scores(make_sample(**changes)).replace("\xa0", " ")

    assert told_of(faces=0, id=0.0, prompt_score=0.25) == "no face, prompt 0.25"
    assert told_of(faces=1, id=0.514, shown=(True, False, True)) == "ID 0.51, 2 of 3 shown"
    assert told_of(faces=None, id=None, prompt_score=None, shown=None) == ""


def test_failures_are_counted_by_variant(made):
    run, samples, _ = made
    rows = {row.variant: row for row in count_failures(samples, run)}
    mine = [one for one in samples if one.variant == "one token"]
    assert rows["one token"].images == 18
    assert rows["one token"].no_face == sum(one.faces == 0 for one in mine) > 0
    assert rows["one token"].more_faces == sum(one.faces > 1 for one in mine) > 0
    assert rows["one token"].below_tau == sum(one.prompt_score < 0.23 for one in mine) > 0
    fewer = {row.variant: row for row in count_failures([c for c in samples if c.variant != "ours"], run)}
    assert (fewer["ours"].missing, fewer["ours"].no_face) == (18, None)
    assert fewer["one token"].missing == 0
    assert fewer["photo"].missing is None


@pytest.mark.slow
def test_attention_figures_are_shown_where_there_are_any(made, page):
    run, samples, folder = made
    assert "Where the words look" not in page
    (folder / "attention").mkdir()
    Image.new("RGB", (2800, 70), (9, 9, 9)).save(folder / "attention" / "ours, ada.png")
    reading = Reading(render_bench_page(run, samples, folder))
    assert "Where the words look" in reading.text
    assert "ours, ada" in reading.text


def test_differing_settings_are_listed_apart_from_shared_ones(made):
    run = made[0]
    labels, apart = list_differing_settings(run)
    assert labels == ["ours", "one token"]
    assert apart == {"learn.attention_weight": ["0.003", "0.0"], "learn.stages": ["5", "1"]}
    assert list_shared_settings(run) == {"learn.steps": "200", "method": "sefi"}


@pytest.mark.slow
def test_evaluators_versions_and_hashes_are_listed(made):
    run, samples, folder = made
    run = run.model_copy(update={"evaluators": {**run.evaluators, "head_reader": None}})
    text = Reading(render_bench_page(run, samples, folder)).text
    for name, evaluator in run.evaluators.items():
        assert name.replace("_", " ") in text
        assert evaluator is None or evaluator.sha256 in text
    assert "head reader none" in text
    assert run.model.fingerprint in text
    assert "2.13.0" in text


def test_a_record_does_not_fetch_files_from_elsewhere(made, tmp_path):
    folder = made[2]
    secret = folder.parent / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    for name in ("../secret.png", str(secret), "", "\0", "x" * 256, "x/" * 5000):
        assert read_small_image(folder, name, 64) is None


@pytest.mark.slow
def test_likeness_of_reference_rows_only_has_numbers_and_no_bars(made):
    run, samples, folder = made
    plain = ("ours", "one token", "class word")
    own = [
        one.model_copy(update=dict.fromkeys(("id", "shown", "prompt_score") if one.variant in plain else ("shown",)))
        for one in samples
    ]
    text = Reading(render_bench_page(run, own, folder)).text
    assert format_value(make_table(own, run).values["photo", "id"].mean, "cosine") in text
    assert draw_kind_bars(make_table(own, run), make_tables_by_kind(own, run)) == []
    assert [label for label, _ in draw_kind_bars(make_table(samples, run), make_tables_by_kind(samples, run))] == [
        "ID(Prompt)",
        "shown",
        "ID",
    ]


def unfinished(made):
    run, samples, folder = made
    return run, [one for one in samples if one.subject != "eve" or one.prompt == 0], folder


@pytest.mark.slow
def test_an_unfinished_run_says_so_and_marks_nobody(made, page):
    part = render_bench_page(*unfinished(made))
    assert "not finished" not in page
    assert 'class="best"' in page
    planned, there = len(made[1]), len(unfinished(made)[1])
    assert f"{there} of {planned} images, not finished." in Reading(part).text
    assert Reading(part).text.index("not finished") < Reading(part).text.index("Figures")
    assert 'class="best"' not in part


def test_no_difference_of_an_unfinished_run_is_marked(made):
    run, samples, _ = made
    samples = repeat_subjects(samples)
    others = {"one token": compute_differences(samples, run, "ours", "one token")}
    whole = make_table(samples, run)
    for finished in (True, False):
        shown = make_difference_view(replace(whole, finished=finished), "t", others, ("main", "image"))
        assert any(entry.mark for entry in shown.lines[0].entries) == finished


@pytest.mark.slow
def test_one_subject_has_no_winner(synthetic, made):
    _, samples, folder = made
    run = synthetic.make_run(subjects=["ada"])
    own = samples_of(samples, "ada")
    page = render_bench_page(run, own, folder)
    assert "not finished" not in page
    assert 'class="best"' not in page
    assert 'class="best"' in render_bench_page(
        synthetic.make_run(subjects=["ada", "bob"]), samples_of(samples, "ada", "bob"), folder
    )


def samples_of(samples, *subjects):
    return [one for one in samples if one.subject in subjects]


def test_images_are_not_lazy_and_have_a_fixed_size(page):
    images = re.findall(r"<img [^>]*data:image/jpeg[^>]*>", page)
    assert len(images) > 20
    for image in images:
        # Lazy images are missing from a print: nobody has scrolled to them.
        assert "loading=" not in image
        assert re.search(r'width="96" height="96"', image)
