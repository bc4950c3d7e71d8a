"""The n-th operation on a file fails, the disk is full, memory ends: old or new content, and a typed error."""

import pytest
from tests.faults.injection import ERRORS, Ending
from tests.faults.scenarios import (
    SCENARIOS,
    Counts,
    count_allocations,
    draw_tensors,
    find_faults,
    list_sizes,
    try_allocation,
    try_error,
    try_size,
)

OFTEN = ("write", "fsync", "rename", "link", "open to write")
FIRST_ERROR, *OTHER_ERRORS = ERRORS
PARTS = 5  # tensors that are tried of a scenario's some ten thousand


def choose_numbers(seen):
    """Return the last operation of each kind: the first ones are of checks before the work."""
    return {kind: number for number, kind in enumerate(seen, 1) if kind in OFTEN}


def join(found):
    total = Counts()
    for one in found:
        total.join(one)
    return total


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("learn", "write", "full disk"),
        ("learn", "link", "broken disk"),
        ("learn over another", "fsync", "broken disk"),
        ("learn over another", "rename", "no memory"),
        ("generate", "write", "full disk"),
        ("bench", "write", "broken disk"),
    ],
)
def test_an_operation_fails(undisturbed, name, kind, error):
    run = undisturbed(name)
    counts = try_error(run, choose_numbers(run.seen)[kind], error)
    assert (counts.tries, counts.typed, counts.faults) == (1, 1, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "error", [FIRST_ERROR, *(pytest.param(error, marks=pytest.mark.thorough) for error in OTHER_ERRORS)]
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_many_operations_fail_once(undisturbed, name, error):
    """About a dozen of each; `experiments/faults.py` lets every one fail."""
    run = undisturbed(name)
    numbers = range(1, len(run.seen) + 1, max(1, len(run.seen) // 12))
    counts = join(try_error(run, number, error) for number in numbers)
    assert counts.tries == len(numbers)
    assert counts.typed > 0
    assert counts.faults == []


@pytest.mark.slow
def test_a_disk_that_is_full_before_the_largest_file_is_whole(undisturbed):
    run = undisturbed("learn over another")
    counts = try_size(run, list_sizes(run)[-1])
    assert (counts.tries, counts.typed, counts.faults) == (1, 1, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disk_that_is_full_at_any_size(undisturbed, name):
    run = undisturbed(name)
    assert join(try_size(run, size) for size in list_sizes(run)).faults == []


@pytest.mark.slow
def test_a_tensor_for_which_there_is_no_memory(undisturbed):
    run = undisturbed("learn over another")
    counts = try_allocation(run, count_allocations(run) * 9 // 10)
    assert (counts.tries, counts.faults) == (1, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["learn", "learn over another", "generate", "bench"])
def test_memory_ends_at_any_tensor(undisturbed, name):
    run = undisturbed(name)
    counts = join(try_allocation(run, number) for number in draw_tensors(run, PARTS, 1))
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
