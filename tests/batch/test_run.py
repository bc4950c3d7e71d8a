"""A batch learns what `learn` would, once; what fails stops nothing; a kill at any write loses nothing."""

import os
import shutil
import signal
import warnings
from copy import copy
from dataclasses import replace
from datetime import date

import pytest
import torch
from PIL import Image
from tests.batch.conftest import CONSENT, FAST

import sefi.batch.plan
import sefi.batch.run
import sefi.core.files
import sefi.identity.file
from sefi.api import learn
from sefi.batch.plan import (
    ItemRecord,
    ItemState,
    locate_identity_file,
    locate_item_record,
    make_plan,
    read_item_record,
    write_item_record,
)
from sefi.batch.run import (
    WorkQueue,
    begin_try,
    describe_failure,
    learn_alone,
    list_problems,
    locate_training,
    make_preview_config,
    remove_partials,
)
from sefi.core.config import override
from sefi.core.errors import (
    NO_PRIMITIVE,
    ConfigError,
    IdentityError,
    Interrupted,
    OutputError,
    PhotoError,
    make_memory_error,
)
from sefi.core.files import name_partial
from sefi.core.progress import SilentProgress
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.identity.file import Identity
from sefi.methods import PRESETS
from sefi.methods.base import create_header
from sefi.photo.detect import Face
from sefi.photo.read import MAX_BYTES
from sefi.provenance.consent import parse_consent
from sefi.provenance.save import read_named_identities
from sefi.training import finetuning

PORTRAIT = EMBEDDED_EVALUATORS.parent / "demo" / "portrait.png"


