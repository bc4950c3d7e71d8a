"""What `run.json` may leave out is filled in; what no report could use is refused by the name of its field.

Records of other versions are told apart: a newer one by its number, anything else that is unknown as damage.
"""

import json

import pytest

from sefi.benchmark import run as run_files
from sefi.benchmark.records import LARGEST_SCORE, MOST_IMAGES, MOST_LISTED, RUN_SCHEMA, RunInfo, Sample
from sefi.benchmark.run import LARGEST_RECORD, LONGEST_LINE, RunFolder
from sefi.core.errors import ConfigError

PROMPT, VARIANT = {"text": "a photo of {}", "kind": "plain"}, {"label": "ours"}
SUITE = {"name": "s", "prompts": [PROMPT], "variants": [VARIANT], "seeds": [0]}
RUN = {"suite": SUITE, "subjects": ["ada", "bob"], "model": {}}
FILLED = {
    "schema": 0,
    "suite": {
        "name": "s",
        "about": "",
        "prompts": [{"text": "a photo of {}", "kind": "plain", "wanted": []}],
        "variants": [
            {
                "label": "ours",
                "about": "",
                "preset": "default",
                "settings": [],
                "learned_by": None,
                "class_slots": [],
                "strength": 1.0,
                "learning_seed": 0,
                "control": None,
                "images": None,
            }
        ],
        "settings": [],
        "seeds": [0],
        "subjects": 4,
        "first": 0,
        "together": 1,
        "class_word": "person",
        "photos": "plain",
        "attention": False,
    },
    "subjects": ["ada", "bob"],
    "photos": {},
    "model": {"name": "unknown", "fingerprint": "unknown"},
    "device": "",
    "dtype": "",
    "evaluators": {},
    "versions": {},
    "settings": {},
    "tau": None,
    "far_threshold": None,
    "folders": {},
    "mark": False,
    "learning_files": None,
    "record": None,
}


def with_suite(**changes):
    return RUN | {"suite": SUITE | changes}


def cell(**changes):
    known = {"subject": "ada", "variant": "ours", "prompt": 0, "seed": 0, "kind": "plain", "text": "person"}
    return known | {"image": "pictures/0.png", "sha256": "00"} | changes


def fill_run(values):
    """What `run.json` would say if it said everything."""
    return json.loads(RunInfo.parse(json.dumps(values)).dump())


def folder_of(path, run, cells=()):
    (path / "run.json").write_text(json.dumps(run))
    (path / "cells.jsonl").write_text("".join(json.dumps(one) + "\n" for one in cells))
    return RunFolder(path)


def test_every_field_that_is_left_out_or_null_has_its_default():
    assert fill_run(RUN) == FILLED
    optional = [name for name in FILLED if name not in ("suite", "subjects", "model")]
    assert fill_run(RUN | dict.fromkeys(optional)) == FILLED
    nulls = with_suite(about=None, together=None, class_word=None, prompts=[PROMPT | {"wanted": None}])
    assert fill_run(nulls) == FILLED
    assert fill_run(RUN | {"evaluators": {"clip": {}, "reader": None}})["evaluators"] == {
        "clip": {"file": "unknown", "sha256": "unknown"},
        "reader": None,
    }


def rename_keys(tree, names):
    """Give keys at any depth their earlier names."""
    if isinstance(tree, dict):
        return {names.get(key, key): rename_keys(value, names) for key, value in tree.items()}
    return [rename_keys(one, names) for one in tree] if isinstance(tree, list) else tree


def test_runs_of_earlier_versions_are_read(tmp_path):
    """Schema 2 had other keys; what is written again has the new ones."""
    run = FILLED | {"evaluators": {"clip": {"file": "c", "sha256": "7"}}, "schema": 2}
    earlier = rename_keys(run, {"variants": "ways", "evaluators": "judges"})
    earlier["suite"]["kind"] = earlier["suite"].pop("class_word")
    assert earlier != run
    assert fill_run(earlier) == run
    sample = rename_keys(cell(id=0.5), {"variant": "way", "image": "picture"})
    assert sample["way"] == "ours"
    samples = folder_of(tmp_path, earlier, [sample]).read_samples()
    assert samples == folder_of(tmp_path, run, [cell(id=0.5)]).read_samples()
    assert samples[0].image == "pictures/0.png"
    both = json.dumps(cell(way="other"))
    with pytest.raises(ValueError, match="way"):
        Sample.parse(both)


