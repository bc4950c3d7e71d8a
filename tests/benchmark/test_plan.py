"""Which images a run consists of: reference rows without an image are not waited for."""

from itertools import product

import pytest
from hypothesis import given, strategies as st

from sefi.benchmark.plan import list_planned_keys, list_work_units, measure_completeness
from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.suite import Suite, SuitePrompt, Variant

VARIANTS = [
    {"label": "ours", "control": None},
    {"label": "word", "control": "class word"},
    {"label": "photo", "control": "photo"},
    {"label": "same", "control": "same"},
    {"label": "other", "control": "other"},
]


def run(photos, groups=None):
    together = 2 if groups else 1
    prompts = [{"text": " and ".join(["{}"] * together), "kind": "plain"}] * 3
    suite = {"name": "s", "prompts": prompts, "seeds": [7, 11], "variants": VARIANTS, "together": together}
    return RunInfo.model_validate({"suite": suite, "subjects": groups or list(photos), "photos": photos, "model": {}})


def sample(key):
    place = dict(zip(("subject", "variant", "prompt", "seed"), key, strict=True))
    return Sample(**place, kind="plain", text="person", image="pictures/0.png", sha256="00")


def count(keys, variant):
    return sum(key[1] == variant for key in keys)


@pytest.mark.parametrize(
    ("photos", "groups", "expected"),
    [
        ({"ada": ["1", "2"], "bob": ["3"]}, None, (12, 12, 6, 3, 6)),
        ({"ada": ["1"]}, None, (6, 6, 3, 0, 0)),  # nobody else is there to be shown
        ({"a": ["1", "2"], "b": ["3", "4"]}, ["a+b"], (6, 6, 3, 3, 0)),
        ({"a": ["1", "2"], "b": ["3"], "c": ["5", "6"], "d": ["7", "8"]}, ["a+b", "c+d"], (12, 12, 6, 3, 6)),
        ({"a": ["1"], "b": ["2"], "c": ["3"]}, ["a+b"], (6, 6, 3, 0, 0)),  # one other is too few for two
    ],
)
def test_each_variant_has_the_images_that_can_be_made(photos, groups, expected):
    asked = run(photos, groups)
    keys = list_planned_keys(asked.suite, asked.subjects, asked.photos)
    assert len(set(keys)) == len(keys)
    assert tuple(count(keys, variant["label"]) for variant in VARIANTS) == expected


def test_a_run_is_finished_with_its_last_planned_image():
    asked = run({"ada": ["1"], "bob": ["2"]})
    samples = [sample(key) for key in list_planned_keys(asked.suite, asked.subjects, asked.photos)]
    strange = sample(("eve", "ours", 0, 7))
    whole = measure_completeness(asked, [*samples, strange])
    assert (whole.made, whole.planned, whole.finished, whole.banner) == (36, 36, True, "")
    part = measure_completeness(asked, [*samples[:-1], strange])
    assert (part.finished, part.banner) == (False, "35 of 36 images, not finished")


KINDS = st.sampled_from(["learned", "learned by 0", "class word", "photo", "same"])


@given(kinds=st.lists(KINDS, max_size=6), groups=st.integers(0, 5))
def test_units_of_work_have_everything_once_and_share_nothing(kinds, groups):
    """Two processes must not learn one identity, nor draw the plain word's images twice."""
    kinds = ["learned", *kinds]
    owners = ["0" if kind == "learned by 0" else None for kind in kinds]
    controls = [None if kind.startswith("learned") else kind for kind in kinds]
    variants = tuple(
        Variant(label=str(place), control=control, learned_by=owner)
        for place, (control, owner) in enumerate(zip(controls, owners, strict=True))
    )
    suite = Suite(name="s", about="", prompts=(SuitePrompt(text="{}", kind="plain"),), variants=variants, seeds=(1,))
    units = list_work_units(suite, groups)
    everything = [pair for unit in units for pair in unit]
    assert sorted(everything) == sorted(product(range(groups), map(str, range(len(variants)))))
    identities = [{(number, owners[int(label)] or label) for number, label in unit} for unit in units]
    shared = {variant.label for variant in variants if variant.control == "class word"}
    for label in shared if groups else ():
        assert [len(unit) for unit in units if label in {name for _, name in unit}] == [groups]
    assert sum(map(len, identities)) == len(set().union(*identities))
