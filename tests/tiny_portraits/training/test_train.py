"""The training with tiny sizes: all parts in order, killed and resumed, to a pipeline that draws."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tests.tiny_portraits.training.progresses import Killed, Losses
from typer.testing import CliRunner

from sefi.backbone.open import EMBEDDED, MODELS
from sefi.cli.app import app
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from tiny_portraits.drawing.content import SCENES, SHIPPED
from tiny_portraits.drawing.image import describe_face
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.drawing.traits import sample_person
from tiny_portraits.text.captions import Caption, say
from tiny_portraits.text.text_encoder import (
    LENGTHS,
    NAME_DEVIATION,
    SCENE_LENGTHS,
    WIDTH,
    NameChanges,
    build_text_parts,
    draw_name_changes,
    encode_named,
    tokenise_captions,
)
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.training import train
from tiny_portraits.training.autoencoder import AutoencoderPlan, AutoencoderShape, Stage, build_autoencoder
from tiny_portraits.training.composer import ComposerRecipe
from tiny_portraits.training.denoiser import (
    DenoiserRecipe,
    DenoiserShape,
    MiddleFeatures,
    build_denoiser,
    choose_average,
    draw_timesteps,
    load_denoiser,
    score_averages,
)
from tiny_portraits.training.drawings import HELD_OUT_SEED
from tiny_portraits.training.evaluators import EVALUATORS
from tiny_portraits.training.features import FeatureRecipe
from tiny_portraits.training.latent_reader import (
    FACE_MARGIN,
    FACE_SAMPLES,
    PERSON_WEIGHT,
    LatentReaderRecipe,
    compute_reading_errors,
    crop_faces,
    label_contents,
)
from tiny_portraits.training.latents import encode_numbers, encode_series
from tiny_portraits.training.recognisers import SecondRecipe
from tiny_portraits.training.runs import PLAN, Run, TrainingPlan, read_times
from tiny_portraits.training.text import TextRecipe
from tiny_portraits.training.train import PARTS as ALL_PARTS, load_reader, load_words, start_denoiser, train_part

TINY = TrainingPlan(
    drawings=20,
    held_out=6,
    scaled=8,
    features=FeatureRecipe(steps=2, batch=2),
    autoencoder=AutoencoderPlan(
        (
            Stage("crops", 2, 2, 48, 1e-3, falling=False),
            Stage("sharp", 2, 1, 48, 1e-3, perceptual_weight=0.1, adversarial_weight=0.1, decoder_only=True),
        ),
        AutoencoderShape((4, 4, 8, 8), 1),
    ),
    reader=LatentReaderRecipe(steps=2, batch=4),
    text=TextRecipe(steps=2, batch=4),
    more_text=TextRecipe(steps=2, batch=4),
    shape=DenoiserShape((32, 32, 48)),
    denoiser=DenoiserRecipe(steps=4, batch=4, alignment_share=0.5),
    second=SecondRecipe(people=3, drawings=2, pairs=2, steps=2),
    composer=ComposerRecipe(images=5, steps=2, batch=2),
)
TEXT_CHECKPOINT = "text.training.safetensors"
PARTS = [part for part in ALL_PARTS if part not in EVALUATORS]


def run(folder, *, resume=False, start=None, progress=None):
    return Run(folder, resume, 3, progress or SilentProgress(), start)


def give_clip(folder):
    """Put the CLIP of the package where the training of the composer looks for it."""
    shutil.copytree(MODELS / "evaluators" / "clip", folder / "evaluators" / "clip")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished model's folder whose denoiser has four latent channels and three widths."""
    folder = tmp_path_factory.mktemp("finished")
    build_denoiser(DenoiserShape((64, 96, 192)), replace(SHIPPED, channels=4)).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    give_clip(folder)
    for part in PARTS:
        train_part(part, run(folder), TINY)
    return folder


