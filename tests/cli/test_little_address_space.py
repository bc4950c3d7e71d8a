"""However little memory the system gives, a command is done, or refused with what to do."""

from pathlib import Path

import pytest
from tests.training.test_memory import PORTRAIT, run_within_limit

LEARN = ["learn", PORTRAIT, "--name", "ada", "--steps", 1, "--out", "ada.safetensors"]
GENERATE = ["generate", "a photo of a dog", "--steps", 1, "--count", 1]
# From too little for torch itself, through other libraries, to the model; primes, so that no page size fits them.
MEGABYTES = {"learn": (151, 701, 907, 1103), "generate": (907,), "doctor": (701,), "verify": (151,)}
WORDS = {"learn": LEARN, "generate": GENERATE, "doctor": ["doctor"], "verify": ["verify", PORTRAIT]}


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems do not keep to the limit")
@pytest.mark.parametrize("name", WORDS)
def test_a_limit_of_the_address_space_is_no_crash(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for megabytes in MEGABYTES[name]:
        code, answer, _ = run_within_limit(megabytes << 20, *WORDS[name], "--json")
        assert code in (0, 2), (megabytes, answer)
        assert answer["schema"] == ("error/1" if code else f"{name}/1")
        if code:
            assert "memory" in answer["error"]
