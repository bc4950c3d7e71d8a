"""Progress in a log and on a terminal: time left only on evidence, in words; nested work has lines of its own."""

import io
import sys

import pytest
from rich.console import Console

from sefi.cli import progress as module
from sefi.cli.progress import Forecast, TerminalProgress, format_duration, format_time_left, make_progress


def test_the_slow_first_step_says_nothing_of_the_others(clock):
    # 70 s of learning before the first of 192 images: 192 times that is no estimate.
    forecast = Forecast(192)
    clock.now += 70
    forecast.advance()
    assert format_time_left(forecast.compute_left()) == ""
    for _ in range(40):
        clock.now += 2
        forecast.advance()
    assert forecast.compute_left() == pytest.approx(2 * 151)
    clock.now += 2
    assert format_time_left(forecast.compute_left()) == "about 5 min left"


def test_few_steps_are_no_evidence(clock):
    forecast = Forecast(100)
    for _ in range(4):
        clock.now += 30
        forecast.advance()
        assert format_time_left(forecast.compute_left()) == ""
    clock.now += 30
    forecast.advance()
    assert forecast.compute_left() == pytest.approx(95 * 30)


def test_an_estimate_that_is_given_counts_down_and_none_shows_none(clock):
    forecast = Forecast(10)
    forecast.estimate(66_918)
    clock.now += 18
    assert format_time_left(forecast.compute_left()) == "about 18 h 35 min left"
    forecast.estimate(None)
    for _ in range(9):
        clock.now += 10
        forecast.advance()
    assert format_time_left(forecast.compute_left()) == ""


def test_durations_are_words():
    assert [format_duration(s) for s in (0, 59.6, 119.4, 119.6, 3569, 3571, 66_918)] == [
        "0 s",
        "60 s",
        "119 s",
        "2 min",
        "59 min",
        "1 h 0 min",
        "18 h 35 min",
    ]


def test_a_log_tells_of_learning_inside_the_run(clock, capsys):
    with TerminalProgress() as progress:
        progress.start(3, "images")
        inner = progress.nested()
        inner.start(100, "rex, ours: learning")
        for _ in range(30):
            clock.now += 1.5
            inner.advance(loss=0.25)
        inner.finish()
        progress.estimate(7260)
        clock.now += 1
        progress.advance()
        progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["images", "rex, ours: learning"]
    assert lines[2] == "rex, ours: learning 7/100, about 140 s left  loss 0.25".replace("140 s", "2 min")
    assert "rex, ours: learning 30/100, done in 45 s" in lines
    assert any(line == "images 1/3, about 2 h 1 min left" for line in lines)
    assert lines[-1] == "images 1/3, done in 46 s"


def test_a_terminal_shows_both_bars_and_takes_the_inner_one_away(clock, monkeypatch):
    written = io.StringIO()

    def on_a_terminal():
        made = make_progress()
        made.live.console = Console(file=written, force_terminal=True, width=110)
        return made

    monkeypatch.setattr(module, "make_progress", on_a_terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = TerminalProgress()
    progress.start(192, "images")
    inner = progress.nested()
    inner.start(5, "rex, ours: learning")
    inner.advance()
    progress.estimate(5400)
    shown = progress._shown
    assert [task.description for task in shown.tasks] == ["images", "rex, ours: learning"]
    console = Console(width=110, file=io.StringIO())
    console.print(shown.make_tasks_table(shown.tasks))
    text = console.file.getvalue()
    assert "about 1 h 30 min left" in text
    assert "1/5" in text
    inner.finish()
    assert [task.description for task in shown.tasks] == ["images"]
