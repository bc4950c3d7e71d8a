"""A process that is killed at any step or moment loses nothing: the same command ends with the same files."""

from itertools import islice

import pytest
from tests.faults.kills import Benchmark, Training, draw_moments

FEW, MANY, MOMENTS = 7, 60, 20


@pytest.fixture(scope="module")
def training(opened, tmp_path_factory):
    """A training of a few steps that nothing disturbs."""
    return Training.run(FEW, tmp_path_factory.mktemp("training"))


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(1, False), (1, True), (4, True), (FEW, False), (FEW, True)])
def test_a_training_that_is_killed_at_a_step_ends_with_the_same_file(training, tmp_path, step, saved):
    assert training.try_kill(tmp_path / "run", step, saved=saved) == ""


@pytest.mark.slow
def test_another_file_and_steps_that_are_taken_again_are_found(training, tmp_path):
    """What the trials rest on."""
    other = Training(FEW, b"")
    assert other.try_kill(tmp_path / "run", 4, saved=True) == "the identity is another one"
    longer = Training(FEW, training.content)
    ending_words = longer.try_kill(tmp_path / "run", FEW + 1, saved=True)  # a step that it never takes
    assert ending_words.startswith("not killed at step 8")


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_a_training_of_sixty_steps_is_killed_at_some(opened, tmp_path):
    """In turns before and after the save of a step; `experiments/kill.py` does both at each of the sixty."""
    training = Training.run(MANY, tmp_path)
    faults = [training.try_kill(tmp_path / "run", n, saved=n % 2 == 0) for n in range(1, MANY + 1, 5)]
    assert [fault for fault in faults if fault] == []


@pytest.fixture(scope="module")
def benchmark_run(opened, tmp_path_factory):
    """A benchmark run that nothing disturbs."""
    return Benchmark.run(tmp_path_factory.mktemp("benchmark"))


@pytest.mark.slow
def test_a_benchmark_run_that_is_killed_ends_with_the_same_files(benchmark_run, tmp_path):
    killed, fault = benchmark_run.try_kill(tmp_path / "run", benchmark_run.seconds / 2)
    assert fault == ""
    assert len(benchmark_run.final) > 20
    assert killed or benchmark_run.seconds  # on a machine that got faster meanwhile it may have ended


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_a_benchmark_run_is_killed_at_many_moments(benchmark_run, tmp_path):
    """Other moments are tried for those at which the run was over: the machine may have got faster meanwhile."""
    faults, kills = [], 0
    for seconds in islice(draw_moments(1, benchmark_run.seconds), 5 * MOMENTS):
        killed, fault = benchmark_run.try_kill(tmp_path / "run", seconds)
        faults += [fault] if fault else []
        kills += killed
        if kills == MOMENTS:
            break
    assert faults == []
    assert kills == MOMENTS
