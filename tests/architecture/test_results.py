"""The pages' tables are what the records give."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sefi.core.config import override
from sefi.core.errors import ConfigError
from sefi.methods import BUILT_IN, PRESETS

SWEEPS = ("sweep-in-scenes", "sweep-weights", "sweep-weights-edges", "sweep-custom-diffusion")
ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "experiments" / "records"
EARLIER = RECORDS / "earlier"  # on an earlier version of the embedded model
SUITES = ROOT / "docs" / "results"
LARGEST_OVERVIEW = 12 * 1024  # bytes: one table, the claims, links; everything else has a page of its own


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return load("results")


def names(folder, ending):
    return {file.stem for file in folder.glob(f"*{ending}")}


@pytest.mark.slow
def test_pages_and_csv_files_equal_the_records(results):
    rendered = results.render_files()
    assert [str(file) for file, text in rendered.items() if not results.is_current(file, text)] == []
    assert {ROOT / "README.md", ROOT / "docs" / "results.md", *SUITES.iterdir()} == rendered.keys()


def test_every_record_has_a_page_and_a_csv_file():
    suites = names(RECORDS / "bench", ".json") | names(EARLIER, ".json")
    assert names(SUITES, ".csv") == suites
    assert names(SUITES, ".md") == {*suites, "time-and-memory"}
    overview = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for suite in suites:
        text = (SUITES / f"{suite}.md").read_text(encoding="utf-8")
        assert f"bench {suite}" in text
        assert f"]({suite}.csv)" in text
        assert f"](results/{suite}.md)" in overview


def test_the_page_on_exports_is_what_the_record_gives():
    assert load("export_loss").render_page() == (ROOT / "docs" / "hosts" / "export.md").read_text(encoding="utf-8")


def test_the_overview_stays_short():
    assert len((ROOT / "docs" / "results.md").read_bytes()) <= LARGEST_OVERVIEW


def test_a_csv_file_has_what_the_table_shows(results):
    rows = list(csv.DictReader((SUITES / "table1.csv").read_text(encoding="utf-8").splitlines()))
    found = {(row["variant"], row["figure"]): row for row in rows}
    row = found["SeFi-IDE", "id_prompt"]
    assert len(found) == len(rows)
    shown = f"| {float(row['mean']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}] |"
    assert shown in results.render_block("table1: id_prompt").splitlines()[2]
    assert found["plain word", "id"]["reference"] == "class word"


def test_a_page_calls_the_method_by_its_name(results):
    rows = results.render_block("pilot; ours; module 1e-4; plain word: id").splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| SeFi-IDE", "| module 1e-4", "| *plain word*"]
    assert results.render_block("pilot; ours - one token: id").splitlines()[2].startswith("| SeFi-IDE - one token | ")


def test_a_changed_number_is_noticed(results):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = results.BLOCK.search(text)[0]
    assert results.fill_tables(text.replace(found, found.replace("0.", "1."))) == text
    assert found.replace("0.", "1.") != found


def test_memory_by_method_is_what_was_measured():
    text = (SUITES / "table1.md").read_text(encoding="utf-8")
    record = json.loads((RECORDS / "memory.json").read_text())
    assert record.keys() == BUILT_IN.keys()
    for name, megabytes in record.items():
        assert f"| `{name}` | {megabytes} MB |" in text


def test_times_of_the_embedded_model_are_what_was_measured():
    text = (SUITES / "time-and-memory.md").read_text(encoding="utf-8")
    record = json.loads((RECORDS / "embedded_times.json").read_text())
    figures = (
        f"{record['learn_seconds']} s",
        f"{record['seconds_per_image']} s",
        f"{record['help_seconds']:.1f} s",
        f"{record['identity_bytes']} bytes",
        f"{record['peak_gib']} GiB",
    )
    section = text.split("## Embedded model")[1].split("\n## ")[0]
    assert [row.split(" | ")[1].rstrip(" |") for row in section.splitlines() if " | " in row][1:] == list(figures)


def test_times_at_the_size_of_stable_diffusion_are_what_was_measured():
    text = (SUITES / "time-and-memory.md").read_text(encoding="utf-8")
    record = json.loads((RECORDS / "real_size.json").read_text())
    for part, opened in (("folder", "a folder"), ("file", "one checkpoint file")):
        seconds = record[part]["seconds"]
        row = [
            opened,
            *(f"{seconds[step]} s" for step in ("open", "learn", "generate")),
            f"{record[part]['peak_gib']} GiB",
        ]
        assert f"| {' | '.join(row)} |" in text
    assert all(f"{weights:,}" in text for weights in record["build"]["weights"].values())


def test_a_step_at_the_size_of_sdxl_is_what_was_measured():
    text = (SUITES / "time-and-memory.md").read_text(encoding="utf-8")
    record = json.loads((RECORDS / "sdxl_step.json").read_text())
    assert f"took {record['seconds']} s and at most {record['peak_gib']} GiB" in text
    assert all(f"{weights:,}" in text for weights in record["weights"].values())


def test_tokens_put_in_one_by_one_change_what_was_measured():
    record = json.loads((RECORDS / "layout.json").read_text())
    assert load("layout").format_layout(record) in (SUITES / "slots.md").read_text(encoding="utf-8")


def test_perfect_images_have_the_background_that_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    record = json.loads((RECORDS / "background_floor.json").read_text())
    assert load("background_floor").format_floor(record) in (SUITES / "background.md").read_text(encoding="utf-8")


def test_known_names_have_the_figures_that_were_measured():
    figures = json.loads((RECORDS / "known_names.json").read_text())["figures"]
    assert load("known_names").format_figures(figures) in (SUITES / "background.md").read_text(encoding="utf-8")


def test_figures_of_the_training_on_a_gpu_are_what_was_measured():
    text = " ".join((ROOT / "docs" / "world.md").read_text(encoding="utf-8").split())
    record = json.loads((ROOT / "experiments" / "records" / "gpu_training.json").read_text())
    for channels in ("4", "8"):
        found = record["autoencoder"][channels]
        assert f"| {channels} | {found['similarity']:.3f} | {found['edges']:.2f} |" in text
        assert f"Measured on {found['faces']} faces" in text
    steps, denoiser, second = record["autoencoder"]["steps"], record["denoiser"], record["denoiser, second run"]
    finish, third = record["autoencoder, second run"], record["denoiser, third run"]
    for words in (
        f"one GPU ({record['device']})",
        f"{steps['small-crops']} steps on small crops, {steps['crops']:,} on crops",
        f"{steps['whole']:,} on whole drawings",
        f"{denoiser['steps']:,} steps of {denoiser['batch']} on {denoiser['drawings']:,} drawings",
        f"{denoiser['latent reader steps']:,} steps of the latent reader",
        f"{denoiser['seconds']} seconds in all",
        f"{second['steps']:,} more steps of {second['batch']} on {second['drawings']:,} drawings",
        f"drawings in {second['seconds']} seconds",
        f"{finish['steps']['joint']:,} steps of the whole",
        f"{finish['steps']['sharpening']:,} for sharpness and {finish['steps']['decoder']} for the decoder alone,"
        f" in {finish['seconds']} seconds",
        f"explains {third['latent reader, share of unseen variance']} of the variance",
        f"{third['steps']:,} steps of {third['batch']} on {third['drawings']:,} drawings in {third['seconds']} seconds",
        f"{second['latent reader steps']:,} steps it explained {second['latent reader, share of unseen variance']:.3f}",
    ):
        assert words in text


def test_tuned_presets_are_the_best_of_the_sweep(results):
    found = results.find_best(*SWEEPS)
    # Ours is chosen on six people, in `starts`; rows of Textual Inversion under its options begin with `scratch`.
    assert found.keys() - {"scratch"} == BUILT_IN.keys() - {"sefi"}
    for name in found.keys() - {"scratch"}:
        assert override(PRESETS[name], found[name].settings) == PRESETS[name], found[name].label


def test_the_papers_figures_are_shown_with_the_measured_ones(results):
    published = {"ours": {"id": 0.3}, "TI": {"id": 0.1}, "DreamBooth": {"id": 0.2}}
    values = {
        "ours": {"id": {"a": 0.5, "b": 0.7}},
        "TI": {"id": {"a": 0.4}},
        "DreamBooth": {"id": {"a": 0.1}},
        "word": {},
    }
    ways = [{"label": "word", "control": "class word"}]
    suite = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "variants": ways, "seeds": [0]}
    info = results.RunInfo.model_validate({"suite": suite, "subjects": [], "model": {}})
    rows = results.render_with_published(values, info, [results.BY_NAME["id"]], published).splitlines()
    assert rows[0] == "| variant | ID ↑ | paper |"
    assert rows[2].startswith("| SeFi-IDE | 0.600 [")
    assert rows[2].endswith(" | 0.300 |")
    assert rows[5] == "| *word* | - | - |"
    # Of three pairs two stand in the same order.
    assert rows[6] == "| *agreement of the orders* | 0.33 |  |"


def test_published_variants_are_those_of_the_suite(results):
    from sefi.benchmark.suite import open_suite

    published = results.tomllib.loads(results.PUBLISHED.read_text(encoding="utf-8"))
    for suite, ways in published.items():
        assert ways.keys() <= {way.label for way in open_suite(suite).variants}
        assert all(names <= results.BY_NAME.keys() for names in map(dict.keys, ways.values()))


@pytest.fixture
def empty_records(results, tmp_path, monkeypatch):
    """No records, and a place for those that are written."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "bench")
    monkeypatch.setattr(results, "EARLIER", tmp_path / "earlier")
    (tmp_path / "bench").mkdir()
    return tmp_path / "bench"