@pytest.mark.slow
def test_the_parts_of_a_gpu_train_on_stored_series(tmp_path, monkeypatch):
    """Everything but the captured graphs, which need a GPU."""
    monkeypatch.setattr(train, "is_gpu", lambda device: True)
    small = replace(TINY, stored=11, captions=2)
    give_clip(tmp_path)
    for part in PARTS:
        train_part(part, run(tmp_path), small)
    found = StableDiffusionPipeline.from_pretrained(tmp_path / "tiny-portraits")
    assert found.unet.config.sample_size == 24
    assert np.load(tmp_path / "drawings-1-11.npy").shape == (11, 192, 192, 3)
    latents, again = np.load(tmp_path / "latents.npy"), train.load_vae(run(tmp_path))
    assert np.allclose(latents, encode_numbers(again, range(20), 1, SHIPPED), atol=2e-3)


@pytest.mark.slow
def test_all_parts_make_a_pipeline_that_generates_at_192_pixels(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "tiny-portraits")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a photo of a person in a garden", num_inference_steps=2, generator=torch.Generator().manual_seed(1)
    )
    assert image.images[0].size == (192, 192)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    ids = pipeline.tokenizer("underwater hoodie").input_ids
    assert len(ids) == 4
    assert (trained / "evaluators" / "second_recogniser.safetensors").stat().st_size > 1e6


