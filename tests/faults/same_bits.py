"""Make one of every file with the tiny model; a program of its own, so that two processes can be compared.

Run as `python -m tests.faults.same_bits FOLDER MODEL` it leaves there a photo, an identity, an unfinished training,
images with their record, and a benchmark run; MODEL has the tokenizer.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from tests.faults.injection import run_forked
from tests.faults.kills import KILLED, die_at_step, list_words
from tests.faults.model import make_model
from tests.faults.scenarios import BENCH, GENERATE, learn_words, make_photo, make_suite, open_model


def make_files(folder: Path) -> None:
    """Make them; every command runs in a child, as it does for a user."""
    make_photo(folder)
    words = list_words(learn_words(), folder)
    assert run_forked(words, prepare=partial(die_at_step, 2, saved=True)).code == KILLED
    [unfinished] = folder.glob(".*.unfinished")
    unfinished.rename(folder / "unfinished")  # else the next command would go on with it
    make_suite(folder)
    for command in (learn_words(), GENERATE, BENCH):
        ending = run_forked(list_words(command, folder))
        assert ending.code == 0, ending.output


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open_model(make_model(Path(sys.argv[2]))):
        make_files(Path(sys.argv[1]))
