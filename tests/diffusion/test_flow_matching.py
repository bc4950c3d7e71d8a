"""The trial of stage tokens on a flow-matching transformer holds, and its record is what it prints."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
def test_stage_tokens_on_a_flow_matching_transformer(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("flow_matching", FOLDER / "flow_matching.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run_trial()
    assert found["loss"]["last"] < found["loss"]["first"]
    assert found["gradient_reaches_own_stage_only"]
    assert found["model_unchanged"]
    assert found["tokens_differ_by_stage"]
    assert (found["pipeline_calls"], found["calls_with_another_stages_text"]) == (17, 0)
    before, *after = found["text_states_depend_on_the_image"]
    assert before == 0
    assert min(after) > 0.01  # no text is left that keys and values could read apart
    recorded = json.loads((FOLDER / "records" / "flow_matching.json").read_text(encoding="utf-8"))
    assert recorded["loss"] == pytest.approx(found["loss"], rel=0.01)
