"""The tiny model in the place of the one that a command names, saving after every step."""

import pytest
from tests.faults.scenarios import SCENARIOS, open_model, run_undisturbed


@pytest.fixture(scope="module")
def opened(backbone):
    """A model that is open before anything is forked."""
    with open_model(backbone):
        yield backbone


@pytest.fixture(scope="module")
def undisturbed(opened, tmp_path_factory):
    """Return a scenario's run without a fault; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = run_undisturbed(SCENARIOS[name], tmp_path_factory.mktemp("faults"))
        return made[name]

    return make
