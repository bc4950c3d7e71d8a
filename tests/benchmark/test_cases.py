"""Folders of images that have different subjects and prompts are not compared, and it is said which lack what."""

import itertools

import pytest
from hypothesis import given, strategies

from sefi.benchmark import statistics
from sefi.benchmark.plan import count_cases, describe_unequal_cases, explain_unequal_cases, list_planned_keys
from sefi.benchmark.records import ListedFolder, ListedImage, RunInfo, Sample
from sefi.benchmark.table_metrics import METRICS
from sefi.benchmark.tables import (
    compare_cases,
    compute_all_differences,
    list_variants,
    make_table,
    make_tables_by_kind,
)
from sefi.report.bench_page import list_conventions, make_difference_view, render_bench_page

METRIC = {metric.name: metric for metric in METRICS}
PROMPTS = [{"text": "a photo of {}", "kind": "plain"}, {"text": "{} at the sea", "kind": "scene"}]
PEOPLE = ("ada", "bob")
EVERY_CASE = [(subject, prompt, seed) for subject in PEOPLE for prompt in (0, 1) for seed in (0, 1)]
LIKENESS = {"ours": 0.8, "theirs": 0.3, "pasted": 1.0}


@pytest.fixture(autouse=True)
def two_people_suffice(monkeypatch):
    """What is compared is tested here, not of how many people a difference is believed."""
    monkeypatch.setattr(statistics, "FEWEST_TO_TELL", 2)


def make_run(references=(), **cases):
    """A run of folders with images of these subjects, prompts and seeds, and its record."""
    folders = {
        label: ListedFolder(
            images=tuple(
                ListedImage(subject=subject, prompt=prompt, seed=seed, file=f"{number}.png", sha256="0")
                for number, (subject, prompt, seed) in enumerate(some)
            )
        )
        for label, some in cases.items()
    }
    variants = [{"label": label, "images": label} for label in cases]
    variants += [{"label": label, "control": "photo"} for label in references]
    suite = {"name": "hand", "prompts": PROMPTS, "seeds": [0, 1, 2], "variants": variants}
    model = {"name": "m", "fingerprint": "f"}
    return RunInfo.model_validate(
        {"suite": suite, "subjects": PEOPLE, "model": model, "folders": folders, "evaluators": {}}
    )


def make_samples(run):
    return [
        Sample(
            subject=subject,
            variant=label,
            kind=PROMPTS[prompt]["kind"],
            prompt=prompt,
            text="x",
            seed=seed,
            image="x.png",
            sha256="0",
            id=LIKENESS[label] + (0.01 if subject == "ada" else 0.0),
        )
        for subject, label, prompt, seed in list_planned_keys(run.suite, run.subjects, run.photos, run.folders)
    ]


def find_marks(run, samples):
    """Who leads in likeness, and the verdict of the differences in it."""
    table = make_table(samples, run)
    _, others = compute_all_differences(samples, run)
    view = make_difference_view(table, "t", others, ("main",))
    place = [metric.name for metric in view.metrics].index("id")
    return set(table.find_best(METRIC["id"])), {line.label: line.entries[place].mark for line in view.lines}


def without(*cases):
    return [case for case in EVERY_CASE if case not in cases]


