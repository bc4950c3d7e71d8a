"""One reader of JSON and of safetensors headers, whose limits a model's files only widen."""

import json
import struct
from copy import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from sefi.backbone import files
from sefi.backbone.files import read_model_json, read_or_refuse, read_weights_header
from sefi.core.errors import BackboneError, IdentityError, SefiError
from sefi.core.reading import (
    LONGEST_NAME,
    WEIGHTS,
    InvalidFileError,
    check_values,
    load_tensors,
    parse_object,
    read_layout,
    translate_file_errors,
)

LIMITS = {"weights": WEIGHTS, "model": files.LIMITS}


def write(path: Path, entries: dict, data: bytes) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


DAMAGED = {
    "gap": ({"a": entry(0, 12), "b": entry(16, 28)}, 28, "overlap or leave gaps"),
    "overlap": ({"a": entry(0, 12), "b": entry(8, 20)}, 20, "overlap or leave gaps"),
    "the same bytes twice": ({"a": entry(0, 12), "b": entry(0, 12)}, 12, "overlap or leave gaps"),
    "late start": ({"a": entry(4, 16)}, 16, "overlap or leave gaps"),
    "negative start": ({"a": entry(-4, 8)}, 8, "overlap or leave gaps"),
    "bytes left over": ({"a": entry(0, 12)}, 13, "states 12 bytes of tensors and has 13"),
    "cut short": ({"a": entry(0, 12)}, 11, "states 12 bytes of tensors and has 11"),
    "another key": ({"a": entry(0, 12) | {"x": 1}}, 12, "entry of 'a' is malformed"),
    "deep": ({"a": entry(0, 12) | {"shape": json.loads("[" * 40 + "]" * 40)}}, 12, "nested more than 32 levels"),
    "large integer": ({"a": entry(0, 12) | {"shape": [10**30]}}, 12, "whole number is too large"),
    "no name": ({"": entry(0, 12)}, 12, "a name of 0 characters"),
    "long name": ({"x" * (LONGEST_NAME + 1): entry(0, 12)}, 12, "a name of 513 characters"),
    "half of a character": ({"\ud800": entry(0, 12)}, 12, "half of a character"),
    "nine dimensions": ({"a": entry(0, 4, [1] * 9)}, 4, "a shape that is not allowed"),
    "another type": ({"a": entry(0, 12, [12], "F8_E4M3")}, 12, "dtype F8_E4M3"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "metadata holds something other than texts"),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_headers_that_do_not_describe_their_file(tmp_path, limits, damage):
    entries, size, message = DAMAGED[damage]
    path = write(tmp_path / "x.safetensors", entries, bytes(size))
    with pytest.raises(InvalidFileError, match=message):
        read_layout(path, LIMITS[limits])


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_models_headers_are_read_by_the_same_reader(tmp_path, damage):
    entries, size, message = DAMAGED[damage]
    path = write(tmp_path / "x.safetensors", entries, bytes(size))
    with pytest.raises(BackboneError, match=message) as caught:
        read_weights_header(path)
    assert str(path) in caught.value.problem


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=5), st.sampled_from([torch.float16, torch.int8]))
@settings(max_examples=30)
def test_what_safetensors_writes_is_read(tmp_path_factory, shapes, dtype):
    """Also scalars and empty tensors, and the dtypes that only a model's files may have."""
    path = tmp_path_factory.mktemp("valid") / "x.safetensors"
    save_file({f"t{number}": torch.zeros(shape, dtype=dtype) for number, shape in enumerate(shapes)}, path, {"a": "b"})
    layout, tensors = read_weights_header(path), load_file(path)
    assert layout.shapes == {name: tuple(value.shape) for name, value in tensors.items()}
    assert set(layout.dtypes) == set(layout.shapes)
    assert set(layout.dtypes.values()) <= {"F16" if dtype == torch.float16 else "I8"}
    assert (layout.metadata, layout.size) == ({"a": "b"}, path.stat().st_size)


