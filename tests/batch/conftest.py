"""Photos of a batch, settings that are fast, and runs in this process."""

from dataclasses import replace

import pytest
from PIL import Image

from sefi.batch.plan import BatchSettings, ModelSource, make_plan
from sefi.batch.run import WorkQueue, begin_batch, learn_alone
from sefi.core.config import Config, override
from sefi.core.progress import SilentProgress

CONSENT = "by=Jane Doe; for=synthetic; scope=tests; date=2026-01-02"
FAST = ["learn.steps=3", "learn.batch=1", "learn.class_word=dog", "generate.steps=1"]


def make_photos(folder, names=("ada", "bob")):
    """Write photos that differ; returns the folder."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.radial_gradient("L").convert("RGB").rotate(31 * number).resize((53 + number, 61)).save(
            folder / f"{name}.png"
        )
    return folder


@pytest.fixture
def settings(tmp_path):
    """Dogs, on a model that is open already."""
    folder = tmp_path / "identities"
    for part in ("", "previews", "records"):
        (folder / part).mkdir()
    return BatchSettings(
        photos=make_photos(tmp_path / "photos"),
        folder=folder,
        model=ModelSource("test", is_embedded=False),
        config=override(Config(), FAST),
        consent=CONSENT,
        any_style=True,
    )


@pytest.fixture
def work_off(backbone):
    """Run a batch in this process; returns its plan and the names that were worked on."""

    def run(settings, table=None, *, retry=False, **changes):
        settings = replace(settings, **changes)
        plan = make_plan(settings, table, SilentProgress())
        pending = begin_batch(plan.items, settings, retry=retry).pending
        learn_alone(WorkQueue(pending, settings, SilentProgress()), backbone)
        return plan, [item.name for item in pending]

    return run