@pytest.mark.slow
def test_the_latents_have_unit_spread(trained):
    latents = np.load(trained / "latents.npy")
    assert latents.shape == (20, SHIPPED.channels, 24, 24)
    assert latents.astype(np.float32).std() == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_the_times_are_written_down(trained):
    found = read_times(trained / "times.json")
    assert {entry["part"] for entry in found} == set(PARTS) - {"tokenizer", "assembly"}
    denoiser = next(entry for entry in found if entry["part"] == "denoiser")
    assert denoiser["steps"] == 4
    assert denoiser["cpu_seconds"] > 0
    assert 0 < denoiser["wall_seconds"] < 600
    assert "denoiser: 4 of 4 steps, loss" in (trained / "training.log").read_text()


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_bit_for_bit_the_same(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_portraits.training.runs.EVERY", 0.0)
    monkeypatch.setattr("tiny_portraits.training.latents.BLOCKS_A_SAVE", 1)
    # Ids differ from one tokenizer to the next.
    shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
    give_clip(tmp_path)
    deaths = 0
    for part in PARTS:
        while True:
            try:
                # A step is saved after it is counted: whoever dies at the second step has saved one.
                # The composer draws its pictures again first, which counts as one.
                losses = Losses(2 if part == "composer" else 1)
                train_part(part, run(tmp_path, resume=True, progress=losses), TINY)
                break
            except Killed:
                deaths += 1
                assert deaths < 60
    assert deaths >= 8
    for file in ("vae", "unet"):
        name = "diffusion_pytorch_model.safetensors"
        wanted, found = load_file(trained / file / name), load_file(tmp_path / file / name)
        assert all(torch.equal(value, found[key]) for key, value in wanted.items()), file
    for file in ("features.safetensors", "latent-reader.safetensors", "text.safetensors", "composer.safetensors"):
        wanted, found = load_file(trained / file), load_file(tmp_path / file)
        assert all(torch.equal(value, found[key]) for key, value in wanted.items()), file
    assert (np.load(trained / "latents.npy") == np.load(tmp_path / "latents.npy")).all()
    scores = [json.loads((folder / "denoiser-averages.json").read_text()) for folder in (trained, tmp_path)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_tokenizer(trained):
    before = (trained / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    train_part("tokenizer", run(trained, resume=True), TINY)
    assert (trained / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_best_average_is_saved_and_all_are_scored(trained):
    record = json.loads((trained / "denoiser-averages.json").read_text())
    assert [s["average"] for s in record["scores"]] == [*TINY.denoiser.averages, 0.0]
    totals = {s["average"]: s["velocity"] + TINY.denoiser.reading_weight * s["reading"] for s in record["scores"]}
    assert record["chosen"] == min(totals, key=totals.get)
    assert choose_average([{"velocity": 1.0, "reading": 0.0}, {"velocity": 0.9, "reading": 1.0}], TINY.denoiser) == 1
    heavy = replace(TINY.denoiser, reading_weight=0.2)
    assert choose_average([{"velocity": 1.0, "reading": 0.0}, {"velocity": 0.9, "reading": 1.0}], heavy) == 0


@pytest.mark.slow
def test_scoring_leaves_the_weights_alone(trained):
    training = start_denoiser(run(trained), TINY, TINY.denoiser)
    before = {k: v.clone() for k, v in training.unet.state_dict().items()}
    held_out = np.load(trained / "held-out-latents.npy")
    first, again = (score_averages(training, held_out, range(6), HELD_OUT_SEED) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[name]) for name, value in training.unet.state_dict().items())


@pytest.mark.slow
def test_predicted_clean_latents_are_the_clean_ones_for_a_perfect_denoiser(trained):
    training = start_denoiser(run(trained), TINY, TINY.denoiser)
    latents, noise, t = *torch.randn(2, 3, SHIPPED.channels, 24, 24), torch.tensor([20, 400, 640])
    wanted = training.schedule.get_velocity(latents, noise, t)

    class Perfect(torch.nn.Module):
        def forward(self, *_):
            return type("Output", (), {"sample": wanted})

    training.unet = Perfect()
    found = training.predict(latents, noise, t, torch.zeros(3, 32, 192))
    torch.testing.assert_close(found.clean, latents, atol=1e-4, rtol=1e-4)
    assert float(found.errors.max()) < 1e-12  # rounding alone


@pytest.mark.slow
def test_the_auxiliary_losses_reach_the_denoiser_and_not_the_reader(trained):
    parts = {}
    for name, changes in (
        ("plain", {"reading_weight": 0.0, "alignment_weight": 0.0}),
        ("reading", {"reading_weight": 1.0, "alignment_weight": 0.0}),
        ("aligned", {"reading_weight": 0.0, "alignment_weight": 1.0}),
    ):
        training = start_denoiser(run(trained), TINY, replace(TINY.denoiser, **changes))
        training.compute(training.get_inputs(0)).backward()
        parts[name] = training.unet.conv_in.weight.grad.clone()
        assert all(p.grad is None for p in training.reader.parameters())
        assert all(p.grad is None for p in training.worded.text.parameters())
    assert not torch.allclose(parts["plain"], parts["reading"])
    assert not torch.allclose(parts["plain"], parts["aligned"])
    late = start_denoiser(run(trained), TINY, replace(TINY.denoiser, alignment_weight=1.0, alignment_share=0.0))
    late.compute(late.get_inputs(0)).backward()
    assert late.projection.weight.grad is None


@pytest.mark.slow
def test_only_middle_and_low_noise_is_read(trained):
    training = start_denoiser(run(trained), TINY, TINY.denoiser)
    batch = training.make_step_batch(0)
    noise = torch.randn(batch.latents.shape)
    states = torch.zeros(4, 32, 192)
    for time, silent in ((900, True), (100, False)):
        t = torch.full((4,), time)
        found = training.predict(batch.latents, noise, t, states)
        assert (float(training.read(found, batch.labels, t).detach()) == 0) is silent


def test_timesteps_are_stratified_and_focused():
    recipe = DenoiserRecipe(focus=3.0)
    drawn = torch.stack([draw_timesteps(8, recipe, 1000, torch.Generator().manual_seed(n)) for n in range(400)])
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    counts = torch.histc(drawn.float(), 10, 0, 1000) / drawn.numel()
    assert counts[5] > 1.6 * counts[0]
    assert counts.min() > 0.03
    flat = torch.stack(
        [draw_timesteps(8, replace(recipe, focus=0.0), 1000, torch.Generator().manual_seed(n)) for n in range(50)]
    )
    sorted_steps = flat.sort(1).values
    assert ((sorted_steps // 125) == torch.arange(8)).all()


def test_readers_count_a_person_only_where_there_is_one():
    shown = [get_content(1, i, SHIPPED) for i in range(60)]
    labels = label_contents(shown, SHIPPED)
    assert labels.present.tolist() == [float(len(p.subjects) > 0) for p in shown]
    assert 0 < labels.present.sum() < 60
    found = {"person": labels.vectors, "attributes": (labels.attributes - 0.5) * 60}
    found |= {k: torch.nn.functional.one_hot(v, 20).float() * 60 for k, v in labels.choices.items()}
    assert float(compute_reading_errors(found, labels).max()) < 1e-6
    wrong = found | {"person": labels.vectors + 1}
    assert torch.allclose(compute_reading_errors(wrong, labels), PERSON_WEIGHT * labels.present, atol=1e-5)


def test_boxes_are_those_of_the_first_faces():
    shown = [get_content(1, i, SHIPPED) for i in range(20)]
    for box, picture in zip(label_contents(shown, SHIPPED).boxes.tolist(), shown, strict=True):
        wanted = describe_face(picture.subjects[0])["box"] if picture.subjects else [0, 0, 0, 0]
        assert np.allclose(np.array(box) * 128, wanted, atol=1e-3)


def test_faces_are_cut_out_of_the_latents_around_their_boxes():
    # Latents that tell where they are: the value of a cell is the place of its centre, x and y as shares.
    places = (torch.arange(24) + 0.5) / 24
    latents = torch.stack(torch.meshgrid(places, places, indexing="xy"))[None].expand(3, -1, -1, -1)
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.5, 0.2, 0.25, 0.1], [0.35, 0.35, 0.125, 0.25]])
    cut = crop_faces(latents, boxes)
    assert cut.shape == (3, 2, FACE_SAMPLES, FACE_SAMPLES)
    along = (torch.arange(FACE_SAMPLES) + 0.5) / FACE_SAMPLES - 0.5
    for part, (left, top, width, height) in zip(cut, boxes.tolist(), strict=True):
        side = FACE_MARGIN * max(width, height)
        torch.testing.assert_close(part[0], (left + width / 2 + side * along).expand(FACE_SAMPLES, -1))
        torch.testing.assert_close(part[1], (top + height / 2 + side * along)[:, None].expand(-1, FACE_SAMPLES))


def test_an_empty_box_and_one_at_the_border_give_numbers():
    cut = crop_faces(torch.ones(2, 8, 24, 24), torch.tensor([[0.0, 0, 0, 0], [0.9, 0.9, 0.4, 0.4]]))
    assert torch.isfinite(cut).all()
    assert (cut[1, :, -1, -1] == 0).all()


def test_changed_names_have_the_length_and_the_direction_that_were_drawn():
    stream = torch.Generator().manual_seed(3)
    rows, noise = torch.randn(7, 192, generator=stream), torch.randn(7, 192, generator=stream)
    lengths, turns = torch.tensor([1.0, 0.7, 1.7, 1.5]), torch.tensor([0.0, 0.0, 0.3, 1.0])
    sentences = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    changed = NameChanges(lengths, turns, torch.zeros(4)).apply(rows, noise, sentences)
    torch.testing.assert_close(changed.norm(dim=1), rows.norm(dim=1) * lengths[sentences])
    torch.testing.assert_close(changed[:3], rows[:3] * lengths[sentences[:3], None])
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(changed[5:], noise[5:]), torch.ones(2))
    assert (cosine(changed, rows)[5:].abs() < 0.3).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_sentences_has_changed_names(share):
    drawn = draw_name_changes(4000, share, torch.Generator().manual_seed(1))
    changed = drawn.lengths != 1
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.03)
    assert (drawn.turns[~changed] == 0).all()
    if share:
        assert drawn.lengths[changed].min() >= LENGTHS[0]
        assert drawn.lengths[changed].max() <= LENGTHS[1]
        assert 0 <= drawn.turns.min() <= drawn.turns.max() <= 1


