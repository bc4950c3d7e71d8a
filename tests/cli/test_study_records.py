"""Whatever the records of a run lack or say, `bench report` and `study build` work or end with a typed error."""

import copy
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sefi.benchmark.evaluators import EvaluatorFiles, Evaluators
from sefi.benchmark.plan import list_planned_keys
from sefi.benchmark.records import EvaluatorInfo, RunInfo, Sample
from sefi.benchmark.run import OpenRun, RunFolder, describe_run
from sefi.benchmark.suite import BenchmarkSubject, Suite, SuitePrompt, Variant
from sefi.core.progress import SilentProgress

SUITE = Suite(
    name="tiny",
    about="Two people.",
    prompts=(
        SuitePrompt(text="a photo of {} at the beach", kind="scene", wanted=(("scene", "beach"),)),
        SuitePrompt(text="a photo of {} holding a cup", kind="action", wanted=(("action", "cup"),)),
    ),
    variants=(
        Variant(label="ours", about="Tokens for each stage."),
        Variant(label="rival", preset="textual-inversion"),
        Variant(label="word", control="class word"),
        Variant(label="ceiling", control="same"),
        Variant(label="floor", control="other"),
    ),
    seeds=(5,),
)
GREY = np.full((17, 17, 3), 90, np.uint8)
SCORES = {
    "faces": 1,
    "id": 0.5,
    "id_other": 0.4,
    "id_leaked": 0.1,
    "id_second": 0.5,
    "id_second_other": 0.4,
    "dino": 0.4,
    "clip_image": 0.6,
    "clip_image_others": 0.5,
    "background": 0.3,
    "background_others": 0.2,
    "prompt_score": 0.25,
    "margin": 0.02,
    "focus": 0.5,
    "focus_plain": 0.25,
    "on_objects": 0.1,
    "on_objects_plain": 0.2,
    "shown": [True],
    "embedding": [0.6, 0.8],
    "draw_seconds": 0.5,
    "learn_seconds": 3.0,
    "class_seconds": 0.0,
    "peak_mb": 730.5,
    "trained": 7680,
    "added": 0,
}
# In place of any text: empty, blank, not printable, paths that lead away, too long for a file name, not Latin.
TEXTS = (
    "",
    "  ",
    "\0",
    "a\nb",
    "../x",
    "/dev/zero",
    "{",
    "$x$ <b>",
    "x" * 256,
    "x" * 300,
    "\N{LATIN SMALL LETTER Z WITH CARON}" * 300,
    "x" * 20_000,
    "a+b",
)
NUMBERS = (0, -1, 5e-324, 1e-310, 0.5, 4.0, 1e15, 1e200, 1e308, -1e308, 10**18, 10**30)


@pytest.fixture(scope="module")
def real(backbone, tmp_path_factory):
    """What `sefi bench run` writes into `run.json` for two people."""
    silent = SilentProgress()
    folder = RunFolder(tmp_path_factory.mktemp("described"))
    run = OpenRun(
        SUITE,
        (BenchmarkSubject("ada", GREY, GREY), BenchmarkSubject("bob", GREY)),
        backbone,
        Evaluators(EvaluatorFiles()),
        folder,
        silent,
        silent,
    )
    detector, clip = EvaluatorInfo(file="d.onnx", sha256="00"), EvaluatorInfo(file="c", sha256="11")
    evaluators = {"detector": detector, "reader": None, "clip": clip}
    return json.loads(describe_run(run, evaluators, tau=0.23, far_threshold=0.4).dump())


def keys_of(run):
    """Every planned image of a run that is valid."""
    info = RunInfo.parse(json.dumps(run))
    return list_planned_keys(info.suite, info.subjects, info.photos)


def cells_of(run, scores):
    """A record with every field for each planned image; scores differ from one to the next."""
    cells = []
    for n, (subject, variant, prompt, seed) in enumerate(keys_of(run)):
        asked = SUITE.prompts[prompt]
        cell = {"subject": subject, "variant": variant, "prompt": prompt, "seed": seed, "kind": asked.kind}
        cell |= {"text": asked.text.format("person"), "image": f"pictures/{n}.png", "sha256": f"{n:04}"}
        known = {name: value + n / 97 if isinstance(value, float) else value for name, value in scores.items()}
        cells.append(cell | {"class_word": "person", "maps": None} | known)
    return cells


