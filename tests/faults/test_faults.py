"""The n-th operation on a file fails, the disk is full, memory ends: old or new content, and a typed error."""

import random

import pytest
from tests.faults.injection import ERRORS, Ending
from tests.faults.scenarios import (
    SCENARIOS,
    count_allocations,
    find_faults,
    list_sizes,
    try_allocations,
    try_errors,
    try_sizes,
)

QUICK = ("learn", "learn over another", "generate", "bench")
OFTEN = ("write", "fsync", "rename", "link", "open to write")  # of which the default run tries one each
PARTS = 25  # allocations that are tried of a scenario's some ten thousand


def choose_numbers(seen):
    """Return the last operation of each kind: the first ones are of checks before the work."""
    last = {kind: number for number, kind in enumerate(seen, 1)}
    return [last[kind] for kind in OFTEN if kind in last]


@pytest.mark.parametrize("name", QUICK)
def test_an_operation_of_each_kind_fails(undisturbed, name):
    run = undisturbed(name)
    errors = list(ERRORS)
    for place, number in enumerate(choose_numbers(run.seen)):
        counts = try_errors(run, [number], [errors[place % len(errors)]])
        assert counts.tries == 1
        assert counts.faults == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_operation_fails_once(undisturbed, name, error):
    run = undisturbed(name)
    counts = try_errors(run, range(1, len(run.seen) + 1), [error])
    assert counts.tries == len(run.seen)
    assert counts.typed > 0
    assert counts.faults == []


@pytest.mark.parametrize("name", ["learn over another", "bench"])
def test_a_disk_that_is_full_before_the_largest_file_is_whole(undisturbed, name):
    run = undisturbed(name)
    counts = try_sizes(run, list_sizes(run)[-1:])
    assert (counts.tries, counts.typed, counts.faults) == (1, 1, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disk_that_is_full_at_any_size(undisturbed, name):
    run = undisturbed(name)
    assert try_sizes(run, list_sizes(run)).faults == []


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_tensor_for_which_there_is_no_memory(undisturbed, share):
    run = undisturbed("learn over another")
    counts = try_allocations(run, [int(count_allocations(run) * share)])
    assert (counts.tries, counts.faults) == (1, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["learn", "learn over another", "generate", "bench"])
def test_memory_ends_at_any_tensor(undisturbed, name):
    run = undisturbed(name)
    numbers = random.Random(name).sample(range(1, count_allocations(run) + 1), PARTS)
    counts = try_allocations(run, numbers)
    assert (counts.tries, counts.faults) == (PARTS, [])


# ------------------------------------------------------------------ what the tests above rest on


def test_what_is_seen_is_what_a_training_does(undisturbed):
    seen = undisturbed("learn").seen
    assert set(OFTEN) <= set(seen)
    assert seen.count("write") >= 4  # three checkpoints and the identity
    assert seen.count("fsync") >= 2 * 4  # each of them, and its folder
    assert undisturbed("learn").versions.keys() >= {"ada.safetensors", "photo.png"}


def test_damage_is_found(undisturbed, tmp_path):
    run = undisturbed("learn over another")
    refused = Ending(2, "error: The disk is full.\n  try: Free some.\n")
    run.start(tmp_path / "run")
    identity = tmp_path / "run" / "ada.safetensors"
    assert find_faults(run, tmp_path / "run", refused) == []
    assert find_faults(run, tmp_path / "run", Ending(0, "")) == ["it says that all is well, and is not"]
    assert "exit code 1" in find_faults(run, tmp_path / "run", Ending(1, "Unexpected"))[0]
    assert "no error is named" in find_faults(run, tmp_path / "run", Ending(2, ""))[0]
    (tmp_path / "run" / ".ada.0123456789ab.partial.safetensors").touch()
    assert "temporary files" in find_faults(run, tmp_path / "run", refused)[0]
    run.start(tmp_path / "run")
    whole = identity.read_bytes()
    identity.write_bytes(whole[:-1])
    assert find_faults(run, tmp_path / "run", refused) == ["neither old nor new content: ada.safetensors"]
    identity.unlink()
    assert find_faults(run, tmp_path / "run", refused) == ["lost: ada.safetensors"]
