"""Folders of other programs' images: each layout says subject, prompt and seed, and what says too little is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image

from sefi.benchmark.plan import TimeLeft, list_planned_keys
from sefi.benchmark.records import ListedFolder, ListedImage, SuiteInfo
from sefi.benchmark.scored_folder import (
    FolderHints,
    assign_images,
    change_strange_name,
    check_names_agree,
    collect_prompts,
    collect_seeds,
    find_images,
    make_template,
    open_suite_folders,
    read_scored_image,
)
from sefi.benchmark.suite import Suite, hash_pixels
from sefi.core.errors import ConfigError, PromptError
from sefi.core.progress import SilentProgress
from sefi.core.prompts import strip_weights
from sefi.core.reading import LARGEST_JSON, LARGEST_RECORDS, InvalidFileError
from sefi.core.text import make_file_name

ADA = FolderHints(subjects=("ada",))
BOTH = FolderHints(subjects=("ada", "bob"))


def paint(path, number=0, side=37):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (side, side + 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_list(folder, *entries, name="images.jsonl"):
    for number, entry in enumerate(entries):
        file = entry.get("image", entry.get("file_name"))
        if file and not (folder / file).exists():
            paint(folder / file, number)
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "\n")
    return folder


def cases(found):
    return [(one.file, one.subject, one.prompt, one.seed) for one in found.images]


def test_a_list_says_what_each_image_is_of(tmp_path):
    write_list(
        tmp_path,
        {"image": "a.png", "prompt": "a photo of <ada> at the beach", "subject": "ada", "seed": 5, "steps": 30},
        {"file_name": "inner/b.png", "text": "a photo of sks person\n in  space", "subject": "bob"},
        {"file_name": "c.png", "caption": "a photo of a person in space", "subject": "bob"},
        {"image": "d.png", "prompt": "the moon (full)", "subject": "eve"},
    )
    hints = FolderHints(subject_words=("sks person",))
    wanted = [
        ("a.png", "ada", "a photo of {} at the beach", 5),
        ("inner/b.png", "bob", "a photo of {} in space", 0),
        ("c.png", "bob", "a photo of a {} in space", 0),
        ("d.png", "eve", r"the moon \(full\)", 0),
    ]
    assert cases(find_images(tmp_path, hints)) == wanted
    assert cases(find_images(tmp_path / "images.jsonl", hints)) == wanted
    some = find_images(tmp_path, FolderHints(only="[ab]*", subjects=("ada", "eve")))
    assert [one.subject for one in some.images] == ["ada"]
    assert some.other_subjects == ("bob", "eve")


def test_a_placeholder_names_the_subject_where_the_list_does_not(tmp_path):
    write_list(tmp_path, {"image": "a.png", "prompt": "<bob> and <bob>"}, {"image": "b.png", "prompt": "<ada>"})
    assert cases(find_images(tmp_path, BOTH)) == [("a.png", "bob", "{} and person", 0), ("b.png", "ada", "{}", 0)]
    found = find_images(tmp_path, ADA)
    assert (cases(found), found.other_subjects) == ([("b.png", "ada", "{}", 0)], ("bob",))
    with pytest.raises(ConfigError, match="no image of a subject that was asked for; it has ada, bob"):
        find_images(tmp_path, FolderHints(subjects=("eve",)))


def test_the_only_subject_may_have_another_name_in_all_prompts(tmp_path):
    write_list(tmp_path, {"image": "a.png", "prompt": "<sks> smiles"}, {"image": "b.png", "prompt": "a person"})
    assert [case[:3] for case in cases(find_images(tmp_path, ADA))] == [
        ("a.png", "ada", "{} smiles"),
        ("b.png", "ada", "a {}"),
    ]
    more = [{"image": "c.png", "prompt": "<bob>"}, {"image": "d.png", "prompt": "<ada>"}]
    write_list(tmp_path, {"image": "b.png", "prompt": "a person"}, *more)
    with pytest.raises(ConfigError, match=r"b\.png does not say of whom it is; other images are of ada, bob"):
        find_images(tmp_path, ADA)


def test_a_folder_s_name_is_no_other_name_of_the_only_subject(tmp_path):
    (tmp_path / "runs").mkdir()
    entries = [{"image": "a.png", "prompt": "<ada>"}, {"image": "b.png", "prompt": "a photo", "subject": "bob"}]
    write_list(tmp_path / "runs", *entries)
    assert cases(find_images(tmp_path / "runs", ADA)) == [("a.png", "ada", "{}", 0)]
    with pytest.raises(ConfigError, match="it has ada, bob"):
        find_images(tmp_path / "runs", FolderHints(subjects=("eve",)))


@pytest.mark.parametrize(
    ("one", "other"),
    [("王", "李"), ("a b", "a-b"), ("Ada", "ada"), ("Zoë", "Zoe"), ("x" * 64 + "a", "x" * 64 + "b")],
)
def test_two_people_of_one_key_are_not_mixed(tmp_path, one, other):
    write_list(tmp_path, *({"image": f"{n}.png", "prompt": "x", "subject": who} for n, who in enumerate((one, other))))
    with pytest.raises(ConfigError, match=f"has the subjects '{one}' and '{other}', which would both be"):
        find_images(tmp_path, FolderHints())
    for who in (one, other):
        paint(tmp_path / "folders" / who / "smiling-1.png")
    with pytest.raises(ConfigError, match="which would both be"):
        find_images(tmp_path / "folders", FolderHints())


def test_those_of_one_key_who_are_not_asked_for_do_no_harm(tmp_path):
    write_list(tmp_path, *({"image": f"{who}.png", "prompt": "x", "subject": who} for who in ("ada", "王", "李")))
    assert cases(find_images(tmp_path, ADA)) == [("ada.png", "ada", "x", 0)]


@pytest.mark.parametrize(("one", "other", "agree"), [("a b", "A-b", True), ("Zoë", "zoe", True), ("王", "李", False)])
def test_two_folders_of_different_people_are_not_compared(tmp_path, one, other, agree):
    found = []
    for name in (one, other):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, {"image": "a.png", "prompt": "x", "subject": name})
        found.append(find_images(tmp_path / name, FolderHints()))
    if agree:
        check_names_agree(found)
    else:
        with pytest.raises(ConfigError, match=r"'王' of .* and '李' of .* would both be 'subject'"):
            check_names_agree(found)


def test_dreambench_plus_has_a_folder_for_each_subject(tmp_path):
    for name in ("live_subject_animal_00_kitten", "live_subject_human_03_man"):
        for stem in ("0_0", "0_1", "1_0"):
            paint(tmp_path / "tgt_image" / name / f"{stem}.jpg")
            paint(tmp_path / "src_image" / name / f"{stem}.jpg")
            text = tmp_path / "text" / name / f"{stem}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("A man reads." if stem[0] == "0" else "A painting of a man (person).\n")
    (tmp_path / "negative_prompt.txt").write_text("")
    found = find_images(tmp_path, FolderHints(only="*_human_*"))
    assert found.photos["live_subject_human_03_man"] == tmp_path / "src_image/live_subject_human_03_man/0_0.jpg"
    folder = "tgt_image/live_subject_human_03_man"
    assert cases(found) == [
        (f"{folder}/0_0.jpg", "live_subject_human_03_man", "A man reads.", 0),
        (f"{folder}/0_1.jpg", "live_subject_human_03_man", "A man reads.", 1),
        (f"{folder}/1_0.jpg", "live_subject_human_03_man", r"A painting of a man \({}\).", 0),
    ]
    (tmp_path / "text/live_subject_human_03_man/0_1.txt").unlink()
    with pytest.raises(ConfigError, match=r"0_1\.txt.*No such file"):
        find_images(tmp_path, FolderHints())


def test_names_of_files_say_prompt_and_seed(tmp_path):
    for name in ("a-photo-of-ada-at-the-beach-7", "a-photo-of-ada-at-the-beach-12", "ada-2", "grid", "grid-2"):
        paint(tmp_path / f"{name}.png")
    assert cases(find_images(tmp_path, ADA)) == [
        ("a-photo-of-ada-at-the-beach-12.png", "ada", "a photo of {} at the beach", 12),
        ("a-photo-of-ada-at-the-beach-7.png", "ada", "a photo of {} at the beach", 7),
        ("ada-2.png", "ada", "{}", 2),
    ]
    prompts = ("a photo of <ada>, at the Beach!", "{}")
    given = find_images(tmp_path, FolderHints(subjects=("ada",), prompts=prompts))
    assert {one.prompt for one in given.images} == {"a photo of {}, at the Beach!", "{}"}
    with pytest.raises(ConfigError, match=r"'ada-2.png' has the words of none of the prompts"):
        find_images(tmp_path, FolderHints(subjects=("ada",), prompts=prompts[:1]))


LONG = "a photo of {} standing at a quiet beach in front of a red sailing boat"
CUT = ("a photo of <ada> standing at the quiet little beach in front of it all", LONG.format("<ada>"))


@pytest.mark.parametrize("prompt", CUT)
def test_a_name_that_was_cut_is_no_prompt(tmp_path, prompt):
    name = f"{make_file_name(prompt)}-7.png"
    assert len(name) - len("-7.png") in (59, 60)
    paint(tmp_path / name)
    with pytest.raises(ConfigError, match="cut after 60 letters") as refused:
        find_images(tmp_path, ADA)
    assert "--prompts" in refused.value.remedy
    wanted = [(name, "ada", prompt.replace("<ada>", "{}"), 7)]
    given = (prompt.replace("<ada>", "{}"), "{} at the beach")
    assert cases(find_images(tmp_path, replace(ADA, prompts=given))) == wanted
    images = [{"file": name, "prompt": prompt, "seed": 7}]
    (tmp_path / "records.json").write_text(json.dumps({"images": images}))
    assert cases(find_images(tmp_path, ADA)) == wanted


@pytest.mark.parametrize("key", ["Ada-Lovelace", "ada_lovelace", "ADA", "ada-b", "_"])
def test_the_subject_is_found_in_names_however_it_is_spelt(tmp_path, key):
    name = f"{make_file_name(f'a photo of <{key}> and an image')}-3.png"
    paint(tmp_path / name)
    wanted = "a photo of {} and an image" if key != "_" else "a photo of and an image"
    assert cases(find_images(tmp_path, FolderHints(subjects=(key,)))) == [(name, key, wanted, 3)]


def test_as_long_a_record_is_read_as_sefi_generate_writes(tmp_path):
    prompt = "a photo of <ada> " + "smiling " * 200
    entries = [{"file": f"{n}.png", "prompt": prompt, "seed": n} for n in range(3001)]
    (tmp_path / "records.json").write_text(json.dumps({"images": entries}))
    assert LARGEST_JSON < (tmp_path / "records.json").stat().st_size < LARGEST_RECORDS
    paint(tmp_path / "3000.png")
    assert [seed for *_, seed in cases(find_images(tmp_path, BOTH))] == [3000]


def test_a_record_of_sefi_generate_says_more_than_names(tmp_path):
    entries = [
        {"file": "elsewhere/x.png", "prompt": "a photo of <ada> (smiling:1.2)", "seed": 3},
        {"file": "elsewhere/y.png", "prompt": "a photo of <bob> smiling", "seed": 4},
    ]
    runs = [{"images": [entry], "seed": 0} for entry in entries]
    (tmp_path / "records.json").write_text(json.dumps({"schema_version": 1, "runs": runs}))
    paint(tmp_path / "x.png")
    paint(tmp_path / "y.png")
    assert cases(find_images(tmp_path, BOTH)) == [
        ("x.png", "ada", "a photo of {} (smiling:1.2)", 3),
        ("y.png", "bob", "a photo of {} smiling", 4),
    ]
    (tmp_path / "records.json").write_text(json.dumps({"images": entries}))  # an older version's
    assert len(find_images(tmp_path, BOTH).images) == 2


def test_folders_of_subjects_may_hold_named_files(tmp_path):
    paint(tmp_path / "ada" / "ada-smiling-1.png")
    paint(tmp_path / "bob" / "bob-smiling-1.png")
    assert cases(find_images(tmp_path, FolderHints())) == [
        ("ada/ada-smiling-1.png", "ada", "{} smiling", 1),
        ("bob/bob-smiling-1.png", "bob", "{} smiling", 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Line 1 .* is no image"),
        ("[1]", "no JSON object"),
        ('{"image": "a.png"}', "prompt: Field required"),
        ('{"prompt": "x"}', "image: Field required"),
        ('{"image": "c\\u0001.png", "prompt": "x"}', "has a control character"),
        ('{"image": "a.png", "prompt": ""}', "at least 1 character"),
        ('{"image": "a.png", "prompt": "x", "seed": -1}', "greater than or equal to 0"),
        ('{"image": "a.png", "prompt": "x", "seed": "1"}', "valid integer"),
        ('{"image": "b.png", "prompt": "x"}', "no file 'b.png'"),
        ('{"image": "../outside.png", "prompt": "x"}', r"no file '\.\./outside\.png'"),
        ('{"image": "/etc/hostname", "prompt": "x"}', "no file '/etc/hostname'"),
        ('{"image": "a.png", "prompt": "{x}"}', "has braces"),
        ('{"image": "a.png", "prompt": "<ada> and <bob>"}', "names two subjects"),
        ("", "it is empty"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, line, message):
    folder = tmp_path / "images"
    paint(folder / "a.png")
    paint(folder / "c\x01.png")
    paint(tmp_path / "outside.png")
    (folder / "images.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message) as refused:
        find_images(folder, ADA)
    assert "PROMPT-SEED.png" in refused.value.remedy  # what was expected


def test_what_has_no_layout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder of images"):
        find_images(tmp_path / "none", ADA)
    with pytest.raises(ConfigError, match="has no images"):
        find_images(tmp_path, ADA)
    paint(tmp_path / "picture.png")
    with pytest.raises(ConfigError, match=r"'picture.png' is not PROMPT-SEED"):
        find_images(tmp_path, ADA)
    with pytest.raises(ConfigError, match=r"no \.jsonl list"):
        find_images(tmp_path / "picture.png", ADA)
    (tmp_path / "picture.png").rename(tmp_path / "smiling-1.png")
    with pytest.raises(ConfigError, match="does not say of which of the subjects"):
        find_images(tmp_path, BOTH)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"has 2 lists, a\.jsonl, b\.jsonl") as error:
        find_images(tmp_path, ADA)
    assert str(tmp_path / "a.jsonl") in error.value.remedy


def test_two_images_of_one_case_and_unknown_subjects_are_refused(tmp_path):
    twice = [{"image": name, "prompt": "x", "subject": "bob", "seed": 1} for name in ("a.png", "b.png")]
    write_list(tmp_path, *twice)
    with pytest.raises(ConfigError, match=r"a.png and b.png are both of 'bob', 'x' and seed 1"):
        find_images(tmp_path, FolderHints())
    with pytest.raises(ConfigError, match="no image of a subject that was asked for; it has bob") as error:
        find_images(tmp_path, ADA)
    assert "--subject bob=photo.png" in error.value.remedy
    with pytest.raises(ConfigError, match="it has bob") as error:
        find_images(tmp_path, FolderHints(only="dog*"))
    assert error.value.remedy == "None of them matches --only 'dog*': give another pattern."


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jfif", ".avif"])
@pytest.mark.parametrize("place", ["", "ada"])
def test_every_format_that_photos_have_is_read(tmp_path, place, suffix):
    (tmp_path / place).mkdir(exist_ok=True)
    kind = {".jfif": "JPEG"}.get(suffix, suffix[1:].upper())
    file = tmp_path / place / f"a-photo-of-ada-1{suffix}"
    Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(file, kind)
    found = find_images(tmp_path, ADA)
    folder = assign_images(found, collect_prompts([found]), collect_seeds([found]))
    assert [(one.file, one.seed) for one in folder.images] == [(file.relative_to(tmp_path).as_posix(), 1)]
    assert folder.unreadable == ()


@pytest.mark.parametrize("layout", ["", "ada", "tgt_image/ada"])
def test_images_of_other_formats_are_listed_and_not_passed_over(tmp_path, layout):
    place = tmp_path / layout
    place.mkdir(parents=True, exist_ok=True)
    (tmp_path / "notes.txt").write_text("of mine")
    image = Image.fromarray(np.full((40, 48, 3), 99, np.uint8))
    image.save(place / "a-photo-of-ada-2.TIF", "TIFF")
    lost = (place / "a-photo-of-ada-2.TIF").relative_to(tmp_path).as_posix()
    with pytest.raises(ConfigError, match=f"has no images.* that can be read, .*unlike '{lost}'"):
        find_images(tmp_path, ADA)
    name = "0_1.png" if "/" in layout else "a-photo-of-ada-1.png"
    image.save(place / name)
    if "/" in layout:
        (tmp_path / "text" / "ada").mkdir(parents=True)
        (tmp_path / "text" / "ada" / "0_1.txt").write_text("a photo of a person")
    found = find_images(tmp_path, ADA)
    assert ([one.file.rpartition("/")[2] for one in found.images], found.unreadable) == ([name], (lost,))


def test_images_that_cannot_be_read_are_listed(tmp_path):
    write_list(tmp_path, *({"image": f"{n}.png", "prompt": "x", "subject": "ada"} for n in range(3)))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    found = find_images(tmp_path, ADA)
    folder = assign_images(found, collect_prompts([found]), collect_seeds([found]))
    assert folder.unreadable == ("1.png",)
    assert [(one.file, one.seed) for one in folder.images] == [("0.png", 0), ("2.png", 2)]
    pixels = np.asarray(Image.open(tmp_path / "2.png"))
    assert np.array_equal(read_scored_image(tmp_path / "2.png"), pixels)
    assert folder.images[1].sha256 == hash_pixels(pixels)
    for n in (0, 2):
        (tmp_path / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"No image of .* can be read"):
        assign_images(found, collect_prompts([found]), [0, 1, 2])


STRANGE = {"a\x1b[2J-1.png": "a\\x1b[2J-1.png", "zo\udceb-1.png": "zo\\udceb-1.png", "x\uffff-1.png": "x\\uffff-1.png"}
DEEP = "d" * 200  # a name of 200 letters is possible, and so is a file with another in it


def test_links_to_images_that_are_gone_are_listed(tmp_path):
    paint(tmp_path / "names" / "a-photo-of-ada-0.png")
    (tmp_path / "names" / "a-photo-of-ada-1.png").symlink_to(tmp_path / "gone.png")
    paint(tmp_path / "folders" / "ada" / "a-photo-of-ada-0.png")
    (tmp_path / "folders" / "ada" / "a-photo-of-ada-1.png").symlink_to(tmp_path / "gone.png")
    bench = tmp_path / "bench"
    paint(bench / "tgt_image" / "ada" / "0_0.png")
    (bench / "tgt_image" / "ada" / "0_1.png").symlink_to(tmp_path / "gone.png")
    (bench / "text" / "ada").mkdir(parents=True)
    (bench / "text" / "ada" / "0_0.txt").write_text("a photo of a person")
    lost = {"names": "a-photo-of-ada-1.png", "folders": "ada/a-photo-of-ada-1.png", "bench": "tgt_image/ada/0_1.png"}
    for name, file in lost.items():
        found = find_images(tmp_path / name, ADA)
        assert (len(found.images), found.unreadable) == (1, (file,))
        assert assign_images(found, collect_prompts([found]), [0]).unreadable == (file,)


def test_an_image_that_a_list_names_twice_is_refused(tmp_path):
    line = {"image": "a.png", "prompt": "a photo of <ada>"}
    write_list(tmp_path, line, {"image": "b.png", "prompt": "a photo of <ada>"}, line)
    with pytest.raises(ConfigError, match=r"it names 'a\.png' 2 times with one prompt"):
        find_images(tmp_path, ADA)


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_prompt_of_a_list_may_have_what_ends_a_line_elsewhere(tmp_path, mark):
    paint(tmp_path / "a.png")
    entry = {"image": "a.png", "prompt": f"a photo of <ada>{mark}in space"}
    (tmp_path / "list.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert cases(find_images(tmp_path, ADA)) == [("a.png", "ada", "a photo of {} in space", 0)]


def test_files_with_names_that_no_record_holds_are_listed(tmp_path):
    folder = tmp_path / "images"
    paint(folder / "ada-1.png")
    for name in STRANGE:
        paint(folder / name)
    paint(folder / DEEP / f"{DEEP}-1.png")
    found = find_images(folder, ADA)
    assert cases(found) == [("ada-1.png", "ada", "{}", 1)]
    cut = f"{DEEP}/{DEEP}"[:296] + " ..."
    assert sorted(found.unreadable) == sorted([*STRANGE.values(), cut])
    described = assign_images(found, ["{}"], [1]).describe()
    assert ListedFolder.parse(described.dump()) == described
    assert set(described.unreadable) == set(found.unreadable)
    (folder / "ada-1.png").unlink()
    with pytest.raises(ConfigError, match=r"has no images .* with names that a record can hold, unlike 'a\\x1b"):
        find_images(folder, ADA)


def test_strange_names_in_the_folders_of_dreambench_are_listed(tmp_path):
    for stem in ("0_0", "0_1\x01"):
        paint(tmp_path / "tgt_image" / "ada" / f"{stem}.jpg")
    (tmp_path / "text" / "ada").mkdir(parents=True)
    (tmp_path / "text" / "ada" / "0_0.txt").write_text("a person")
    found = find_images(tmp_path, FolderHints())
    assert [one.file for one in found.images] == ["tgt_image/ada/0_0.jpg"]
    assert found.unreadable == ("tgt_image/ada/0_1\\x01.jpg",)


STRANGEST = [*STRANGE, "x" * 300, "x" * 301, "\x01" * 300]
NAMES = strategies.text(min_size=1, max_size=12) | strategies.sampled_from(STRANGEST)


@given(NAMES)
def test_names_that_are_not_changed_are_those_of_records(name):
    changed = change_strange_name(name)
    try:
        listed = ListedFolder(images=(), unreadable=(name,))
    except ValueError:
        assert ListedFolder(images=(), unreadable=(changed,)).unreadable == (changed,)
    else:
        assert (changed, listed.unreadable) == ("", (name,))


def test_other_programs_seeds_are_numbered_where_they_differ(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, seeds in ((first, (3, 9)), (second, (4, 1))):
        folder.mkdir()
        entries = [{"image": f"{s}.png", "prompt": "x", "subject": "ada", "seed": s} for s in seeds]
        write_list(folder, *entries)
    founds = [find_images(folder, ADA) for folder in (first, second)]
    assert collect_seeds(founds[:1]) == [3, 9]
    assert collect_seeds(founds) == [0, 1]
    numbered = assign_images(founds[1], ["x"], [0, 1])
    assert [(one.file, one.seed) for one in numbered.images] == [("1.png", 0), ("4.png", 1)]
    fewer = assign_images(founds[1], ["x"], [7])
    assert [(one.file, one.seed) for one in fewer.images] == [("1.png", 7)]
    assert fewer.unmatched == 1


SUITE = {
    "name": "tiny",
    "about": "Own and other images.",
    "prompts": [{"text": "a photo of {}", "kind": "plain"}, {"text": "{} (smiling:1.2)", "kind": "attribute"}],
    "seeds": [5],
    "variants": [{"label": "ours"}, {"label": "theirs", "images": "theirs"}],
}


def test_a_suite_takes_a_folder_as_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    prompts = ("a photo of <ada>", "<ada> (smiling:1.2)", "<ada> flies")
    entries = [{"image": f"{n}.png", "prompt": text, "subject": "ada"} for n, text in enumerate(prompts)]
    write_list(tmp_path / "theirs", *entries, {"image": "4.png", "prompt": prompts[0], "subject": "bob"})
    suite = Suite.model_validate(SUITE)
    suite.check()
    assert [variant.label for variant in suite.list_learning_variants()] == ["ours"]
    [(label, folder)] = open_suite_folders(suite, ("ada",), SilentProgress()).items()
    assert label == "theirs"
    assert [(one.prompt, one.seed) for one in folder.images] == [(0, 5), (1, 5)]
    assert folder.unmatched == 1
    with pytest.raises(ConfigError, match=r"theirs' has a prompt of the suite; one of its own is 'a photo of \{\}'"):
        assign_images(find_images(tmp_path / "theirs", ADA), ["{} sings"], [5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [{"label": "t", "images": "t", "preset": "fast"}]}, "preset is of no use"),
        ({"variants": [{"label": "t", "images": "t", "control": "photo"}]}, "control is of no use"),
        ({"together": 2, "prompts": [{"text": "{} and {}", "kind": "x"}]}, "show one subject, not 2"),
        ({"prompts": [{"text": "nobody", "kind": "x"}]}, r"needs \{\} 1 times"),
        ({"variants": [{"label": "a", "learned_by": "theirs"}, SUITE["variants"][1]]}, "which no variant learns"),
    ],
)
def test_what_a_folder_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Suite.model_validate(SUITE | changes)


def test_only_folders_have_what_they_list_and_others_the_whole_suite():
    listed = [("ada", 0, 5), ("bob", 1, 5), ("ada", 1, 6)]
    images = tuple(ListedImage(subject=s, prompt=p, seed=n, file="x.png", sha256="0") for s, p, n in listed)
    folders = {"theirs": ListedFolder(images=images)}
    ways = [{"label": "theirs", "images": "theirs"}, {"label": "pasted", "control": "photo"}]
    prompts = [{"text": text, "kind": "x"} for text in ("nobody", "{}")]
    info = {"name": "tiny", "prompts": prompts, "seeds": [5, 6]}
    alone = SuiteInfo.parse(json.dumps(info | {"variants": ways}))
    assert list_planned_keys(alone, ["ada", "bob"], {}, folders) == [
        ("ada", "theirs", 0, 5), ("ada", "theirs", 1, 6), ("ada", "pasted", 0, 5), ("ada", "pasted", 1, 5),
        ("bob", "theirs", 1, 5), ("bob", "pasted", 1, 5),
    ]  # fmt: skip
    prompts[0]["text"] = "a {}"
    compared = SuiteInfo.parse(json.dumps(info | {"variants": [{"label": "ours"}, *ways]}))
    keys = list_planned_keys(compared, ["ada", "bob"], {}, folders)
    assert sum(key[1] == "theirs" for key in keys) == sum(key[1] == "ours" for key in keys) == 8


def test_the_pace_of_the_steps_says_when_scoring_ends():
    others = {"variants": [SUITE["variants"][1], {"label": "pasted", "control": "photo"}]}
    assert not TimeLeft(Suite.model_validate(SUITE | others), [], []).costs_differ
    assert TimeLeft(Suite.model_validate(SUITE), [], []).costs_differ


WORDS = strategies.lists(strategies.text("abcd9(),.:+-<'", min_size=1, max_size=6), min_size=1, max_size=8)


@given(WORDS, strategies.booleans())
def test_a_prompt_of_another_program_keeps_its_words(words, named):
    text = " ".join([*words, "person"] if named else words)
    template = make_template(text, FolderHints())
    assert ("{}" in template) == named
    try:
        spoken = strip_weights(text)
    except PromptError:
        spoken = text
    assert strip_weights(template).format("person") == spoken


@given(strategies.text(max_size=40))
def test_any_text_is_a_prompt_or_refused(text):
    try:
        template = make_template(text, FolderHints())
    except InvalidFileError:
        return
    assert template.count("{}") <= 1
    template.format("person")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"runs": 3}', "it has no list of runs"),
        ('{"runs": [3]}', "it has no list of runs"),
        ('{"runs": [{"images": 3}]}', "its images are no list"),
        ('{"runs": [{}]}', "'images' is missing"),
        ("[]", ""),
        ('{"images": [3]}', "Input should be a table of keys"),
        ('{"images": {"a": 1}}', "its images are no list"),
        ("", ""),
    ],
)
def test_what_is_no_record_of_sefi_generate_is_refused(tmp_path, content, reason):
    paint(tmp_path / "a-1.png")
    (tmp_path / "records.json").write_text(content)
    with pytest.raises(ConfigError, match=f"is no record of generated images: .*{reason}"):
        find_images(tmp_path, ADA)


LINE = json.dumps({"image": "a.png", "prompt": "a photo of <ada>", "subject": "ada", "seed": 3}).encode()
RUNS = {"schema_version": 1, "runs": [{"images": [{"file": "a-1.png", "prompt": "<ada>", "seed": 3}]}]}
RECORD = json.dumps(RUNS).encode()
CHANGES = strategies.lists(
    strategies.tuples(strategies.integers(0, 120), strategies.binary(max_size=4)), min_size=1, max_size=4
)


@pytest.mark.parametrize(("name", "content"), [("images.jsonl", LINE), ("records.json", RECORD)])
@given(changes=CHANGES)
def test_a_damaged_list_or_record_is_refused_or_read(tmp_path_factory, name, content, changes):
    folder = tmp_path_factory.mktemp("damaged")
    for file in ("a.png", "a-1.png"):
        (folder / file).touch()
    if name == "records.json":
        (folder / "a.png").unlink()
    for place, some in changes:
        content = content[:place] + some + content[place + len(some) :]
    (folder / name).write_bytes(content)
    try:
        found = find_images(folder, FolderHints(only="*"))
    except ConfigError:
        return
    assert all(one.seed is not None and one.prompt.count("{}") <= 1 for one in found.images)


def test_what_is_far_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "images.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"more than 67,108,864"):
        find_images(tmp_path, ADA)
