"""Which identities can share a prompt, as far as their files tell."""

from collections.abc import Sequence

from sefi.core.errors import IdentityError
from sefi.core.nouns import Identity


def check_together(identities: Sequence[Identity]) -> None:
    """Refuse identities that no model could draw together.

    Raises:
        IdentityError: two have one name, or they were learned with several methods.
    """
    names = [one.name for one in identities]
    for name in names:
        if names.count(name) > 1:
            raise IdentityError(f"Two identities are called {name!r}.", "Learn one of them again with another --name.")
    methods = sorted({one.method for one in identities})
    if len(methods) > 1:
        raise IdentityError(
            f"Identities of several methods cannot share a prompt: {' and '.join(methods)} change the model or "
            "its texts in ways that do not fit together.",
            "Learn all of them with one method.",
        )