def test_an_unfinished_run_is_not_kept(results, synthetic, tmp_path, empty_records):
    samples = synthetic.make_samples()
    photos = {name: ["1", "2"] for name in synthetic.SUBJECTS}
    run = synthetic.write_run(tmp_path / "run", synthetic.make_run(photos=photos), samples)
    lines = (run / "cells.jsonl").read_text().splitlines(keepends=True)
    (run / "cells.jsonl").write_text("".join(lines[:-2]))
    with pytest.raises(ConfigError, match=f"is not finished: 2 of {len(samples)} images are missing"):
        results.keep(run)
    assert not list(empty_records.iterdir())
    (run / "cells.jsonl").write_text("".join(lines))
    results.keep(run)
    best = results.find_best("synthetic")
    assert [one.label for one in best.values()] == ["ours"]
    record = json.loads((empty_records / "synthetic.json").read_text())
    (empty_records / "synthetic.json").write_text(json.dumps(record | {"pictures": len(samples) - 3}))
    with pytest.raises(ConfigError, match=f"synthetic is not finished: 3 of {len(samples)} images are missing"):
        results.find_best("synthetic")


def test_every_record_is_of_a_finished_run(results):
    for file in [*results.RECORDS.glob("*.json"), *results.EARLIER.glob("*.json")]:
        results.check_finished(file.stem, results.measure_record(results.read_record(file.stem)))