def test_stated_values_are_unchanged():
    said = FILLED | {"tau": 0.25, "model": {"name": "m", "fingerprint": "f"}}
    said |= {"settings": {"ours": {"learn": {"steps": None}}}, "photos": {"ada": ["1"], "bob": ["2", "3"]}}
    assert fill_run(said) == said
    assert fill_run(fill_run(RUN)) == FILLED


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (without(RUN, "suite"), "suite: Field required"),
        (without(RUN, "subjects"), "subjects: Field required"),
        (RUN | {"suite": without(SUITE, "variants")}, "suite.variants: Field required"),
        (with_suite(variants=[{"about": "x"}]), "suite.variants.0.label: Field required"),
        (RUN | {"tau": "0.25"}, "tau: Input should be a valid number"),
        (with_suite(variants={}), "suite.variants: Input should be a valid"),
        (
            with_suite(variants=[VARIANT | {"strength": "1"}]),
            "suite.variants.0.strength: Input should be a valid number",
        ),
        (RUN | {"schema": "1"}, "schema: Input should be a valid integer"),
        (RUN | {"colour": 1}, "colour: Extra inputs are not permitted"),
        (with_suite(colour=1), "suite.colour: Extra inputs are not permitted"),
        (with_suite(variants=[VARIANT | {"colour": 1}]), "suite.variants.0.colour: Extra inputs are not permitted"),
        (with_suite(prompts=[PROMPT | {"colour": 1}]), "suite.prompts.0.colour: Extra inputs are not permitted"),
        (RUN | {"model": {"year": 2031}}, "model.year: Extra inputs are not permitted"),
        (RUN | {"schema_number": 1}, "schema_number: Extra inputs are not permitted"),  # the name here, not in the file
    ],
)
def test_a_missing_unknown_or_wrong_field_of_a_run_is_named(tmp_path, run, message):
    with pytest.raises(ConfigError, match=rf"run\.json is damaged: {message}"):
        folder_of(tmp_path, run).read_info()


@pytest.mark.parametrize("changes", [{}, {"colour": 1}, {"suite": None}, {"tau": "high"}])
def test_a_run_of_a_newer_version_is_refused_by_its_number(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"was written by a newer sefi\.") as caught:
        folder_of(tmp_path, RUN | {"schema": RUN_SCHEMA + 1} | changes).read_info()
    assert caught.value.remedy == "Update sefi."


@pytest.mark.parametrize("schema", [None, 0, 1, 2, 3])
def test_a_run_of_an_older_version_is_read(tmp_path, schema):
    assert folder_of(tmp_path, RUN | {"schema": schema}).read_info().subjects == ("ada", "bob")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": None}, "variant: Input should be a valid string"),
        ({"prompt": "0"}, "prompt: Input should be a valid integer"),
        ({"prompt": 0.5}, "prompt: Input should be a valid integer"),
        ({"prompt": -1}, "prompt: "),
        ({"prompt": 2**70}, "a whole number is too large"),
        ({"id": True}, "id: Input should be a valid number"),
        ({"id": float("nan")}, "it holds the number NaN"),
        ({"shown": ["yes"]}, r"shown\.0: Input should be a valid boolean"),
        ({"shown": "yes"}, "shown: Input should be a valid"),
        ({"embedding": []}, "embedding: "),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"id_other_photo": 0.5}, "id_other_photo: Extra inputs are not permitted"),  # the name here, not in the file
        ({"text": "\ud800"}, "a text has half of a character"),
    ],
)
def test_a_wrong_or_unknown_field_of_a_sample_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=rf"cells\.jsonl is damaged: line 1: {message}"):
        folder_of(tmp_path, RUN, [cell(**change)]).read_samples()


@pytest.mark.parametrize("field", ["subject", "variant", "kind", "prompt", "text", "seed", "image", "sha256"])
def test_a_field_that_a_sample_lacks_is_named(tmp_path, field):
    with pytest.raises(ConfigError, match=f"line 1: {field}: Field required"):
        folder_of(tmp_path, RUN, [without(cell(), field)]).read_samples()


@pytest.mark.parametrize("line", ["7", "[]", '"text"', "null"])
def test_a_line_that_is_no_object_is_refused(tmp_path, line):
    folder = folder_of(tmp_path, RUN)
    folder.samples_file.write_text(line + "\n")
    with pytest.raises(ConfigError, match="line 1: it holds no JSON object"):
        folder.read_samples()


