"""Exported embeddings load by the rules of the programs, and prompts switch at the right steps."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file
from tests.hosts.loading_rules import (
    READERS,
    list_exponential_timesteps,
    list_karras_timesteps,
    list_sdnext_texts,
    list_sgm_timesteps,
    list_simple_timesteps,
    list_turbo_timesteps,
    list_uniform_timesteps,
    read_switching,
)
from typer.testing import CliRunner

from sefi.backbone.tokenizer import create_clip_tokenizer
from sefi.cli.app import app
from sefi.cli.export import TokenOptions, export_identity
from sefi.core.errors import IdentityError
from sefi.hosts.export import (
    HOSTS,
    Sampler,
    choose_slot,
    count_steps_before,
    format_prompt,
    list_embedding_files,
    list_timesteps,
    make_flat_embedding,
    make_stage_embeddings,
    write_exported,
)
from sefi.identity.file import Identity, IdentityHeader

WIDTH = 768
PAGES = Path(__file__).parents[2] / "docs" / "hosts"
EXPORTS = {
    path.stem: re.findall(r"^sefi (export .*)$", path.read_text(encoding="utf-8"), re.M) for path in PAGES.glob("*.md")
}


def make_identity(stages=5, vectors=1, name="ada", width=WIDTH):
    shape = (stages, 2, width) if vectors == 1 else (stages, 2, vectors, width)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(stages + vectors)).half()
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model="sd1:768:0123456789abcdef", width=width, class_word="person"
    )
    return Identity({"tokens": tokens}, header)


# ------------------------------------------------------------------ the rules of the programs


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("slot", ["key", "value", "mean"])
@pytest.mark.parametrize("host", READERS)
def test_the_flat_file_loads_in_every_program(tmp_path, host, slot, vectors):
    identity = make_identity(vectors=vectors)
    (path,) = write_embeddings(identity, [make_flat_embedding(identity, slot)], tmp_path / "out", slot)
    keys, values = identity.stage_tokens.float().unbind(1)
    wanted = {"key": keys, "value": values, "mean": (keys + values) / 2}[slot].mean(0)
    read = READERS[host](path)[WIDTH]
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, wanted)


@pytest.mark.parametrize("host", READERS)
@pytest.mark.parametrize("stages", [2, 5, 7, 10])
def test_stage_files_hold_the_tokens_of_their_timesteps(tmp_path, host, stages):
    identity = make_identity(stages)
    embeddings = make_stage_embeddings(identity)
    paths = write_embeddings(identity, embeddings, tmp_path, "value")
    read = [READERS[host](path)[WIDTH] for path in paths]
    for timestep in range(1000):
        stage = stages * timestep // 1000
        (one,) = [number for number, e in enumerate(embeddings) if e.first <= timestep <= e.last]
        assert one == stage
    for stage, tensor in enumerate(read):
        assert torch.equal(tensor.reshape(-1), identity.tokens[stage, 1].float())


def test_metadata_is_modelspec(tmp_path):
    identity = make_identity()
    *_, path = write_embeddings(identity, make_stage_embeddings(identity), tmp_path, "value")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.implementation"] == "diffusers"
    assert metadata["modelspec.trigger_phrase"] == path.stem == "sefi-ada-s5"
    assert metadata["modelspec.timestep_range"] == "800,999"


def test_no_exported_word_is_a_word_of_the_vocabulary():
    tokenizer = create_clip_tokenizer()
    for name in ("me", "ada", "dog", "a"):
        stem = make_flat_embedding(make_identity(name=name)).stem
        assert len(tokenizer(stem, add_special_tokens=False).input_ids) > 1


@pytest.mark.parametrize("vectors", [1, 2])
def test_one_stage_is_no_stages(vectors):
    with pytest.raises(IdentityError, match="one text for all stages"):
        make_stage_embeddings(make_identity(1, vectors))


# ------------------------------------------------------------------ prompts


# From Forge's own parser and its own samplers: reference of the export.
@pytest.mark.parametrize(
    ("sampler", "ends"),
    [
        (Sampler("karras", 17), [4, 7, 9, 11]),
        (Sampler("karras", 20), [5, 8, 10, 12]),
        (Sampler("karras", 25), [6, 10, 13, 16]),
        (Sampler("exponential", 20), [4, 6, 8, 10]),
        (Sampler("uniform", 20), [4, 8, 12, 16]),
    ],
)
def test_whole_steps_of_known_samplers(sampler, ends):
    embeddings = make_stage_embeddings(make_identity())
    assert count_steps_before(embeddings, sampler)[:-1] == ends
    # A1111 and Forge count steps from 0, SD.Next from 1; a word is read at the step of its number too.
    for host, less in (("a1111", 1), ("forge", 1), ("sdnext", 0)):
        a, b, c, d = (end - less for end in ends)
        switching = f"[sefi-ada-s5:[sefi-ada-s4:[sefi-ada-s3:[sefi-ada-s2:sefi-ada-s1:{d}]:{c}]:{b}]:{a}]"
        assert format_prompt(embeddings, HOSTS[host], sampler) == f"a photo of {switching} at the beach"


STAGES = pytest.mark.parametrize("stages", [2, 5, 10])
SCHEDULES = pytest.mark.parametrize("schedule", ["karras", "exponential", "uniform"])
STEPS = pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 17, 20, 25, 50, 149])


def format_words(stages, host, sampler):
    """Return the part of a prompt that switches, and the word that each step should read."""
    prompt = format_prompt(make_stage_embeddings(make_identity(stages)), HOSTS[host], sampler)
    wanted = [f"sefi-ada-s{int(stages * timestep // 1000) + 1}" for timestep in list_timesteps(sampler)]
    return prompt.removeprefix("a photo of ").removesuffix(" at the beach"), wanted


@STAGES
@SCHEDULES
@STEPS
def test_every_step_reads_the_word_of_its_stage(stages, schedule, steps):
    text, wanted = format_words(stages, "forge", Sampler(schedule, steps))
    if steps > 1 and wanted[0] != wanted[1]:  # which these programs have no number for
        wanted[0] = wanted[1]
    assert [read_switching(text, step, steps) for step in range(steps)] == wanted


@STAGES
@SCHEDULES
@STEPS
def test_every_step_in_sdnext_reads_the_word_of_its_stage(stages, schedule, steps):
    text, wanted = format_words(stages, "sdnext", Sampler(schedule, steps))
    assert list_sdnext_texts(text, steps) == wanted


@pytest.mark.parametrize(
    ("schedule", "list_theirs", "numbers"),
    [
        ("karras", list_karras_timesteps, range(2, 60)),
        ("exponential", list_exponential_timesteps, range(2, 60)),
        ("uniform", list_uniform_timesteps, range(2, 60)),
        # The schedules that the documents name for `uniform` with a multiple of the stages.
        ("uniform", list_sgm_timesteps, range(5, 60, 5)),
        ("uniform", list_simple_timesteps, range(5, 60, 5)),
        ("uniform", list_turbo_timesteps, range(5, 60, 5)),
    ],
)
def test_schedules_have_the_programs_stages(schedule, list_theirs, numbers):
    for steps in numbers:
        ours = [int(timestep) // 200 for timestep in list_timesteps(Sampler(schedule, steps))]
        assert ours == [int(timestep) // 200 for timestep in list_theirs(steps)]


def change_numbers(text, change):
    """Return a prompt with other numbers, as a user changes them by hand."""
    return re.sub(r":(\d+)\]", lambda found: f":{change(int(found[1]))}]", text)


@SCHEDULES
@pytest.mark.parametrize("steps", [15, 20, 30])
def test_samplers_of_two_calls_a_step_need_numbers_as_the_note_says(schedule, steps):
    text, wanted = format_words(5, "forge", Sampler(schedule, steps))
    assert "double each number and add 1" in HOSTS["forge"].stage_advice
    doubled = change_numbers(text, lambda number: 2 * number + 1)
    assert [read_switching(doubled, call, 2 * steps) for call in range(2 * steps)] == [w for w in wanted for _ in "ab"]
    assert read_switching(text, 2 * steps // 3, 2 * steps) != wanted[steps // 3]  # which as printed they would not be


@SCHEDULES
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.5), (15, 0.75), (20, 0.4)])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_second_pass_needs_numbers_as_the_page_says(schedule, steps, strength, calls):
    """`setup_img2img_steps` with a number of steps: the last of a schedule of steps / strength."""
    first_pass, whole = 20 * calls, int(steps / strength)
    text, wanted = format_words(5, "forge", Sampler(schedule, whole))
    left_out = whole - steps
    text = change_numbers(text, lambda number: calls * (number + 1) - 1 + first_pass - calls * left_out)
    read = [read_switching(text, call, calls * steps, first_pass) for call in range(calls * steps)]
    wanted = [word for word in wanted[left_out:] for _ in range(calls)]
    if calls == 1 and wanted[0] != wanted[1]:
        wanted[0] = wanted[1]
    assert read == wanted


@SCHEDULES
@pytest.mark.parametrize(("steps", "strength"), [(20, 0.75), (30, 0.5), (25, 0.3)])
def test_image_to_image_needs_numbers_as_the_page_says(schedule, steps, strength):
    """`setup_img2img_steps` and `sigmas[steps - t_enc - 1:]`."""
    text, wanted = format_words(5, "forge", Sampler(schedule, steps))
    run = int(steps * strength) + 1
    text = change_numbers(text, lambda number: number - (steps - run))
    wanted = wanted[steps - run :]
    if wanted[0] != wanted[1]:
        wanted[0] = wanted[1]
    assert [read_switching(text, step, steps) for step in range(run)] == wanted


@pytest.mark.parametrize("steps", [5, 20, 31])
def test_karras_steps_are_those_of_diffusers_dpm_solver(steps):
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True}
    scheduler = DPMSolverMultistepScheduler(**settings)
    scheduler.set_timesteps(steps)
    ours = [round(t) for t in list_timesteps(Sampler("karras", steps))]
    assert max(abs(a - int(b)) for a, b in zip(ours, scheduler.timesteps, strict=True)) <= 1
    assert EulerDiscreteScheduler(**settings)


def test_comfyuis_ranges_meet_at_the_stages_borders():
    text = format_prompt(make_stage_embeddings(make_identity()), HOSTS["comfyui"], Sampler())
    ranges = [line.split()[:2] for line in text.splitlines() if "embedding:" in line]
    assert [start for start, _ in ranges] == ["0.0000", "0.1997", "0.3999", "0.6001", "0.8003"]
    assert [end for _, end in ranges] == ["0.1997", "0.3999", "0.6001", "0.8003", "1.0000"]


# ------------------------------------------------------------------ the command


def write_embeddings(identity, embeddings, folder, slot):
    return write_exported(list_embedding_files(identity, embeddings, slot), folder)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ada.safetensors"
    make_identity().save(path)
    return path


def export(*words):
    return CliRunner().invoke(app, ["export", *map(str, words), "--json"])


def test_a_refused_export_writes_nothing(file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sefi-ada-prompt.txt").write_text("mine", encoding="utf-8")
    assert export(file, "--to", "comfyui", "--out", tmp_path / "out").exit_code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sefi-ada-prompt.txt"]


@pytest.mark.parametrize("host", HOSTS)
def test_every_program_gets_a_flat_file_and_a_prompt(file, tmp_path, host):
    answer = export(file, "--to", host, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    record = json.loads(answer.stdout)
    assert record["schema"] == "export/1"
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["sefi-ada.safetensors"]
    assert HOSTS[host].word.format("sefi-ada") in record["prompt"]
    assert record["prompt"] in (tmp_path / "out" / "sefi-ada-prompt.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("host", HOSTS)
def test_stages_where_the_program_can_switch(file, tmp_path, host):
    answer = export(file, "--to", host, "--stages", "--out", tmp_path / "out")
    if HOSTS[host].format_stages is None:
        assert answer.exit_code == 2
        assert "cannot change words" in json.loads(answer.stdout)["error"]
        assert not (tmp_path / "out").exists()
    else:
        record = json.loads(answer.stdout)
        assert len(record["files"]) == 5
        assert not HOSTS[host].stage_advice or HOSTS[host].stage_advice in record["notes"]


@pytest.mark.parametrize("page", sorted(page for page, commands in EXPORTS.items() if commands))
def test_the_commands_of_a_page_run_one_after_another(file, tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    for command in EXPORTS[page]:
        answer = CliRunner().invoke(app, shlex.split(command, comments=True))
        assert answer.exit_code == 0, answer.output
    if page == "export":  # which says where the files are
        assert Path("ada-comfyui/sefi-ada-prompt.txt").is_file()
        assert Path("ada-a1111/sefi-ada-stages-prompt.txt").is_file()


def test_a_name_with_capitals_is_noted(file, tmp_path):
    make_identity(name="Ada").save(tmp_path / "capital.safetensors")
    tokenizer = create_clip_tokenizer()
    assert tokenizer("sefi-Ada").input_ids == tokenizer("sefi-ada").input_ids
    for path, noted in ((file, False), (tmp_path / "capital.safetensors", True)):
        answer = export(path, "--to", "forge", "--out", tmp_path / path.stem)
        assert ("nobody else there may be 'ada'" in answer.stdout) == noted


def test_nothing_is_replaced_unless_asked(file, tmp_path):
    first = export(file, "--to", "a1111", "--out", tmp_path / "out")
    assert first.exit_code == 0
    path = tmp_path / "out" / "sefi-ada.safetensors"
    before = path.read_bytes()
    assert export(file, "--to", "a1111", "--out", tmp_path / "out").exit_code == 2
    assert path.read_bytes() == before
    assert export(file, "--to", "a1111", "--out", tmp_path / "out", "--overwrite").exit_code == 0
    shutil.copy(file, path)  # an identity is never replaced by an export
    assert export(file, "--to", "a1111", "--out", tmp_path / "out", "--overwrite").exit_code == 2


@pytest.mark.parametrize("given", [("--steps", 30), ("--schedule", "uniform"), ("--schedule", "karras")])
def test_options_of_the_stages_are_refused_without_them(file, tmp_path, given):
    answer = export(file, "--to", "a1111", *given, "--out", tmp_path / "out")
    assert answer.exit_code == 2
    refused = json.loads(answer.stdout)
    assert refused["error"] == f"{given[0]} has no effect without --stages."
    assert refused["try"] == f"Give --stages too, or leave {given[0]} out."
    assert not (tmp_path / "out").exists()
    assert export(file, "--to", "a1111", "--stages", *given, "--out", tmp_path / "out").exit_code == 0


def test_weights_that_no_program_reads_are_refused(tmp_path):
    header = make_identity().header.model_copy(update={"method": "dreambooth"})
    Identity({"unet.a": torch.zeros(2, 3)}, header).save(tmp_path / "lora.safetensors")
    answer = export(tmp_path / "lora.safetensors", "--to", "a1111", "--out", tmp_path / "out")
    assert answer.exit_code == 2
    assert "no other program can read" in json.loads(answer.stdout)["error"]
    assert not (tmp_path / "out").exists()


def test_tokens_with_weights_of_any_network_are_not_exported_in_part(tmp_path):
    made = make_identity(1)
    header = made.header.model_copy(update={"method": "of another package"})
    identity = Identity({**made.tensors, "text_encoder.a": torch.zeros(2)}, header)
    with pytest.raises(IdentityError, match="no other program can read"):
        export_identity(identity, HOSTS["a1111"], TokenOptions(stages=False, slot=None, sampler=Sampler()))


def test_slots_are_rows_of_the_tokens():
    identity = make_identity()
    assert torch.equal(choose_slot(identity, "key")[:, 0], identity.tokens[:, 0].float())
    assert torch.equal(choose_slot(identity, "value")[:, 0], identity.tokens[:, 1].float())


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_identity_of_sdxl_has_a_tensor_for_each_text_encoder(tmp_path, vectors):
    """By the keys that A1111, Forge, ComfyUI, InvokeAI, SD.Next and Draw Things know SDXL's embeddings by."""
    made = make_identity(vectors=vectors, width=2048)
    header = made.header.model_copy(update={"widths": (768, 1280), "base_model": "sdxl:2048:0123456789abcdef"})
    identity = Identity(made.tensors, header)
    (path,) = write_embeddings(identity, [make_flat_embedding(identity)], tmp_path, "value")
    stored = load_file(path)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        "clip_l": (vectors, 768), "clip_g": (vectors, 1280),
    }  # fmt: skip
    wanted = identity.stage_tokens.float()[:, 1].mean(0)
    torch.testing.assert_close(torch.cat([stored["clip_l"], stored["clip_g"]], dim=-1), wanted)
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"


