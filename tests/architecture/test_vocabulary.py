"""One vocabulary: functions begin with a verb, docstrings with an imperative, and no name is a word of our own."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"  # of both packages
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
FILES = [*sorted(SOURCE.rglob("*.py")), *SCRIPTS]
VERB_TEXT = """
add advance align analyse answer append apply arrange assign attach average begin blank blend bring build caption
capture change check choose chunk clean clear clip collect compare compile compress compute convert copy count create
crop cut decode delay denoise describe design detach detect discard distil divide do download draw dress drop dump embed
encode end enlarge escape estimate evaluate expand explain export extract fail fetch fill find finish fit flag flatten
flush follow format freeze fuse generate get give group handle hash hide hold hook import interpolate invent invert join
keep label learn leave let lighten limit list load locate lock make map mark measure merge mix move multiply name
normalise note number observe open override overwrite pack pad paint pair parse pass paste place plan plot pop predict
prepare print publish push quiet quote raise rank rate read receive recolour reconstruct record refresh refuse release
remember remove rename render repair replace report require resample reset reshape resize restore restyle resume return
roughen round run sample save say scale score select send set shorten show shrink shuffle sign silence skip sort space
split spread start store strip subtract suggest summarise swap take time tint tokenise tokenize train translate try turn
update upload use validate verify view wait watch weight word wrap write yield zero abandon ask bind close project
replay reuse stop
"""
VERBS = frozenset(VERB_TEXT.split())
STATES = frozenset(
    {"can", "contains", "covers", "excludes", "fits", "has", "is", "knows", "needs", "shows", "supports", "wants"}
)  # what is true or false
# Names that others prescribe: a program's entry, typer's group, torch's modules, the hub, and two protocols of ours.
PRESCRIBED = frozenset({"main", "invoke", "forward", "to", "nested", "after_step", "from_pretrained", "_repr_png_"})
# Words that had a meaning in this package only, and what to write instead.
BANNED = {
    "anchor": "reference",
    "anchors": "references",
    "anyway": "any_style",
    "attended": "attention",
    "beside": "extra",
    "drawn": "drawing, or generated",
    "homes": "what they are",
    "ink": "style",
    "judge": "evaluator",
    "judges": "evaluators",
    "judging": "evaluation",
    "kept": "saved",
    "lesson": "training",
    "looked": "attention",
    "nouns": "what they are",
    "opened": "open or load",
    "picture": "image",
    "pictures": "images",
    "settle": "after_step",
    "story": "content",
    "studied": "what was learned",
    "tape": "recorder",
    "telling": "format or describe",
    "told": "format or describe",
    "way": "variant",
    "ways": "variants",
}


def name_words(name):
    """Return the words of an identifier in lower case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_").split("_")


def is_property(function):
    return any(
        (isinstance(one, ast.Name) and one.id in ("property", "cached_property"))
        or (isinstance(one, ast.Attribute) and one.attr == "setter")
        for one in function.decorator_list
    )


def find_functions(tree):
    """Return the functions whose names and docstrings are ours to choose."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [one for one in functions if not is_property(one)]


def find_names_without_verb(tree):
    names = [one.name for one in find_functions(tree) if not one.name.startswith("__")]
    return [name for name in names if name not in PRESCRIBED and name_words(name)[0] not in VERBS | STATES]


def find_docstrings_without_verb(tree):
    texts = [ast.get_docstring(one) or "" for one in find_functions(tree)]
    return [text.split("\n")[0] for text in texts if text and text.split()[0].strip(".,:;").lower() not in VERBS]


def find_defined_names(tree):
    """Yield every name that a file gives to something of its own."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def find_banned(names):
    return sorted({name for name in names if BANNED.keys() & set(name_words(name))})


def find_checks_that_return(tree):
    """Return the functions `check_...` that give something back; those of pydantic give back what they are given."""
    return [
        one.name
        for one in find_functions(tree)
        if one.name.startswith("check_")
        and (one.returns is None or ast.unparse(one.returns) not in ("None", "Self"))
        and not any("field_validator" in ast.unparse(decorator) for decorator in one.decorator_list)
    ]


def find_repeated(trees):
    """Return the public functions and classes that stand at the top of more than one file, with the files."""
    places = defaultdict(list)
    for place, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1 and name not in PRESCRIBED}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_begin_with_a_verb_and_docstrings_with_an_imperative(path):
    tree = parse(path)
    assert not find_names_without_verb(tree)
    assert not find_docstrings_without_verb(tree)
    assert not find_checks_that_return(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_word_of_our_own_is_a_name(path):
    assert not find_banned([path.stem, *find_defined_names(parse(path))])


def test_no_public_name_means_two_things():
    assert not find_repeated({str(path.relative_to(SOURCE)): parse(path) for path in sorted(SOURCE.rglob("*.py"))})


def test_these_checks_can_fail():
    text = 'class JudgeFiles: ...\ndef told(way):\n    """The text of a picture."""\n    self.kept = 1\n'
    tree = ast.parse(text)
    assert find_names_without_verb(tree) == ["told"]
    assert find_docstrings_without_verb(tree) == ["The text of a picture."]
    assert find_banned(find_defined_names(tree)) == ["JudgeFiles", "kept", "told", "way"]
    assert find_checks_that_return(ast.parse("def check_a() -> int: ...\ndef check_b() -> None: ...\n")) == ["check_a"]
    assert find_repeated({"a.py": tree, "b.py": tree}) == {"JudgeFiles": ["a.py", "b.py"], "told": ["a.py", "b.py"]}
    fine = ast.parse('def has_face(image):\n    """Return whether it has one."""\ndef crop_face(): ...\n')
    assert not find_names_without_verb(fine)
    assert not find_docstrings_without_verb(fine)
