"""Images and files of every kind, changed at random: a typed error or a result, never a crash, memory or time.

`experiments/fuzz.py` tries 20,000 of each; here are as many as take a few seconds, and what was found is kept.
"""

import json
import os
import signal
import warnings

import pytest
from PIL import ImageFile
from tests.fuzz.forked import Outcome, Task, try_all
from tests.fuzz.images import draw_image, encode_all, encode_image
from tests.fuzz.tasks import SHARES, file_tasks, image_tasks, share_out

from sefi.core.errors import ConfigError, PhotoError
from sefi.core.files import FileKind, read_content
from sefi.photo.read import read_photo

FEW = 25  # of each kind; the seeds of `experiments/fuzz.py` begin with these


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_tasks(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return file_tasks(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("kind", list(encode_all()))
def test_changed_images_are_read_or_refused(images, kind):
    found = try_all(images[kind], range(FEW))
    assert found.faults == []
    assert found.tries == FEW
    assert found.refused > 0
    assert found.read > 0 or kind == "TIFF"  # which is no format of a photo


@pytest.mark.parametrize("kind", list(SHARES))
def test_changed_files_are_read_or_refused(files, kind):
    found = try_all(files[kind], range(FEW))
    assert found.faults == []
    assert found.tries == FEW
    assert found.read > 0
    assert found.refused > 0


@pytest.mark.slow
def test_a_whole_file_of_every_format_is_read(images):
    """What the test above rests on: the unchanged files have the first seeds."""
    for kind, whole in encode_all().items():
        refused = {"TIFF": len(whole), "GIF": 1}  # an animation
        found = try_all(images[kind], range(len(whole)))
        assert (found.refused, found.faults) == (refused.get(kind, 0), []), kind


def crash(seed):
    match seed:
        case 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 4:
            raise KeyError("x")
        case 5:
            raise ConfigError("It is damaged.", "Copy it.")
        case 6:
            bytearray(8 << 30)
        case 7:
            try:
                bytearray(8 << 30)
            except MemoryError as error:
                raise ConfigError("It is damaged.", "Copy it.") from error
        case 8:
            os._exit(0)


def test_what_goes_wrong_is_found_and_the_rest_is_tried():
    found = try_all(Task(lambda seed: seed, crash), range(8))
    assert [fault.partition(":")[0] for fault in found.faults] == ["seed 2", "seed 4", "seed 6", "seed 7"]
    assert (found.tries, found.read, found.refused) == (8, 3, 2)
    assert "ended with -11" in found.faults[0]
    assert "MemoryError" in found.faults[2]


def test_a_process_that_ends_without_a_word_is_no_success():
    assert try_all(Task(lambda seed: seed, crash), range(8, 10)).tries == 2
    assert len(try_all(Task(lambda seed: seed, crash), range(8, 10)).faults) == 1


def test_what_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr("tests.fuzz.forked.SECONDS", 0.2)

    def read(seed):
        while seed == 1:
            pass

    found = try_all(Task(lambda seed: seed, read), range(3))
    assert found.faults == ["seed 1: it took too long"]
    assert found.tries == 3


def test_outcomes_add_up():
    total = Outcome(1, 1, 0, 0.5, ["a"])
    total.add(Outcome(3, 1, 2, 0.25, ["b"]))
    assert total == Outcome(4, 2, 2, 0.5, ["a", "b"])
    assert sum(share_out(20_000, list(SHARES), SHARES).values()) == 20_000


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_other_seeds_than_the_recorded_ones(images, files):
    """A thousand of each, of seeds that the record has not."""
    for tasks, shares in ((images, None), (files, SHARES)):
        for kind, count in share_out(1000, list(tasks), shares).items():
            assert try_all(tasks[kind], range(10**6, 10**6 + count)).faults == [], kind


# ------------------------------------------------------------------ one test for each file that was found


@pytest.mark.parametrize("metadata", [0, 5, True, None, [], "sefi"])
def test_the_kind_of_a_file_whose_metadata_are_none(tmp_path, metadata):
    """Found as seed 19 of a shard: a number in the place of the metadata was a TypeError before every write."""
    text = json.dumps({"__metadata__": metadata}).encode()
    path = tmp_path / "ada.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_content(path).kind in (FileKind.SAFETENSORS, FileKind.IDENTITY)


def test_a_warning_of_pillow_on_damage_is_our_error_where_warnings_are_errors(tmp_path):
    """Found as seed 6 of JPEG: a photo of a phone whose list of further images is damaged."""
    whole = encode_image("MPO", save_all=True, append_images=[draw_image("RGB", 1)])
    path = tmp_path / "photo.jpg"
    path.write_bytes(whole)
    assert read_photo(path).pixels.shape[0] == 3
    at = whole.index(b"MPF\0")
    path.write_bytes(whole[: at + 4] + b"XX" + whole[at + 6 :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoError):
            read_photo(path)


def test_a_photo_for_which_there_is_no_memory(tmp_path, monkeypatch):
    draw_image("RGB").save(tmp_path / "photo.png")

    def fail(image):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(PhotoError, match="more pixels than can be read"):
        read_photo(tmp_path / "photo.png")