def read_states(folder):
    """Return what each file of a folder is by now, so that a file that is written again shows."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def state_of(settings, name):
    return read_item_record(settings.folder, name).state


@pytest.mark.slow
def test_a_batch_learns_the_same_bytes_as_learn_and_a_second_run_does_nothing(settings, work_off, backbone):
    plan, worked = work_off(settings)
    assert worked == ["ada", "bob"]
    for item in plan.items:
        alone = learn(
            item.photos[0],
            name=item.name,
            backbone=backbone,
            config=item.config,
            any_style=True,
            consent=parse_consent(CONSENT, date(2026, 1, 2)),
        )
        alone.save(settings.photos / item.name)
        file = settings.folder / f"{item.name}.safetensors"
        assert file.read_bytes() == (settings.photos / item.name).read_bytes()
        record = read_item_record(settings.folder, item.name)
        assert record.run["settings"]["learn"]["steps"] == 3
        assert record.run["model"]["fingerprint"] == backbone.fingerprint
        assert read_named_identities(settings.folder / "previews" / f"{item.name}.png") == {record.identity[:16]}
    before = read_states(settings.folder)
    assert work_off(settings)[1] == []
    assert read_states(settings.folder) == before
    assert not list(settings.folder.rglob(".*"))


@pytest.mark.slow
def test_images_of_the_class_are_drawn_once(settings, work_off, monkeypatch):
    drawn, draw = [], finetuning.generate_class_latents
    monkeypatch.setattr(finetuning, "generate_class_latents", lambda *given: drawn.append(given) or draw(*given))
    few = ["learn.steps=1", "learn.class_word=dog", "tune.prior_images=1", "generate.steps=1", "views.latent_pool=1"]
    config = override(PRESETS["dreambooth-lora"], [*few, "learn.templates=a photo of {}"])
    _, done = work_off(settings, config=config, preview=None)
    assert [state_of(settings, name) for name in done] == [ItemState.LEARNED] * 2
    assert len(drawn) == 1


@pytest.mark.slow
@pytest.mark.parametrize("crop", [True, False])
def test_the_named_detector_finds_every_face(settings, work_off, monkeypatch, tmp_path, crop):
    """Also the face that settings ask for, in the square that is learned."""
    opened, detector = [], tmp_path / "detector.onnx"
    detector.touch()
    face = Face(0.0, 0.0, 8.0, 8.0, ((0.0, 0.0),) * 5, 0.9)
    monkeypatch.setattr("sefi.api.YuNetDetector", lambda path: opened.append(path) or (lambda _rgb: [face]))
    config = override(settings.config, ["learn.class_word=person", "learn.outside_weight=0.5"])
    _, done = work_off(settings, config=config, detector=detector, preview=None, crop=crop)
    assert [state_of(settings, name) for name in done] == [ItemState.LEARNED] * 2
    # For the crop, if there is one, and for the face in it: where learning starts, and as it begins.
    assert opened == [detector] * (6 if crop else 4)


@pytest.mark.slow
def test_where_learning_starts_and_settings_without_effect_are_remarked_on(settings, work_off):
    config = override(settings.config, ["learn.patience=7", "learn.probe_every=0"])
    _, done = work_off(settings, config=config, preview=None)
    remarks = [read_item_record(settings.folder, name).remarks for name in done]
    assert remarks == [("learn.patience has no effect: learn.probe_every is 0",)] * 2


@pytest.mark.parametrize(("wanted", "taken"), [(2, 2), (25, 25), (50, 25)])
def test_a_preview_takes_no_more_steps_than_it_needs(wanted, taken):
    config = override(PRESETS["scratch"], [f"generate.steps={wanted}"])
    preview = make_preview_config(config)
    assert preview.generate.steps == taken
    assert preview.model_copy(update={"generate": config.generate}) == config


@pytest.mark.slow
def test_what_changed_is_learned_again_and_nothing_else(settings, work_off):
    work_off(settings)
    before = read_states(settings.folder)
    shutil.copy(settings.photos / "ada.png", settings.photos / "bob.png")
    assert work_off(settings)[1] == ["bob"]
    after = read_states(settings.folder)
    assert after["ada.safetensors"] == before["ada.safetensors"]
    assert after["bob.safetensors"][1] != before["bob.safetensors"][1]
    (settings.folder / "ada.safetensors").unlink()
    assert work_off(settings)[1] == ["ada"]
    assert read_states(settings.folder)["ada.safetensors"][1] == before["ada.safetensors"][1]


@pytest.mark.slow
def test_another_preview_is_made_without_learning(settings, work_off, monkeypatch):
    work_off(settings)
    before = read_states(settings.folder)
    monkeypatch.setattr(sefi.batch.run, "learn", None)
    titles, draw = set(), sefi.batch.run.draw_contact_sheet
    monkeypatch.setattr(
        sefi.batch.run, "draw_contact_sheet", lambda rows, columns: (titles.update(columns), draw(rows, columns))[1]
    )
    assert work_off(settings, preview="a {} at the beach")[1] == ["ada", "bob"]
    assert titles == {"what was learned", "a <subject> at the beach"}  # nobody's name
    after = read_states(settings.folder)
    assert after["ada.safetensors"] == before["ada.safetensors"]
    assert after["ada.png"][1] != before["ada.png"][1]
    assert work_off(settings, preview=None)[1] == []


@pytest.mark.slow
def test_photos_that_cannot_be_learned_stop_nothing(settings, work_off, tmp_path):
    (settings.photos / "damaged.jpg").write_bytes((settings.photos / "bob.png").read_bytes()[:300])
    (settings.photos / "huge.png").touch()
    os.truncate(settings.photos / "huge.png", MAX_BYTES + 1)
    portrait = Image.open(PORTRAIT).convert("RGB")
    pair = Image.new("RGB", (2 * portrait.width, portrait.height))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait, (portrait.width, 0))
    pair.save(settings.photos / "pair.png")
    table = tmp_path / "people.csv"
    rows = ["noface,ada.png,person", "pair,pair.png,person", "damaged,damaged.jpg,dog", "huge,huge.png,dog"]
    table.write_text("\n".join(["name,photo,class_word", *rows, "bob,bob.png,dog"]))
    plan, worked = work_off(settings, table, detector=EMBEDDED_EVALUATORS / DETECTOR)
    assert len(worked) == 5
    changed = replace(settings, detector=EMBEDDED_EVALUATORS / DETECTOR)
    assert state_of(settings, "bob") is ItemState.LEARNED
    problems = list_problems(plan.items, changed)
    assert {one.name: one.tries for one in problems} == {"noface": 1, "pair": 1, "damaged": 1, "huge": 1}
    assert all(one.put_aside and one.remedy for one in problems)
    remedies = {one.name: one.remedy for one in problems}
    assert "`sefi learn` also takes its place (--box)" in remedies["noface"]  # a batch has no such option
    assert "column face of a batch's table" in remedies["pair"]
    assert "64 MB" in next(one.problem for one in problems if one.name == "huge")
    assert work_off(settings, table, detector=EMBEDDED_EVALUATORS / DETECTOR)[1] == []
    assert len(work_off(settings, table, retry=True, detector=EMBEDDED_EVALUATORS / DETECTOR)[1]) == 4


@pytest.fixture
def fail_for(monkeypatch):
    """Let learning somebody raise an error; returns how often each was tried."""
    tried, whole = [], sefi.batch.run.learn

    def fail(name, error):
        def learn_or_fail(crops, **options):
            tried.append(options["name"])
            if options["name"] == name:
                raise error
            return whole(crops, **options)

        monkeypatch.setattr(sefi.batch.run, "learn", learn_or_fail)
        return tried

    return fail


def test_what_keeps_failing_is_tried_last_and_put_aside(settings, work_off, fail_for):
    tried = fail_for("ada", RuntimeError("no such kernel"))
    plan, _ = work_off(settings)
    assert tried == ["ada", "bob", "ada", "ada"]
    [problem] = list_problems(plan.items, settings)
    assert (problem.name, problem.tries, problem.put_aside) == ("ada", 3, True)
    assert "no such kernel" in problem.problem
    assert work_off(settings)[1] == []
    assert work_off(settings, tries=4)[1] == ["ada"]


METHOD = """
from sefi.methods.textual_inversion import TextualInversion