def test_what_exports_lose_is_not_measured_on_with_another_model_or_settings(tmp_path):
    export_loss, about = load("export_loss"), {"sefi": "1", "model": {"fingerprint": "a"}, "seeds": (1,)}
    folder = tmp_path / "work"
    export_loss.begin_work(folder, about)
    export_loss.begin_work(folder, about)
    other = about | {"sefi": "2", "model": {"fingerprint": "b"}}
    with pytest.raises(ConfigError, match="another measurement: model, sefi differ"):
        export_loss.begin_work(folder, other)
    (folder / "about.json").unlink()
    export_loss.begin_work(folder, other)  # nothing was measured yet
    (folder / "scores.jsonl").write_text("")
    (folder / "about.json").unlink()
    with pytest.raises(ConfigError, match="nobody knows what was measured"):
        export_loss.begin_work(folder, about)
    (folder / "about.json").write_text("{")
    with pytest.raises(ConfigError, match="does not say what was measured"):
        export_loss.begin_work(folder, about)


@pytest.mark.slow
def test_a_measurement_of_exports_says_what_it_depends_on(tmp_path):
    export_loss = load("export_loss")
    people = export_loss.GROUPS["choosing"][1]
    described = [
        export_loss.describe_work(*export_loss.open_group("choosing", tmp_path, quick=quick)) for quick in (True, False)
    ]
    assert [len(one["subjects"]) for one in described] == [1, people]
    assert described[0]["settings"]["ours"]["learn"]["steps"] == 3
    assert described[0]["model"]["fingerprint"] == described[1]["model"]["fingerprint"]
    assert described[0]["signature"]


