"""The node pack in ComfyUI itself, where there is a folder of it; see `integrations/compare_in_comfyui.py`.

Run with COMFYUI=path/to/ComfyUI, in an environment that has ComfyUI's requirements besides sefi's.
"""

import json
import os
import subprocess
import sys

import pytest
from tests.integrations.comfyui_host import PACK

COMFYUI = os.environ.get("COMFYUI", "")


@pytest.fixture(scope="module")
def answer():
    program, root = PACK.with_name("compare_in_comfyui.py"), PACK.parents[1]
    done = subprocess.run(
        [sys.executable, program, COMFYUI],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


needs_comfyui = pytest.mark.skipif(not COMFYUI, reason="the variable COMFYUI names no folder of ComfyUI")


@needs_comfyui
@pytest.mark.slow
@pytest.mark.world
def test_every_call_of_the_unet_gives_what_sefi_gives(answer):
    assert len(answer["samplers"]) == 7
    for one in answer["samplers"]:
        assert one["both_sides"], one
        assert one["calls"] >= 4 * one["timesteps"]
        assert one["texts"] <= 1e-5
        assert one["outputs"] <= 1e-5


@needs_comfyui
@pytest.mark.slow
@pytest.mark.world
def test_weights_texts_of_other_nodes_controlnets_and_workflows(answer):
    assert answer["weights"] <= 1e-5
    assert answer["plain_text"] == 0
    assert len(answer["controlnet_reads_values"]) == 8
    assert all(answer["controlnet_reads_values"])
    assert answer["sdxl_texts"] <= 1e-5
    assert answer["sdxl_pooled"] <= 1e-5
    assert answer["workflows"] == {"two_people_sd1_api.json": True, "two_people_sdxl_api.json": True}