class Mine(TextualInversion):
    def learn(self, name, *arguments):
        return {"tokens": 3}[name] if name == "ada" else super().learn(name, *arguments)
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_fault_of_another_packages_method_is_named_and_stops_nobody(
    settings, work_off, install_method, monkeypatch, capsys, debug
):
    monkeypatch.setenv("SEFI_DEBUG", debug)
    install_method("sefi_mine", METHOD)
    config = override(PRESETS["mine"], FAST)
    plan, _ = work_off(settings, config=config, preview=None)
    assert state_of(settings, "bob") is ItemState.LEARNED
    [problem] = list_problems(plan.items, replace(settings, config=config, preview=None))
    assert problem.name == "ada"
    assert problem.problem == "The method 'mine' of the package 'sefi_mine' raised KeyError in `learn`: 'ada'."
    assert "If sefi_mine is yours" in problem.remedy
    assert ("sefi_mine.py" in capsys.readouterr().err) is bool(debug)


def test_an_error_of_any_length_is_on_record_and_stops_nobody(settings, work_off, tmp_path):
    table = tmp_path / "people.csv"
    table.write_text(f"name,photo,class_word\nada,ada.png,{'x' * 20_000}\nbob,bob.png,\n")
    plan, _ = work_off(settings, table, preview=None)
    assert state_of(settings, "bob") is ItemState.LEARNED
    [problem] = list_problems(plan.items, replace(settings, preview=None))
    assert (problem.name, problem.put_aside) == ("ada", True)
    assert problem.problem.startswith("The class word 'xxx")
    assert len(problem.problem) == 10_000


def test_a_photo_named_by_its_whole_path_is_learned_through_a_link_to_the_folder(settings, work_off, tmp_path):
    (tmp_path / "link").symlink_to(settings.photos)
    table = tmp_path / "people.csv"
    table.write_text(f"name,photo\nada,{settings.photos / 'ada.png'}\nbob,bob.png\n")
    work_off(settings, table, photos=tmp_path / "link", preview=None)
    for name in ("ada", "bob"):
        record = read_item_record(settings.folder, name)
        assert (record.state, record.photos) == (ItemState.LEARNED, (f"{name}.png",))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["ada.safetensors", "previews/ada.png", "records/ada.json", ".ada.lock"])
def test_nothing_is_written_through_a_link_out_of_the_folder(settings, work_off, tmp_path, place):
    outside, link = tmp_path / "outside", settings.folder / place
    link.symlink_to(outside)
    if place.startswith("records/"):
        with pytest.raises(OutputError, match="is a link out of its folder"):
            work_off(settings)
    else:
        plan, _ = work_off(settings)
        assert state_of(settings, "bob") is ItemState.LEARNED
        [problem] = list_problems(plan.items, settings)
        assert problem.name == "ada"
        assert str(link) in problem.problem
    assert not outside.exists()
    assert {one.name for one in tmp_path.iterdir()} == {"identities", "photos"}
    assert link.is_symlink()


@pytest.fixture
def unbegun(monkeypatch):
    """Let no try of ada begin, by an error that nobody foresaw."""
    begin = sefi.batch.run.begin_try

    def begin_or_fail(item, settings, *, alone):
        if item.name == "ada":
            raise ValueError("no such path")
        return begin(item, settings, alone=alone)

    monkeypatch.setattr(sefi.batch.run, "begin_try", begin_or_fail)