def save_sdxl_identity(path):
    made = make_identity(width=2048)
    update = {"widths": (768, 1280), "base_model": "sdxl:2048:0123456789abcdef", "schema_version": 3}
    Identity(made.tensors, made.header.model_copy(update=update)).save(path)


@pytest.mark.parametrize(("host", "of_sdxl", "noted"), [
    ("fooocus", False, True), ("fooocus", True, False), ("comfyui", False, False),
])  # fmt: skip
def test_a_family_that_the_program_lacks_is_noted(file, tmp_path, host, of_sdxl, noted):
    if of_sdxl:
        file = tmp_path / "sdxl.safetensors"
        save_sdxl_identity(file)
    notes = json.loads(export(file, "--to", host, "--out", tmp_path / "out").stdout)["notes"]
    assert ("learned on a model of the family 'sd1'; Fooocus has models of sdxl only." in notes) == noted


def test_the_command_exports_an_identity_of_sdxl(tmp_path):
    save_sdxl_identity(tmp_path / "ada.safetensors")
    arguments = ["export", str(tmp_path / "ada.safetensors"), "--to", "forge", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    notes = " ".join(json.loads(result.stdout)["notes"])
    assert "tensor for each text encoder" in notes
    assert "Clip skip" not in notes
    assert "do not have" not in notes