def test_folders_with_the_same_cases_are_compared():
    run = make_run(["pasted"], ours=EVERY_CASE, theirs=[(*case[:2], 5) for case in EVERY_CASE[::2]])
    assert find_marks(run, make_samples(run)) == ({"ours"}, {"less theirs": "better", "less pasted": "worse"})
    assert explain_unequal_cases(run) == []


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (without(("bob", 1, 0), ("bob", 1, 1)), "theirs: no image of 1 of 4 cases, such as bob with '{} at the sea'."),
        ([("ada", 0, 0)], "theirs: no image of 3 of 4 cases, such as ada with '{} at the sea'."),
        (
            without(("ada", 0, 1)),  # a file that cannot be read: the prompt counts less in ada's mean
            "Of the images of ada with 'a photo of {}': ours 2 of 4, theirs 1 of 3 of the subject.",
        ),
    ],
)
def test_folders_with_other_cases_are_not_compared_and_it_is_said(tmp_path, theirs, reason):
    run = make_run(["pasted"], ours=EVERY_CASE, theirs=theirs)
    samples = make_samples(run)
    best, verdicts = find_marks(run, samples)
    assert (best, verdicts) == (set(), {"less theirs": "", "less pasted": "worse"})
    assert describe_unequal_cases(run) == [reason]
    page = render_bench_page(run, samples, tmp_path)
    assert page.count(reason.replace("'", "&#39;")) == 2  # above the figures, and on how to read them
    assert reason in list_conventions(run)


def test_those_of_other_people_are_paired_by_the_people_both_have():
    run = make_run(ours=EVERY_CASE, theirs=[case for case in EVERY_CASE if case[0] == "ada"])
    best, verdicts = find_marks(run, make_samples(run))
    assert (best, verdicts) == (set(), {"less theirs": ""})  # of one person: no interval
    assert describe_unequal_cases(run) == ["theirs: no image of 2 of 4 cases, such as bob with 'a photo of {}'."]


def test_a_kind_of_prompts_that_both_have_is_compared():
    run = make_run(ours=EVERY_CASE, theirs=[case for case in EVERY_CASE if case[1] == 0])
    samples = make_samples(run)
    assert make_table(samples, run).find_best(METRIC["id"]) == frozenset()
    tables = make_tables_by_kind(samples, run)
    assert tables["plain"].find_best(METRIC["id"]) == {"ours"}


def test_shares_of_a_folder_are_those_of_its_reference_rows_or_it_is_said():
    run = make_run(["pasted"], ours=without(("ada", 0, 1)))
    assert find_marks(run, make_samples(run)) == (set(), {"less pasted": ""})
    assert describe_unequal_cases(run) == [
        "Of the images of ada with 'a photo of {}': ours 1 of 3, pasted 1 of 2 of the subject."
    ]


def test_where_a_variant_generates_the_plan_says_what_is_missing(synthetic):
    run, samples = synthetic.make_run(), synthetic.make_samples()
    assert count_cases(run) == {}
    assert explain_unequal_cases(run) == []
    table = make_table(samples, run)
    assert (table.comparable, table.unlike) == (True, frozenset())


def test_a_record_that_lists_what_it_does_not_have_is_no_fault():
    run = make_run(["pasted"], ours=[*EVERY_CASE, ("ada", 7, 0), ("eve", 0, 0)])
    assert count_cases(run)["ours"].keys() == {case[:2] for case in EVERY_CASE}
    alone = run.model_copy(update={"folders": {"gone": run.folders["ours"]}})
    assert explain_unequal_cases(alone) == []


CASES = strategies.sets(strategies.sampled_from(EVERY_CASE), min_size=1)


@given(ours=CASES, theirs=CASES)
def test_means_are_compared_if_and_only_if_each_prompt_has_its_share(ours, theirs):
    run = make_run(ours=sorted(ours), theirs=sorted(theirs))
    equal, _ = compare_cases(list_variants([], run), run, "")
    counts = [
        {case: sum(one[:2] == case for one in some) for case in itertools.product(PEOPLE, (0, 1))}
        for some in (ours, theirs)
    ]
    same = all(
        counts[0][who, prompt] * (counts[1][who, 0] + counts[1][who, 1])
        == counts[1][who, prompt] * (counts[0][who, 0] + counts[0][who, 1])
        and (counts[0][who, 0] + counts[0][who, 1] == 0) == (counts[1][who, 0] + counts[1][who, 1] == 0)
        for who in PEOPLE
        for prompt in (0, 1)
    )
    assert equal == same == (not explain_unequal_cases(run))
