"""The model card: everything in it comes from the record and the files; a card that is not theirs is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from sefi.backbone.open import EMBEDDED, MODELS
from sefi.cli.app import app
from sefi.core.errors import ConfigError
from tiny_portraits.evaluation.card import (
    CARD,
    DOCS_CARD,
    CardError,
    Facts,
    Record,
    Size,
    Training,
    check_card,
    format_card,
    measure_size,
    read_facts,
    read_record,
    read_training,
)

RECORD = Path(__file__).parents[3] / "experiments" / "records" / "model.json"
MADE_UP = {
    "figures": [
        {"name": "face found", "value": 0.98765, "target": 0.97, "met": True, "n": 1234},
        {"name": "style right", "value": 0.5, "target": 0.95, "met": False, "n": 8},
        {"name": "similarity", "value": -0.25, "target": None, "met": None, "n": 61},
    ]
}
TRAINED = {"part": "denoiser", "what": "UNet", "steps": 12345, "time": "3 h", "hardware": "2 cores"}
NOT_STEPWISE = {**TRAINED, "part": "tokenizer", "steps": 0}


def made_up(figures=MADE_UP["figures"]):
    return Record.model_validate({"figures": figures})


def facts():
    training = Training.model_validate({"parts": [TRAINED, NOT_STEPWISE], "limits": ["Hands are blobs."]})
    return Facts(96, 30, "v_prediction", (Size("unet", 1_234_567, 2_500_000), Size("vae", 10, 100_000)), training)


def test_every_figure_has_its_row():
    text = format_card(made_up(), facts())
    assert "| face found | 0.988 | 0.97 | yes | 1,234 |" in text
    assert "| style right | 0.500 | 0.95 | no | 8 |" in text
    assert "| similarity | -0.250 |  |  | 61 |" in text
    assert "1 of 2 targets are met." in text


def test_sizes_and_training_have_their_rows():
    text = format_card(made_up(), facts())
    assert "| unet | 1,234,567 | 2.5 MB |" in text
    assert "| together | 1,234,577 | 2.6 MB |" in text
    assert "| denoiser | UNet | 12,345 | 3 h | 2 cores |" in text
    assert "| tokenizer | UNet |  | 3 h | 2 cores |" in text


def test_what_it_misses_stands_among_the_limits():
    limits = format_card(made_up(), facts()).split("## Limits")[1].split("##")[0]
    assert "style right (0.500)" in limits
    assert "face found" not in limits
    assert "- Hands are blobs." in limits
    assert "misses" not in format_card(made_up(MADE_UP["figures"][:1]), facts())


def test_the_same_sources_give_the_same_card():
    assert format_card(made_up(), facts()) == format_card(made_up(), facts())
    assert "{" not in format_card(made_up(), facts())


def test_license_and_consent_are_said():
    text = " ".join(format_card(made_up(), facts()).split())
    assert "License: Apache-2.0" in text
    assert "do not exist" in text
    assert "consent" in text


def test_sizes_come_from_the_files(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros(5, np.float16)}, folder / "one.safetensors")
    save_file({"c": np.zeros((), np.float16)}, folder / "two.safetensors")
    assert measure_size(folder) == Size("unet", 12, sum(f.stat().st_size for f in folder.iterdir()))


def test_damaged_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no weights"):
        measure_size(tmp_path)
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ConfigError, match="damaged"):
        measure_size(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "does not fit: Expecting property name"),
        ("{}", "figures"),
        (json.dumps({"figures": []}), "figures"),
        (json.dumps({"figures": [{**MADE_UP["figures"][0], "n": -1}]}), "figures.0.n"),
        (json.dumps({"figures": [{**MADE_UP["figures"][0], "colour": "red"}]}), "figures.0.colour"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, content, said):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_record(path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_record(tmp_path / "nowhere.json")


@pytest.mark.parametrize("change", [{"steps": -1}, {"time": ""}, {"place": "here"}])
def test_a_training_history_that_does_not_fit_is_refused(tmp_path, change):
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"parts": [{**TRAINED, **change}]}))
    with pytest.raises(ConfigError, match=next(iter(change))):
        read_training(path)


def test_facts_of_the_embedded_model_are_those_of_its_parts():
    import sefi

    backbone, found = sefi.open_backbone(), read_facts(MODELS / EMBEDDED)
    assert found.resolution == backbone.resolution
    assert found.words == backbone.text_length - 2
    assert found.prediction == backbone.prediction_type
    for size in found.sizes:
        assert size.weights == sum(p.numel() for p in getattr(backbone, size.part).parameters())


def test_a_card_that_differs_or_is_missing_is_an_error(tmp_path):
    path = tmp_path / CARD
    with pytest.raises(CardError, match="no card"):
        check_card(path, "text")
    path.write_text("other")
    with pytest.raises(CardError, match="not what its record gives"):
        check_card(path, "text")
    check_card(path, "other")


def test_the_command_writes_and_checks(tmp_path):
    record, out = tmp_path / "record.json", tmp_path / "out"
    record.write_text(json.dumps(MADE_UP))
    words = ["world", "card", "--record", str(record), "--out", str(out), "--json"]

    def run(*more):
        found = CliRunner().invoke(app, [*words, *more])
        return found.exit_code, json.loads(found.stdout)

    code, answer = run("--check")
    assert code == 1
    assert set(answer) == {"schema", "error", "try"}
    assert not out.exists()
    assert run() == (0, {"schema": "world card/1", "cards": [str(out / CARD)]})
    assert [path.name for path in out.iterdir()] == [CARD]
    assert run("--check") == (0, {"schema": "world card/1", "cards": [str(out / CARD)]})
    both = {"schema": "world card/1", "cards": [str(out / CARD), str(out / DOCS_CARD)]}
    assert run("--docs", str(out), "--check")[0] == 1
    assert run("--docs", str(out)) == (0, both)
    assert run("--docs", str(out), "--check") == (0, both)
    assert "(./pictures/" in (out / DOCS_CARD).read_text()
    (out / CARD).write_text("# Better")
    assert run("--check")[0] == 1
    assert (out / CARD).read_text() == "# Better"


def test_the_committed_card_is_what_the_committed_record_gives():
    model = MODELS / EMBEDDED
    record, facts = read_record(RECORD), read_facts(model)
    check_card(model / CARD, format_card(record, facts))
    check_card(RECORD.parents[2] / "docs" / DOCS_CARD, format_card(record, facts, "."))
