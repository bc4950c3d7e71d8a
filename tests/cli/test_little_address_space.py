"""However little memory the system gives, a command is done, or refused with what to do."""

import json
import os
import subprocess
import sys

import pytest
from tests.training.test_memory import PORTRAIT

resource = pytest.importorskip("resource", reason="limits of a process")
LEARN = ["learn", PORTRAIT, "--name", "ada", "--steps", 1, "--out", "ada.safetensors"]
GENERATE = ["generate", "a photo of a dog", "--steps", 1, "--count", 1]
# From too little for torch itself, through other libraries, to the model; primes, so that no page size fits them.
MEGABYTES = {"learn": (151, 701, 907, 1103), "generate": (907,), "doctor": (701,), "verify": (151,)}
WORDS = {"learn": LEARN, "generate": GENERATE, "doctor": ["doctor"], "verify": ["verify", PORTRAIT]}


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not keep to the limit")
@pytest.mark.parametrize("name", WORDS)
def test_a_limit_of_the_address_space_is_no_crash(name, tmp_path):
    for megabytes in MEGABYTES[name]:
        limit = megabytes << 20
        found = subprocess.run(
            [sys.executable, "-m", "sefi", *map(str, WORDS[name]), "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        assert found.returncode in (0, 2), (megabytes, found.stdout, found.stderr[-2000:])
        answer = json.loads(found.stdout)
        assert answer["schema"] == ("error/1" if found.returncode else f"{name}/1")
        if found.returncode:
            assert "memory" in answer["error"]
