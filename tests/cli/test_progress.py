"""Progress speaks on stderr, seldom, and with the time left."""

import pytest

from sefi.cli import progress
from sefi.cli.progress import TerminalProgress


@pytest.mark.usefixtures("clock")
def test_a_log_gets_a_first_and_a_last_line(capsys):
    with TerminalProgress() as shown:
        shown.start(5, "learning")
        for _ in range(5):
            shown.advance(loss=0.25)
        shown.finish()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "learning\nlearning 5/5, done in 0 s\n"


def test_slow_work_gets_lines_with_the_time_left(capsys, clock):
    with TerminalProgress() as shown:
        shown.start(6, "learning")
        for _ in range(5):
            clock.now += progress.SECONDS_BETWEEN_LINES
            shown.advance(loss=0.25)
    printed = capsys.readouterr().err
    assert "learning 4/6  loss 0.25" in printed
    assert "learning 5/6, about 10 s left  loss 0.25" in printed


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with TerminalProgress() as shown:
        shown.start(2, "learning")
        shown.advance()
        shown.advance(loss=0.5)
        shown.finish()
    assert "learning" in capsys.readouterr().err