def test_noise_of_seeds_is_told_from_that_of_people():
    """A part of each person and a part of each prompt and seed: each error knows one of them."""
    random, noise = np.random.default_rng(3), load("seed_noise")
    people, places = random.normal(size=(7, 1, 1)), random.normal(size=(1, 5, 3))
    found = noise.split_noise(np.broadcast_to(people, (7, 5, 3)))
    assert found["standard_error_of_seeds"] == 0
    assert found["standard_error_of_people"] == pytest.approx(float(people.std(ddof=1)) / 7**0.5, abs=1e-4)
    found = noise.split_noise(np.broadcast_to(places, (7, 5, 3)))
    assert found["standard_error_of_people"] == pytest.approx(0, abs=1e-4)
    within = [np.var(one, ddof=1) for one in places[0]]
    assert found["standard_error_of_seeds"] == pytest.approx((sum(within) / 5 / 15) ** 0.5, abs=1e-4)
    assert found["mean_by_seed"] == pytest.approx(places.mean((0, 1)), abs=1e-4)


def test_many_seeds_of_the_plain_word_take_the_place_of_a_few(monkeypatch):
    """A variant that has half of each seed's luck, and 0.25 more than the plain word; the few seeds are lucky ones."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    random, plain_word = np.random.default_rng(5), load("plain_word")
    level, many = random.normal(size=(1, 5, 1)), random.normal(size=(1, 5, 64))
    luck = random.normal(size=(1, 5, 7)) + 3
    people = random.normal(scale=0.1, size=(11, 1, 1))
    shared, plain = (np.broadcast_to(level + one, (11, 5, one.shape[-1])) for one in (luck, many))
    usual = many.mean(2, keepdims=True)
    ours = level + usual + 0.25 + 0.5 * (luck - usual)
    found = plain_word.compare_scores(ours + people - people.mean(), shared, plain)
    assert found["slope"] == pytest.approx(0.5)
    assert found["mean"] == pytest.approx(0.25, abs=1e-4)
    assert found["mean_by_prompt"] == pytest.approx([0.25] * 5, abs=1e-4)
    assert found["standard_error_of_people"] == pytest.approx(float(people.std(ddof=1)) / 11**0.5, abs=1e-4)
    within = many[0].var(1, ddof=1) / 4 / 64
    assert found["standard_error_of_seeds"] == pytest.approx((within.mean() / 5) ** 0.5, abs=1e-4)
    exact = plain_word.compare_scores(shared, shared, plain)
    assert (exact["slope"], exact["mean"], exact["standard_error_of_seeds"]) == (1, 0, 0)


def test_records_of_different_people_weigh_by_their_errors(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    found = [
        {"mean": 0.01, "standard_error_of_seeds": 0.003, "standard_error_of_people": 0.004},
        {"mean": 0.02, "standard_error_of_seeds": 0.0, "standard_error_of_people": 0.01},
    ]
    assert load("plain_word").average_differences(found) == pytest.approx((0.012, 50_000**-0.5))
    assert load("plain_word").average_differences(found[:1]) == pytest.approx((0.01, 0.005))


def test_noise_of_seeds_is_what_was_measured():
    record = json.loads((RECORDS / "seed_noise.json").read_text())
    assert load("seed_noise").format_noise(record) in (SUITES / "more-seeds.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "page"), [("plain_word", "more-seeds"), ("plain_word_ninety_six", "ninety-six-people")]
)
def test_differences_to_the_plain_word_are_what_was_measured(monkeypatch, name, page):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    plain_word, record = load("plain_word"), json.loads((RECORDS / f"{name}.json").read_text())
    text = (SUITES / f"{page}.md").read_text(encoding="utf-8")
    assert plain_word.format_differences(record) in text
    assert plain_word.format_prompts(record) in text


def test_differences_of_all_people_are_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    records = [json.loads((RECORDS / f"plain_word{end}.json").read_text()) for end in ("", "_ninety_six")]
    page = (SUITES / "ninety-six-people.md").read_text(encoding="utf-8")
    assert load("plain_word").format_averages(records) in page