@pytest.mark.usefixtures("unbegun")
def test_a_try_that_cannot_begin_counts_and_stops_nobody(settings, work_off):
    plan, _ = work_off(settings, preview=None)
    assert state_of(settings, "bob") is ItemState.LEARNED
    [problem] = list_problems(plan.items, replace(settings, preview=None))
    assert (problem.name, problem.photos, problem.tries, problem.put_aside) == ("ada", ("ada.png",), 3, True)
    assert problem.problem == "Unexpected ValueError: no such path"
    assert work_off(settings, preview=None)[1] == []


def test_an_interrupt_ends_the_batch_and_does_not_count(settings, work_off, fail_for):
    fail_for("bob", Interrupted("Stopped.", "Go on."))
    with pytest.raises(Interrupted):
        work_off(settings)
    assert state_of(settings, "ada") is ItemState.LEARNED
    record = read_item_record(settings.folder, "bob")
    assert (record.state, record.tries) == (ItemState.WAITING, 0)


def test_an_interrupt_as_a_try_begins_does_not_count(settings, work_off, monkeypatch):
    """After its record is written, and before the function that wrote it has returned."""
    begin = sefi.batch.run.begin_try

    def begin_and_stop(*arguments, **options):
        begin(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sefi.batch.run, "begin_try", begin_and_stop)
    with pytest.raises(KeyboardInterrupt):
        work_off(settings)
    record = read_item_record(settings.folder, "ada")
    assert (record.state, record.tries) == (ItemState.WAITING, 0)