def test_a_sample_is_written_under_the_keys_of_the_files_and_read_again():
    whole = cell(class_word="dog", shown=[True, False], embedding=[0.5, 1.0], trained=7680, peak_mb=730.0, id=0.25)
    sample = Sample.parse(json.dumps(whole))
    assert (sample.variant, sample.image, sample.shown) == ("ours", "pictures/0.png", (True, False))
    written = json.loads(sample.dump())
    assert {name: value for name, value in written.items() if value is not None} == whole
    assert Sample.parse(sample.dump()) == sample
    with pytest.raises(ValueError, match="frozen"):
        sample.id = 1.0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (with_suite(together=2, prompts=[PROMPT | {"text": "{} and {}"}]), "subjects: 'ada' does not name 2"),
        (RUN | {"subjects": ["ada+bob"]}, "subjects: 'ada\\+bob' does not name 1"),
        (RUN | {"subjects": ["ada+"]}, "subjects: 'ada\\+' does not name 1"),
        (RUN | {"subjects": ["ada", "ada"]}, "subjects: 'ada' is given twice"),
        (RUN | {"photos": {"ada": ["1"]}}, "photos: there is none of the subject 'bob'"),
        (RUN | {"photos": {"ada": [], "bob": ["1"]}}, "photos.ada: "),
        (with_suite(variants=[VARIANT, VARIANT]), "variants: 'ours' is given twice"),
        (with_suite(variants=[{"label": "x" * 201}]), "suite.variants.0.label: "),
        (with_suite(variants=[VARIANT | {"control": ""}]), "suite.variants.0.control: "),
        (with_suite(seeds=[3, 3]), "seeds: '3' is given twice"),
        (with_suite(seeds=list(range(10_000)), prompts=[PROMPT] * 51), "suite: it asks for 1,020,000 images"),
        (RUN | {"tau": 1e308}, "tau: "),
        (RUN | {"far_threshold": -1e308}, "far_threshold: "),
        (RUN | {"model": {"name": 7}}, "model.name: "),
        (RUN | {"evaluators": {"clip": {"sha256": 7}}}, "evaluators.clip.sha256: "),
    ],
)
def test_what_no_report_could_use_is_refused_by_its_field(tmp_path, run, message):
    with pytest.raises(ConfigError, match=rf"run\.json is damaged: .*{message}"):
        folder_of(tmp_path, run).read_info()


def test_two_who_share_an_image_need_a_photo_each(tmp_path):
    run = with_suite(together=2, prompts=[PROMPT | {"text": "{} and {}"}]) | {"subjects": ["ada+bob"]}
    for photos in ({}, {"ada": ["1"], "bob": ["2"]}):
        assert folder_of(tmp_path, run | {"photos": photos}).read_info().photos.keys() == photos.keys()
    with pytest.raises(ConfigError, match="there is none of the subject 'bob'"):
        folder_of(tmp_path, run | {"photos": {"ada": ["1"]}}).read_info()


@pytest.mark.parametrize(
    "field",
    ["id", "id_other", "id_leaked", "clip_image", "background", "prompt_score", "margin", "focus", "on_objects"],
)
def test_a_score_is_no_larger_than_scores_can_be(tmp_path, field):
    for value in (-LARGEST_SCORE, -1, 0.3, LARGEST_SCORE):
        (sample,) = folder_of(tmp_path, RUN, [cell(**{field: value})]).read_samples()
        assert sample.model_dump(by_alias=True)[field] == value
    for value in (1e308, -1e308, 1.01 * LARGEST_SCORE):
        with pytest.raises(ConfigError, match=rf"cells\.jsonl is damaged: line 1: {field}: "):
            folder_of(tmp_path, RUN, [cell(**{field: value})]).read_samples()


@pytest.mark.parametrize(
    ("field", "value"),
    [("peak_mb", 1e300), ("learn_seconds", -1), ("trained", 1e16), ("faces", 10**6), ("variant", "x" * 256)],
)
def test_costs_counts_and_names_have_bounds(tmp_path, field, value):
    with pytest.raises(ConfigError, match=rf"cells\.jsonl is damaged: line 1: {field}: "):
        folder_of(tmp_path, RUN, [cell(**{field: value})]).read_samples()