def test_names_carry_the_scene_that_a_caption_leaves_out_and_no_other_word_does(tmp_path):
    parts = build_text_parts(build_tokenizer(tmp_path, list_caption_words()))
    person = sample_person(np.random.default_rng(1))
    captions = [
        Caption("a photo of firstname", (person,), "beach"),
        Caption("a photo of firstname at the beach", (person,)),
        Caption("a photo of a person", (), "snow"),
    ]
    text = tokenise_captions(parts.tokenizer, captions, np.random.default_rng(0))
    assert text.scenes.tolist() == [SCENES.index("beach"), -1, SCENES.index("snow")]
    rows = list[torch.Tensor]()
    embeddings = next(m for name, m in parts.text.named_modules() if name.endswith("embeddings"))
    handle = embeddings.register_forward_hook(lambda *a: rows.append(a[2].detach()))
    for strength in (0.0, 0.7):
        changes = NameChanges(torch.ones(3), torch.zeros(3), torch.full((3,), strength))
        encode_named(parts, text, torch.zeros(3, LENGTH, WIDTH), changes)
    handle.remove()
    difference = rows[1] - rows[0]
    word = parts.text.get_input_embeddings().weight[parts.tokenizer.convert_tokens_to_ids("beach</w>")]
    wanted = 0.7 * NAME_DEVIATION * WIDTH**0.5 * torch.nn.functional.normalize(word, dim=0)
    place = captions[0].text.split().index("firstname") + 1
    torch.testing.assert_close(difference[0, place], wanted)
    difference[0, place] = 0
    assert (difference == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_names_carries_a_scene(share):
    scenes = draw_name_changes(4000, 0.25, torch.Generator().manual_seed(1), share).scenes
    carried = scenes[scenes > 0]
    assert len(carried) / 4000 == pytest.approx(share, abs=0.03)
    assert ((carried >= SCENE_LENGTHS[0]) & (carried <= SCENE_LENGTHS[1])).all()


def test_captions_say_which_scene_they_leave_out():
    random = np.random.default_rng(2)
    for number in range(200):
        content = get_content(1, number, SHIPPED)
        caption, said = say(content, random, SHIPPED)
        assert caption.unsaid_scene == ("" if said.scene else content.scene)


@pytest.mark.slow
def test_latents_do_not_depend_on_their_company(tmp_path):
    torch.manual_seed(2)
    vae = build_autoencoder(AutoencoderShape((4, 4, 8, 8), 1)).eval().to(memory_format=torch.channels_last)
    few, more = (encode_series(tmp_path / f"{n}.npy", vae, n, 1, SHIPPED, SilentProgress()) for n in (5, 20))
    assert few.shape == (5, SHIPPED.channels, 24, 24)
    assert (few == more[:5]).all()
    assert (more[16:] == encode_numbers(vae, range(16, 32), 1, SHIPPED)[:4]).all()


@pytest.mark.slow
def test_a_training_goes_on_from_a_finished_model_of_its_shape(trained):
    finished = trained / "tiny-portraits"
    wanted = UNet2DConditionModel.from_pretrained(finished / "unet", use_safetensors=True).float().state_dict()
    started = start_denoiser(run(trained, start=finished), TINY, TINY.denoiser).unet.state_dict()
    assert all(torch.equal(value, started[name]) for name, value in wanted.items())
    again = start_denoiser(run(trained), TINY, TINY.denoiser).unet.state_dict()
    assert not torch.equal(again["conv_in.weight"], started["conv_in.weight"])


@pytest.mark.slow
def test_the_text_encoder_goes_on_from_an_earlier_version(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_portraits.text.text_encoder.FIT_STEPS", 20)
    shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
    train_part("text", run(tmp_path, start=MODELS / EMBEDDED), TINY)
    assert {file.name for file in tmp_path.glob("text*.safetensors")} == {"text.safetensors", TEXT_CHECKPOINT}
    assert load_words(run(tmp_path)).text.config.hidden_size == 192


@pytest.mark.parametrize(
    ("shape", "version", "wrong"),
    [
        (DenoiserShape((64, 96, 192)), SHIPPED, r"other latent channels: 4, not 8"),
        (DenoiserShape((16, 16, 32)), replace(SHIPPED, channels=4), r"other widths: .*192.*, not .*16, 16, 32"),
        (DenoiserShape((64, 96, 192), layers=2), replace(SHIPPED, channels=4), "other layers"),
    ],
)
def test_a_finished_model_of_another_shape_is_refused(finished, shape, version, wrong):
    with pytest.raises(ConfigError, match=wrong) as refused:
        load_denoiser(build_denoiser(shape, version), finished)
    assert "without --start" in refused.value.remedy


def test_a_model_that_cannot_be_the_start_is_refused_before_the_first_part(finished, tmp_path):
    with pytest.raises(ConfigError, match="other latent channels"):
        train_part("all", run(tmp_path / "new", start=finished), TINY)
    with pytest.raises(ConfigError, match="no denoiser"):
        train_part("all", run(tmp_path / "new", start=tmp_path), TINY)
    assert not (tmp_path / "new").exists()


def test_the_middle_blocks_output_is_seen_only_inside():
    unet = build_denoiser(DenoiserShape((16, 16, 32)))
    with MiddleFeatures(unet) as middle:
        unet(torch.zeros(1, SHIPPED.channels, 24, 24), 5, torch.zeros(1, 32, 192))
    assert middle.features.shape == (1, 32, 6, 6)
    assert not unet.mid_block._forward_hooks


def test_what_is_missing_or_unknown_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no part 'beauty'") as refused:
        train_part("beauty", run(tmp_path))
    assert all(part in refused.value.remedy for part in (*ALL_PARTS, "all"))
    for part in ("autoencoder", "latents", "assembly"):
        with pytest.raises(ConfigError, match="takes nothing from a finished model"):
            train_part(part, run(tmp_path, start=MODELS / EMBEDDED))
    for part, missing in (("latents", "vae"), ("latent-reader", "latents.npy"), ("text", "tokenizer")):
        with pytest.raises(ConfigError, match=f"{missing} is missing"):
            train_part(part, run(tmp_path))
    with pytest.raises(ConfigError, match=r"features\.safetensors is missing"):
        train_part(
            "autoencoder",
            run(tmp_path),
            replace(TINY, autoencoder=replace(TINY.autoencoder, stages=(TINY.autoencoder.stages[1],))),
        )


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Diffusers warns of casting to half precision, which is what we want of files."""
    caplog.set_level("ERROR", logger="diffusers")


def test_all_trains_every_part_in_order(tmp_path, monkeypatch):
    seen = []
    for name in ALL_PARTS:
        monkeypatch.setitem(ALL_PARTS, name, lambda run, plan, name=name: seen.append((name, plan)))
    train_part("all", run(tmp_path))
    assert seen == [(name, PLAN) for name in ALL_PARTS]
    order = list(ALL_PARTS)
    assert order.index("features") < order.index("autoencoder") < order.index("latents") < order.index("latent-reader")
    assert order.index("tokenizer") < order.index("text") < order.index("denoiser") < order.index("assembly")


@pytest.mark.slow
def test_files_of_a_run_load_again(trained):
    assert load_reader(run(trained), TINY).training is True
    assert load_words(run(trained)).names.first[0].in_features > 0
    assert PLAN.denoiser.batch == 48


def test_the_command_refuses_a_missing_start(tmp_path):
    words = ["world", "train", "denoiser", "--start", "nowhere", "--out", str(tmp_path / "run"), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert json.loads(found.stdout)["error"]


@pytest.mark.parametrize("start", [EMBEDDED, str(MODELS / EMBEDDED)])
def test_the_command_takes_a_name_or_a_folder(start, tmp_path):
    # The model is found; what is missing then is the tokenizer that the new training needs.
    words = ["world", "train", "text", "--start", start, "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "tokenizer" in json.loads(found.stdout)["error"]