def test_a_model_may_have_what_an_identity_may_not(tmp_path):
    empty = write(tmp_path / "empty.safetensors", {"a": entry(0, 0, [0, 7])}, b"")
    assert read_weights_header(empty).shapes == {"a": (0, 7)}
    with pytest.raises(InvalidFileError, match="a shape that is not allowed"):
        read_layout(empty)
    whole = write(tmp_path / "whole.safetensors", {"a": entry(0, 8, [4], "I16")}, bytes(8))
    assert read_weights_header(whole).dtypes == {"a": "I16"}
    with pytest.raises(InvalidFileError, match="dtype I16"):
        read_layout(whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 levels"),
        ('{"a": ' * 33 + "1" + "}" * 33, "nested more than 32 levels"),
        ('{"a": 1' + "0" * 31 + "}", "a whole number is too large"),
        ('{"a": -2' + "0" * 31 + "}", "a whole number is too large"),
        ('{"a": 1e999}', "a number is not finite"),
        ('{"a": NaN}', "the number NaN"),
        ('{"a": "\\ud800"}', "half of a character"),
        ("[]", "no JSON object"),
        (" " * (files.MAX_JSON_BYTES + 1), r"1,048,577 bytes, more than 1,048,576"),
    ],
)
def test_a_models_json_has_limits(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BackboneError, match=message):
        read_model_json(path)


def test_transformers_length_without_limit_is_read(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(f'{{"model_max_length": {int(1e30)}}}')
    assert read_model_json(path) == {"model_max_length": int(1e30)}
    with pytest.raises(InvalidFileError, match="a whole number is too large"):
        parse_object(path.read_text())


@given(st.integers(-(2**70), 2**70), st.integers(1, 2**68))
def test_integers_have_one_bound_on_both_sides(value, bound):
    tree = {"a": [value]}
    if -bound <= value < bound:
        check_values(tree, integers=bound)
    else:
        with pytest.raises(InvalidFileError):
            check_values(tree, integers=bound)


class PanicException(BaseException):  # as pyo3 makes of a panic in Rust
    pass


class Foreign(Exception):
    pass


def raise_error(error: BaseException) -> None:
    raise error


def test_a_panic_of_a_library_is_a_fault_of_the_file():
    with pytest.raises(IdentityError, match=r"^ada is damaged: index out of bounds\. Copy it\.$"):  # noqa: SIM117
        with translate_file_errors("ada", IdentityError, "is damaged", "Copy it."):
            raise PanicException("index out of bounds")
    with pytest.raises(BackboneError, match="index out of bounds"):
        read_or_refuse(Path("x"), lambda: raise_error(PanicException("index out of bounds")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_fault_of_a_file_passes(error):
    with pytest.raises(error), translate_file_errors("ada", IdentityError, "is damaged", "Copy it."):
        raise error
    with pytest.raises(error):
        read_or_refuse(Path("x"), lambda: raise_error(error()))


def test_libraries_of_models_raise_anything():
    with pytest.raises(Foreign), translate_file_errors("ada", IdentityError, "is damaged", "Copy it."):
        raise Foreign
    with pytest.raises(BackboneError, match=r"x cannot be read as CLIP: Foreign\."):
        read_or_refuse(Path("x"), lambda: raise_error(Foreign()), kind="CLIP")
    with pytest.raises(SefiError, match="whole"):
        read_or_refuse(Path("x"), lambda: raise_error(IdentityError("whole", "as it is")))


@pytest.mark.parametrize(
    "fault", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 GB.")]
)
def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(fault):
    with (
        pytest.raises(IdentityError, match=r"a cannot be read: there is not enough memory") as refused,
        translate_file_errors("a", IdentityError, "is damaged", "Copy it again."),
    ):
        raise fault
    assert "Close other programs" in refused.value.remedy
    assert copy(refused.value).lacks_memory  # as another process rebuilds it


def test_the_length_of_the_header_changes_no_bit_of_what_is_computed(tmp_path):
    """A product with one row has other last bits where the matrix lies at another address within 32 bytes."""
    generator = torch.Generator().manual_seed(5)
    row, matrix = torch.randn(1, 53, generator=generator), torch.randn(37, 53, generator=generator)
    expected = torch.nn.functional.linear(row, matrix)
    for length in range(0, 72, 3):
        save_file({"matrix": matrix}, tmp_path / "a.safetensors", metadata={"note": "x" * length})
        loaded = load_tensors(tmp_path / "a.safetensors")["matrix"]
        assert loaded.data_ptr() % 64 == 0
        assert torch.equal(torch.nn.functional.linear(row, loaded), expected)