def test_an_embedding_has_squares_that_are_finite(tmp_path):
    with pytest.raises(ConfigError, match=r"line 1: embedding\.1: "):
        folder_of(tmp_path, RUN, [cell(embedding=[0.5, 1e200])]).read_samples()


def test_a_million_images_are_a_run():
    run = with_suite(seeds=list(range(10_000)), prompts=[PROMPT] * (MOST_IMAGES // 20_000))
    assert len(fill_run(run)["suite"]["seeds"]) == 10_000


def test_the_record_of_a_million_images_can_be_read_whatever_their_vectors():
    sample = Sample.model_validate(cell(text="\u20ac" * 2000, embedding=[-0.12345] * 8192))
    assert 90_000 < len(sample.dump()) < LONGEST_LINE
    assert MOST_IMAGES * len(sample.dump()) < LARGEST_RECORD


def test_more_images_than_a_run_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "MOST_IMAGES", 2)
    cells = [cell(seed=seed) for seed in (0, 1, 1)]
    run = with_suite(seeds=[0, 1, 2])
    assert len(folder_of(tmp_path, run, cells).read_samples()) == 2
    with pytest.raises(ConfigError, match=r"more than 2 images\. Make another run"):
        folder_of(tmp_path, run, [*cells, cell(seed=2)]).read_samples()


def list_images(count):
    """Images of one folder as `run.json` names them, each in as many bytes as usual."""
    return [
        {
            "subject": "ada",
            "prompt": 0,
            "seed": n,
            "file": f"subject-{n:06}/a-photo-of-a-person-at-the-beach-0000.png",
            "sha256": "0123456789abcdef",
        }
        for n in range(count)
    ]


@pytest.mark.slow
def test_a_run_of_two_large_folders_is_read_again(tmp_path):
    prompts, images = [{"text": "a", "kind": "plain"}] * 10, list_images(MOST_LISTED)
    suite = {"variants": [{"label": label, "images": label} for label in "ab"], "prompts": prompts}
    info = RunInfo.model_validate(with_suite(**suite) | {"folders": {label: {"images": images} for label in "ab"}})
    RunFolder(tmp_path).begin(info)
    assert (tmp_path / "run.json").stat().st_size > 16 * 2**20
    assert RunFolder(tmp_path).read_info() == info


def test_a_run_whose_record_could_not_be_read_again_is_refused_before_it_begins(tmp_path, monkeypatch):
    info = RunInfo.model_validate(RUN | {"folders": {"a": {"images": list_images(20)}}})
    monkeypatch.setattr(run_files, "LARGEST_RUN_INFO", len(info.dump(indent=1)))
    with pytest.raises(ConfigError, match=r"would have [\d,]+ bytes; at most [\d,]+ are read"):
        RunFolder(tmp_path / "run").begin(info)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(run_files, "LARGEST_RUN_INFO", len(info.dump(indent=1)) + 1)
    RunFolder(tmp_path / "run").begin(info)
    assert RunFolder(tmp_path / "run").read_info() == info


@pytest.mark.parametrize("control", ["\0", "\x1b", "\x0b", "\uffff"])
def test_a_control_character_is_refused_wherever_it_stands(tmp_path, control):
    """An SVG cannot hold one, and a page that holds one is no text file: the next report would not replace it."""
    text = f"a{control}b"
    runs = [
        with_suite(name=text),
        with_suite(variants=[{"label": text}]),
        with_suite(prompts=[PROMPT | {"wanted": [["scene", text]]}]),
        RUN | {"subjects": [text]},
        RUN | {"model": {"name": text}},
        RUN | {"versions": {text: "1"}},
        RUN | {"evaluators": {text: None}},
        RUN | {"settings": {text: {}}},
        RUN | {"settings": {"ours": {"learn": {"templates": [{"a": text}]}}}},
        RUN | {"settings": {"ours": {"learn": {text: 1}}}},
    ]
    for run in runs:
        with pytest.raises(ConfigError, match=r"run\.json is damaged: .*a text has a control character"):
            folder_of(tmp_path, run).read_info()
    for field in ("subject", "variant", "kind", "text", "image", "sha256", "class_word", "maps"):
        with pytest.raises(ConfigError, match=rf"line 1: {field}: a text has a control character"):
            folder_of(tmp_path, RUN, [cell(**{field: text})]).read_samples()
    assert folder_of(tmp_path, with_suite(about="a\tb\nc")).read_info().suite.about == "a\tb\nc"
