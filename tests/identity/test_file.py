"""What an identity's files hold together: their groups and limits, what a header may say, the salt for photos."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

import sefi.identity.file
from sefi.core.errors import IdentityError
from sefi.core.rng import create_generator
from sefi.identity.file import (
    LIMITS,
    LONGEST_TOKEN,
    MOST_VECTORS,
    Identity,
    IdentityHeader,
    group_tensors,
    make_photo_salt,
    read_identity,
    write_identity,
)

STAGES, WIDTH = 3, 7


def make(tensors: dict[str, torch.Tensor], **changes) -> Identity:
    known = {"name": "ada", "method": "sefi", "stages": STAGES, "base_model": "tiny:7:00", "width": WIDTH}
    return Identity(tensors, IdentityHeader(**{**known, "class_word": "person", **changes}))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=create_generator(0, "numbers"))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_tensors_are_grouped_in_order_and_each_group_is_as_full_as_it_can_be(sizes: list[int], largest: int) -> None:
    tensors = {f"t{number}": torch.zeros(size, dtype=torch.uint8) for number, size in enumerate(sizes)}
    groups = group_tensors(tensors, largest)
    assert all(groups)
    assert [name for group in groups for name in group] == list(tensors)
    counts = [sum(one.nbytes for one in group.values()) for group in groups]
    assert all(count <= largest or len(group) == 1 for count, group in zip(counts, groups, strict=True))
    for count, following in zip(counts, groups[1:], strict=False):
        assert count + next(iter(following.values())).nbytes > largest


def test_the_salt_depends_on_the_seed_and_on_all_that_was_learned() -> None:
    one, other = draw(STAGES, 2, WIDTH), draw(4)
    wanted = make_photo_salt(make({"tokens": one, "unet.a": other}, seed=1))
    assert make_photo_salt(make({"unet.a": other, "tokens": one.clone()}, seed=1)) == wanted
    different = [
        make({"tokens": one, "unet.a": other}, seed=2),
        make({"tokens": one + 1e-6, "unet.a": other}, seed=1),
        make({"tokens": one, "unet.a": -other}, seed=1),
        make({"tokens": one, "unet.b": other}, seed=1),
    ]
    assert len({wanted, *map(make_photo_salt, different)}) == 1 + len(different)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """An identity in several files."""
    path = tmp_path / "ada.safetensors"
    write_identity(make({"unet.a": draw(5, 3), "unet.b": draw(7), "unet.c": draw(11, 13)}), path, 100)
    assert len(list(tmp_path.iterdir())) == 2
    return path


def test_a_tensor_is_in_one_of_the_files_alone(several: Path) -> None:
    shard = several.with_name(read_identity(several).header.shards[-1])
    save_file({"unet.a": draw(5, 3)}, shard)
    with pytest.raises(IdentityError, match="two of its files have a tensor of the same name"):
        read_identity(several)


@pytest.mark.parametrize("kind", ["size", "tensors"])
def test_files_are_within_the_limits_together(several: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    files = list(several.parent.iterdir())
    most = sum(one.stat().st_size for one in files) if kind == "size" else 4  # with the mark for other programs
    monkeypatch.setattr(sefi.identity.file, "LIMITS", replace(LIMITS, **{kind: most}))
    read_identity(several)
    monkeypatch.setattr(sefi.identity.file, "LIMITS", replace(LIMITS, **{kind: most - 1}))
    with pytest.raises(IdentityError, match=rf"{most:,} \w+ together, more than {most - 1:,}"):
        read_identity(several)


@pytest.mark.parametrize(
    ("tensors", "changes", "said"),
    [
        ({"tokens": draw(STAGES, 2, WIDTH)}, {"schema_version": 5}, "newer sefi"),
        ({"tokens": draw(STAGES, 2, WIDTH)}, {"widths": (3, 5)}, "are not 7 together"),
        ({"tokens": draw(STAGES, 2, WIDTH)}, {"widths": (0, 7)}, "are not 7 together"),
        ({"tokens": draw(STAGES, 2, WIDTH)}, {"widths": (-1, 8)}, "are not 7 together"),
        ({"tokens": draw(STAGES, 2, MOST_VECTORS + 1, WIDTH)}, {}, "the header says"),
        ({"tokens": draw(STAGES, 2, 2, WIDTH + 1)}, {}, "the header says"),
        ({"tokens": draw(STAGES, 2, 3), "tokens_2": draw(STAGES, 2, 3)}, {"widths": (3, 4)}, "tokens_2 are"),
        ({"tokens": draw(STAGES, 2, 5, 3), "tokens_2": draw(STAGES, 2, 6, 4)}, {"widths": (3, 4)}, "tokens_2 are"),
        ({"tokens": torch.zeros(STAGES, 2, WIDTH, dtype=torch.uint8)}, {}, "whole numbers"),
        ({"tokens": torch.full((STAGES, 2, WIDTH), LONGEST_TOKEN)}, {}, "token of norm 2.65e"),
    ],
)
def test_what_a_file_holds_fits_its_header(tmp_path: Path, tensors, changes, said: str) -> None:
    path, made = tmp_path / "ada.safetensors", make(tensors)
    text = IdentityHeader.model_construct(**{**made.header.model_dump(exclude={"record"}), **changes}).model_dump_json()
    save_file(tensors, path, metadata={sefi.identity.file.HEADER_KEY: text})
    with pytest.raises(IdentityError, match=said):
        read_identity(path)


@pytest.mark.parametrize("shape", [(STAGES, 2, WIDTH), (STAGES, 2, 1, WIDTH), (STAGES, 2, MOST_VECTORS, WIDTH)])
@pytest.mark.parametrize("widths", [(), (3, 4)])
def test_tokens_of_every_allowed_shape_come_back(tmp_path: Path, shape, widths) -> None:
    made = make({"tokens": draw(*shape)}, widths=widths)
    made.save(tmp_path / "ada.safetensors")
    read = read_identity(tmp_path / "ada.safetensors")
    assert list(read.tensors) == ["tokens"]
    assert torch.equal(read.tokens, made.tokens)
    several = made.tokens if len(shape) == 4 else made.tokens.unsqueeze(2)
    assert torch.equal(read.stage_tokens, several)


@pytest.mark.parametrize("begins", ["unet", "text_encoder", "text_encoder_2"])
def test_weights_of_any_network_are_more_than_tokens(begins: str) -> None:
    tokens = {"tokens": draw(STAGES, 2, WIDTH)}
    assert make({**tokens, "faces": draw(3)}).is_tokens_alone
    both = make({**tokens, f"{begins}.a": draw(3)})
    assert (both.has_weights, both.is_tokens_alone) == (True, False)