def test_the_cells_here_have_every_field(real):
    assert set(cells_of(real, SCORES)[0]) == set(
        Sample.parse(json.dumps(cells_of(real, SCORES)[0])).model_dump(by_alias=True)
    )


@pytest.fixture(scope="module")
def folder(real, tmp_path_factory):
    """A run's folder with its images; the records are written by `outcomes`."""
    made = tmp_path_factory.mktemp("run")
    for name in ("pictures", "photos"):
        (made / name).mkdir()
    image = Image.fromarray(GREY)
    for n in range(len(keys_of(real))):
        image.save(made / f"pictures/{n}.png")
    for key in real["photos"]:
        image.save(made / f"photos/{key}.png")
    return made


COMMANDS = {"report": ("bench", "report"), "build": ("study", "build", "--count", 1, "--checks", 1, "--overwrite")}


def outcome(sefi, folder, run, cells, command):
    """Return exit code and message of a command on these records, which is 0 or a typed error."""
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    out = folder / ("report" if command == "report" else "study.html")
    if command == "report":
        shutil.rmtree(out, ignore_errors=True)
    found = sefi(*COMMANDS[command], folder, "--out", out, "--json")
    assert found.exit_code in (0, 2), found.output[-600:]
    answer = json.loads(found.stdout)
    if found.exit_code == 0:
        return 0, ""
    assert set(answer) == {"schema", "error", "try"}
    assert answer["error"]
    assert answer["try"]
    return 2, answer["error"]


def places_of(tree, above=()):
    """Every path to a value inside of a tree of mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in inner:
        yield (*above, name)
        yield from places_of(value, (*above, name))


def changed(tree, place, change):
    """A copy of a tree with the value at a place replaced, or taken out."""
    made = copy.deepcopy(tree)
    *above, last = place
    holder = made
    for name in above:
        holder = holder[name]
    change(holder, last)
    return made


def take_out(holder, name):
    del holder[name]


def put(value):
    def change(holder, name):
        holder[name] = value

    return change


def instead_of(value):
    """Other values for one: null, of another kind, empty, and huge."""
    match value:
        case bool() | None:
            return [7, "text", []]
        case str():
            return [None, 7, ["text"], *TEXTS]
        case int() | float():
            return [None, "0.5", [], True, *NUMBERS]
        case list():
            return [None, "text", {}, [], value * 2, value * 20_000, [None], [[]]]
        case _:
            return [None, "text", [], {}, {"": None}, {str(n): n for n in range(20_000)}, {**value, "x" * 300: 1}]


def mutations(tree):
    """Every place with every change; of the entries of a list, all changes of the first and some of the others."""
    for place in places_of(tree):
        yield changed(tree, place, take_out)
        value = tree
        for name in place:
            value = value[name]
        others = instead_of(value)
        for other in others[:2] if any(name in range(1, 10) for name in place) else others:
            yield changed(tree, place, put(other))


def sample(things, count, seed=0):
    """At most so many of some things, in their order, the same every time."""
    chosen = np.random.default_rng(seed).permutation(len(things))[:count]
    return [things[n] for n in sorted(chosen)]


def changed_runs(real):
    """Every change of `run.json`; a variant's settings are whatever its method has, so a few of theirs will do."""
    facts = {name: value for name, value in real.items() if name != "settings"}
    changes = [run | {"settings": real["settings"]} for run in mutations(facts)]
    return [*changes, *sample([real | {"settings": tree} for tree in mutations(real["settings"])], 100)]


def alone(real):
    """The run of the first subject only: one value has no interval, so a report takes a fifth of the time."""
    return real | {"subjects": ["ada"], "photos": {"ada": real["photos"]["ada"]}}