def test_an_interrupt_as_the_last_write_returns_is_an_interrupt(settings, work_off, monkeypatch):
    write = sefi.batch.run.write_item_record

    def write_and_stop(folder, record):
        write(folder, record)
        if record.state is ItemState.LEARNED:
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(sefi.batch.run, "write_item_record", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        work_off(settings, preview=None)
    record = read_item_record(settings.folder, "ada")
    assert (record.state, record.tries) == (ItemState.LEARNED, 0)


@pytest.mark.parametrize("kind", [ConfigError, PhotoError, IdentityError])
def test_a_lack_of_memory_is_tried_again(settings, work_off, fail_for, kind):
    error = copy(make_memory_error(kind, "There is not enough memory.", "Free some."))  # as another process sends it
    tried = fail_for("ada", error)
    work_off(settings, preview=None)
    assert tried == ["ada", "bob", "ada", "ada"]
    assert state_of(settings, "ada") is ItemState.FAILED
    fail_for("ada", kind("It is damaged.", "Mend it."))
    tried.clear()
    work_off(settings, preview=None, tries=9)
    assert tried == ["ada"]
    assert state_of(settings, "ada") is ItemState.REFUSED


def test_a_training_of_an_earlier_photo_is_removed(settings, work_off, fail_for):
    fail_for("ada", RuntimeError("no such kernel"))
    earlier = work_off(settings, tries=1, preview=None)[0].items[0]
    unfinished = locate_training(settings.folder, earlier)
    unfinished.write_bytes(b"a likeness")
    shutil.copy(settings.photos / "bob.png", settings.photos / "ada.png")
    work_off(settings, tries=1, preview=None)
    assert not unfinished.exists()


@pytest.mark.parametrize("length", [39, 40, 41])
def test_files_that_are_written_of_a_longer_name_stay(settings, length):
    name = "a" * length
    longer = name_partial(settings.folder / f"{'a' * 50}.safetensors")
    longer.touch()
    remove_partials(settings.folder, name)
    assert longer.exists()


@pytest.mark.slow
def test_a_large_identity_is_known_again(settings, work_off, monkeypatch):
    monkeypatch.setattr(sefi.identity.file, "LARGEST_HASHED_FILE", 0)
    monkeypatch.setattr(sefi.batch.plan, "SMALL_IDENTITY", 0)
    few = ["learn.steps=1", "learn.batch=1", "learn.class_word=dog", "generate.steps=1", "tune.prior_images=1"]
    settings = replace(settings, config=override(PRESETS["custom-diffusion"], few))
    assert work_off(settings, preview=None)[1] == ["ada", "bob"]
    assert state_of(settings, "ada") is ItemState.LEARNED
    assert work_off(settings, preview=None)[1] == []


def test_a_file_of_somebody_else_is_not_replaced(settings, work_off, backbone):
    header = create_header("ada", backbone, settings.config, seed=0)
    foreign = Identity({"tokens": backbone.text_encoder.get_input_embeddings().weight[:10].view(5, 2, 1, -1)}, header)
    foreign.save(settings.folder / "ada.safetensors")
    (settings.folder / "previews" / "bob.png").write_bytes(b"of my own")
    before = read_states(settings.folder)
    plan, _ = work_off(settings)
    after = read_states(settings.folder)
    assert after["ada.safetensors"] == before["ada.safetensors"]
    assert after["bob.png"] == before["bob.png"]
    assert {one.name for one in list_problems(plan.items, settings)} == {"ada", "bob"}


def test_an_identity_that_was_damaged_by_hand_is_not_replaced_and_says_what_to_do(settings, work_off):
    work_off(settings)
    path = settings.folder / "ada.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    plan, _ = work_off(settings)
    [problem] = list_problems(plan.items, settings)
    assert "was changed since" in problem.problem
    assert "--retry" in problem.remedy
    assert path.read_bytes().endswith(b"x")


def test_a_full_disk_ends_the_batch(settings, work_off, monkeypatch):
    monkeypatch.setattr(sefi.batch.run, "write_item_record", lambda *_: (_ for _ in ()).throw(OutputError("Full.", "")))
    with pytest.raises(OutputError):
        work_off(settings)


# ------------------------------------------------------------------ workers that are gone


def make_queue(settings, items):
    advanced = []
    progress = SilentProgress()
    progress.advance = lambda **_: advanced.append(1)
    return WorkQueue(items, settings, progress), advanced


def test_an_item_that_kills_its_worker_waits_again_until_it_is_put_aside(settings, work_off):
    items = work_off(settings, preview=None)[0].items
    (settings.folder / "ada.safetensors").unlink()
    quick = replace(settings, tries=2, preview=None)
    queue, advanced = make_queue(quick, items[:1])
    for left in (1, 0):
        item = queue.take()
        begin_try(item, quick, alone=False)
        queue.take_back(item)
        assert len(queue.waiting) == left
    assert len(advanced) == 1
    assert list_problems(items, quick)[0].put_aside
    assert queue.take() is None


@pytest.mark.slow
def test_a_worker_that_is_killed_after_its_work_loses_nothing(settings, work_off):
    queue, advanced = make_queue(settings, make_plan(settings, None, SilentProgress()).items)
    item = queue.take()
    work_off(settings)
    queue.take_back(item)
    assert (len(queue.waiting), len(advanced)) == (1, 1)


@pytest.mark.usefixtures("unbegun")
def test_what_fails_on_ray_before_it_begins_is_put_aside(settings):
    queue, advanced = make_queue(settings, make_plan(settings, None, SilentProgress()).items[:1])
    for left in (1, 1, 0):
        queue.fail(queue.take(), RuntimeError("no such actor"))
        assert len(queue.waiting) == left
    assert (len(advanced), state_of(settings, "ada")) == (1, ItemState.FAILED)


@pytest.mark.parametrize("state", [None, *ItemState])
def test_an_item_whose_workers_are_killed_before_they_begin_is_put_aside(settings, state):
    [item, _] = make_plan(settings, None, SilentProgress()).items
    if state is not None:
        facts = {"key": item.key, "state": state, "tries": 0, "step": 0, "seconds": 0.0}
        write_item_record(settings.folder, ItemRecord(name=item.name, **facts))
    queue, advanced = make_queue(settings, [item])
    for left in (1, 1, 0):
        queue.take_back(queue.take())
        assert len(queue.waiting) == left
    assert len(advanced) == 1
    [problem] = list_problems([item], settings)
    assert (problem.tries, problem.put_aside) == (settings.tries, True)


@pytest.mark.parametrize("state", [None, *ItemState])
def test_an_item_whose_worker_is_killed_before_it_begins_waits_as_before(settings, state):
    [item, _] = make_plan(settings, None, SilentProgress()).items
    if state is not None:  # of an earlier run; what was refused is tried again with --any-style
        facts = {"key": item.key, "state": state, "tries": 1, "step": 0, "seconds": 0.0, "alone": True}
        write_item_record(settings.folder, ItemRecord(name=item.name, **facts))
    queue, advanced = make_queue(settings, [item])
    queue.take_back(queue.take())
    assert (list(queue.waiting), advanced) == ([item], [])
    record = read_item_record(settings.folder, item.name)
    assert record is None or record.tries == 1
    begin_try(queue.take(), settings, alone=False)
    queue.take_back(item)
    assert read_item_record(settings.folder, item.name).state is ItemState.FAILED


# ------------------------------------------------------------------ kills


def kill_at(number, settings, work_off, *, published):
    """Run a batch in a forked child that is killed before or after a file takes its name; false if it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent's threads are idle
        child = os.fork()
    if child == 0:
        left, publish = [number], sefi.core.files.publish_file

        def publish_or_die(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and not published:
                os.kill(os.getpid(), signal.SIGKILL)
            publish(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sefi.core.files.publish_file = publish_or_die
        code = 1
        try:
            work_off(settings)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def try_kill(number, settings, work_off, whole, *, published):
    """Kill a batch, let it go on, and compare; false if it ended before."""
    folder = settings.folder.with_name(f"killed-{number}-{published}")
    for part in ("", "previews", "records"):
        (folder / part).mkdir()
    settings = replace(settings, folder=folder, tries=1 + 1)
    killed = kill_at(number, settings, work_off, published=published)
    learned = {name: state for name, state in read_states(folder).items() if name in ("ada.safetensors", "ada.png")}
    work_off(settings)
    after = read_states(folder)
    assert learned.items() <= after.items()  # nothing that was finished is made again
    assert {name: state[1] for name, state in after.items() if name.endswith((".safetensors", ".png"))} == whole
    assert not [name for name in after if name.startswith(".")]
    return killed


def read_results(settings):
    return {name: state[1] for name, state in read_states(settings.folder).items() if not name.endswith(".json")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5])
def test_a_batch_that_is_killed_at_a_write_ends_with_the_same_files(settings, work_off, number):
    work_off(settings)
    assert try_kill(number, settings, work_off, read_results(settings), published=number == 3)


@pytest.mark.slow
def test_a_batch_that_is_killed_at_any_write_ends_with_the_same_files(settings, work_off):
    work_off(settings)
    whole, number = read_results(settings), 1
    while try_kill(number, settings, work_off, whole, published=False):
        assert try_kill(number, settings, work_off, whole, published=True)
        number += 1
    assert number > 12  # record, record, identity, record, preview, record: for each of two


class StoppingProgress(SilentProgress):
    """Counts the steps of trainings, and interrupts one of them."""

    def __init__(self, stop=0):
        self.stop, self.steps = stop, 0

    def advance(self, **numbers):
        if numbers:
            self.steps += 1
            if self.steps == self.stop:
                raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_checkpoint(settings, work_off, backbone):
    settings = replace(settings, preview=None)
    items = work_off(settings)[0].items[:1]
    whole = read_results(settings)
    (settings.folder / "ada.safetensors").unlink()
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        learn_alone(WorkQueue(items, settings, StoppingProgress(2)), backbone)
    assert locate_training(settings.folder, items[0]).is_file()
    assert state_of(settings, "ada") is ItemState.WAITING
    progress = StoppingProgress()
    learn_alone(WorkQueue(items, settings, progress), backbone)
    assert progress.steps < 3
    assert read_results(settings) == whole


@pytest.mark.slow
@pytest.mark.parametrize("retry", [False, True])
def test_a_damaged_record_stops_nobody_and_its_identity_stays(settings, work_off, retry):
    settings = replace(settings, preview=None)
    work_off(settings)
    locate_item_record(settings.folder, "ada").write_text("{")
    identity, other = (locate_identity_file(settings.folder, name) for name in ("ada", "bob"))
    other.unlink()
    before = identity.read_bytes()
    plan, tried = work_off(settings, retry=retry)
    assert tried == ["bob"]
    assert other.is_file()
    [problem] = list_problems(plan.items, settings)
    assert (problem.name, problem.photos, problem.put_aside) == ("ada", ("ada.png",), True)
    assert "is no record of a batch" in problem.problem
    locate_item_record(settings.folder, "ada").unlink()
    plan, _ = work_off(settings)
    assert [one.problem for one in list_problems(plan.items, settings)] == [
        f"'{identity}' exists and was not written by this batch, or was changed since."
    ]
    assert identity.read_bytes() == before


@pytest.mark.usefixtures("restored_onednn")
@pytest.mark.parametrize(("message", "with_onednn"), [("out of memory", True), (NO_PRIMITIVE, False)])
def test_the_next_one_is_learned_without_onednn_where_that_had_no_memory_for_its_code(message, with_onednn):
    problem, _ = describe_failure(RuntimeError(message))
    assert torch.backends.mkldnn.enabled == with_onednn
    assert problem == "There is not enough memory."
