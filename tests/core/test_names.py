"""A name is a placeholder and a file name at once."""

import pytest

from sefi.core.errors import IdentityError
from sefi.core.prompts import check_name, find_placeholders


@pytest.mark.parametrize("name", ["ada", "Ada-2", "a_b", "x" * 64])
def test_safe_names_pass(name):
    check_name(name)
    assert find_placeholders(f"a photo of <{name}>") == [name]


@pytest.mark.parametrize("name", ["", "../ada", "a b", "ada.safetensors", "<ada>", "x" * 65, "añ", "a\n"])
def test_other_names_are_refused(name):
    with pytest.raises(IdentityError, match="cannot be a name"):
        check_name(name)