def changed_cells(run):
    """The record of a run with every change of one of its lines."""
    first, *others = cells_of(run, SCORES)
    return [[cell, *others] for cell in mutations(first)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_whole_run_is_reported(sefi, real, folder, command):
    assert outcome(sefi, folder, real, cells_of(real, SCORES), command) == (0, "")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_changed_run_or_cell_is_reported_or_refused(sefi, real, folder, command):
    for run in sample(changed_runs(real), 11):
        outcome(sefi, folder, run, cells_of(real, {}), command)
    for cells in sample(changed_cells(alone(real)), 3):
        outcome(sefi, folder, alone(real), cells, command)


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
def test_hundreds_of_changed_runs_are_reported_or_refused(sefi, real, folder, command):
    codes = Counter(
        outcome(sefi, folder, run, cells_of(real, {}), command)[0] for run in sample(changed_runs(real), 250)
    )
    assert min(codes[0], codes[2]) > 50


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
def test_hundreds_of_changed_cells_are_reported_or_refused(sefi, real, folder, command):
    run = alone(real)
    codes = Counter(outcome(sefi, folder, run, cells, command)[0] for cells in sample(changed_cells(run), 75))
    assert min(codes[0], codes[2]) > 15


OPTIONAL = [
    ("suite", "about"),
    ("suite", "together"),
    ("suite", "class_word"),
    ("suite", "prompts", 0, "wanted"),
    ("suite", "variants", 0, "about"),
    ("suite", "variants", 1, "control"),
    ("photos",),
    ("model", "name"),
    ("model", "fingerprint"),
    ("evaluators",),
    ("evaluators", "clip", "file"),
    ("evaluators", "clip", "sha256"),
    ("versions",),
    ("settings",),
    ("tau",),
    ("far_threshold",),
]


@pytest.mark.parametrize("change", [take_out, put(None)], ids=["left out", "null"])
@pytest.mark.parametrize("place", OPTIONAL, ids=lambda place: ".".join(map(str, place)))
def test_what_a_run_may_leave_out_is_not_missed(sefi, real, folder, place, change):
    run = changed(real, place, change)
    for command in COMMANDS:
        assert outcome(sefi, folder, run, cells_of(real, {}), command) == (0, "")
    if place[0] == "model":
        assert "unknown" in (folder / "report/index.html").read_text()


def renamed(tree, old, new):
    """A tree with one text, and one key, replaced wherever it stands."""
    if isinstance(tree, dict):
        return {new if name == old else name: renamed(value, old, new) for name, value in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, old, new) for value in tree]
    return new if tree == old else tree


def check_name(sefi, folder, run, old, new):
    """Every command works where a name is another one throughout the records."""
    other, cells = (renamed(tree, old, new) for tree in (run, cells_of(run, SCORES)))
    for command in COMMANDS:
        assert outcome(sefi, folder, other, cells, command) == (0, "")


NAMES = [text for text in TEXTS if 0 < len(text) <= 200 and text != "\0"]
LONGEST = "\N{LATIN SMALL LETTER Z WITH CARON}" * 200


@pytest.mark.slow
def test_the_longest_name_is_reported(sefi, real, folder):
    check_name(sefi, folder, alone(real), "ours", LONGEST)


@pytest.mark.slow
@pytest.mark.parametrize("new", [*NAMES, "x" * 200, LONGEST])
@pytest.mark.parametrize("old", ["ours", "scene"])
def test_every_name_that_a_run_may_have_is_reported(sefi, real, folder, old, new):
    check_name(sefi, folder, alone(real), old, new)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [0.0, 5e-324, -1e-310])
@pytest.mark.parametrize("field", [name for name, value in SCORES.items() if isinstance(value, float)])
def test_scores_that_hardly_differ_are_reported(sefi, real, folder, field, tiny):
    cells = [cell | {field: n % 2 * tiny if n else 0.0} for n, cell in enumerate(cells_of(real, {}))]
    cells = [cell | {name: cell.get(name, 0.5) for name in ("id", "prompt_score", "faces")} for cell in cells]
    assert outcome(sefi, folder, real, cells, "report")[0] in (0, 2)
