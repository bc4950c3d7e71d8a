"""Attention maps on record: they come back as they were, become one figure per variant, and a wrong file is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from sefi.benchmark.evaluators import read_maps, write_maps
from sefi.benchmark.records import Sample
from sefi.core.errors import ConfigError, OutputError
from sefi.diffusion.attention_maps import PromptAttention
from sefi.report.attention_figure import draw_attention, make_map_rows

WORDS = ("<start>", "a", "photo", "of", "<ada>")


def make_sample(**changes):
    known = {"subject": "p0", "variant": "ours", "kind": "scene", "prompt": 0, "text": "person", "seed": 5}
    return Sample(**known | {"image": "pictures/0.png", "sha256": "00"} | changes)


def attended(seed=0):
    maps = torch.rand(2, 5, 7, 7, generator=torch.Generator().manual_seed(seed))
    return PromptAttention(WORDS, maps[0], maps[1], (4,), Image.new("RGB", (24, 24)))


def test_maps_come_back_as_they_were(tmp_path):
    found = attended()
    write_maps(found, tmp_path / "attention" / "a.safetensors")
    kept = read_maps(tmp_path / "attention" / "a.safetensors")
    assert kept.words == WORDS
    assert kept.placeholders == (4,)
    assert np.array_equal(kept.maps, found.maps.numpy())
    assert np.array_equal(kept.reference, found.reference_maps.numpy())
    assert [p.name for p in (tmp_path / "attention").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not maps", None])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"no attention maps|cannot be read"):
        read_maps(path)


@pytest.mark.slow
def test_figures_of_all_variants_show_the_same_image(tmp_path):
    samples = []
    (tmp_path / "pictures").mkdir()
    for variant in ("ours", "no loss"):
        for prompt in (0, 1, 2):
            stem = f"{variant}-{prompt}"
            write_maps(attended(prompt), tmp_path / "attention" / f"{stem}.safetensors")
            Image.new("RGB", (24, 24)).save(tmp_path / "pictures" / f"{stem}.png")
            files = {"maps": f"attention/{stem}.safetensors", "image": f"pictures/{stem}.png"}
            samples.append(make_sample(variant=variant, prompt=prompt, text=f"prompt {prompt}", focus=0.25, **files))
    samples.append(make_sample(variant="plain word"))
    files = draw_attention(samples, tmp_path)
    assert [f.name for f in files] == ["ours.png", "no-loss.png"]
    for file in files:
        with Image.open(file) as image:
            assert image.width > 500
    foreign = tmp_path / "attention" / "mine.png"
    foreign.write_bytes(b"of somebody else")
    assert draw_attention([one.model_copy(update={"maps": None}) for one in samples], tmp_path) == []
    assert list((tmp_path / "attention").glob("*.png")) == [foreign]


def test_the_class_words_row_names_the_class_word(tmp_path):
    write_maps(attended(), tmp_path / "a.safetensors")
    sample = make_sample(class_word="dog", focus=0.25, focus_plain=0.5)
    ours, plain = make_map_rows(read_maps(tmp_path / "a.safetensors"), Image.new("RGB", (24, 24)), sample)
    assert ours.words[4] == "<ada>"
    assert plain.words[4] == "dog"
    assert (ours.shares, plain.shares) == ({4: 0.25}, {4: 0.5})


def test_a_record_without_a_class_word_is_of_a_person(tmp_path):
    write_maps(attended(), tmp_path / "a.safetensors")
    _, plain = make_map_rows(read_maps(tmp_path / "a.safetensors"), Image.new("RGB", (24, 24)), make_sample())
    assert plain.words[4] == "person"


def test_a_folder_in_the_place_of_a_figure_is_reported(tmp_path):
    samples = [make_sample()]
    (tmp_path / "attention" / "ours.png").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"ours\.png' cannot be removed: "):
        draw_attention(samples, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "attention").write_bytes(b"")
    assert draw_attention(samples, tmp_path / "other") == []
