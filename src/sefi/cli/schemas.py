"""What every command prints with --json: its keys, and the version of their meaning; docs/json.md is this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """The keys of one command's JSON object.

    Attributes:
        version: grows when a key is taken away or changes its meaning; new keys do not change it.
        keys: what each key holds.
        optional: keys that are not always there.
    """

    version: int
    keys: dict[str, str]
    optional: frozenset[str] = frozenset()


SCHEMAS: dict[str, Schema] = {
    "demo": Schema(1, {"page": "the page written", "seconds": "time spent"}),
    "learn": Schema(
        1,
        {
            "identity": "the identity file",
            "name": "the subject's name in prompts, without angle brackets",
            "base_model": "fingerprint of the model, family:width:hash",
            "bytes": "size of the file",
            "seed": "what was given with --seed",
            "metrics": "numbers of the learning run, by name",
            "seconds": "time spent learning",
            "unknown_words": "words of the training sentences that the model does not know",
            "next": "a command that draws the subject",
        },
    ),
    "generate": Schema(
        1,
        {
            "images": "a list of objects with file, prompt and seed",
            "grid": "one image with all of them",
            "identities": "the identity files given",
            "base_model": "fingerprint of the model, family:width:hash",
            "settings": "every setting generate.*",
            "seed": "what was given with --seed; image k of a prompt has seed + k",
            "unknown_words": "words of the prompts that the model does not know",
        },
    ),
    "attend": Schema(
        1,
        {
            "figure": "the figure, a PNG",
            "words": "the tokens of the prompt, start and end included",
            "reference_words": "the same with class words for names",
            "mean_attention": "mean attention to every word; with padding they sum to 1",
            "reference_mean_attention": "the same for the class word's prompt",
            "share_in_face": "share of each name's attention inside the face, by name",
            "reference_share_in_face": "the same for the class word's prompt",
            "unknown_words": "words of the prompt that the model does not know",
        },
    ),
    "inspect": Schema(
        1,
        {
            "schema_version": "version of the identity file's format",
            "name": "the subject's name",
            "method": "the method that learned it",
            "stages": "number of stages",
            "order": "how the tokens are ordered",
            "base_model": "fingerprint of the model it was learned on",
            "signature": "samples of that model's tensors, by part",
            "width": "width of a token",
            "class_word": "what the subject is",
            "settings": "every setting it was learned with",
            "seed": "seed of the learning run",
            "library_versions": "versions of the libraries it was learned with",
            "consent": "a statement by whoever learned it, or null",
            "metrics": "numbers of the learning run",
            "shards": "further files of a very large identity",
            "tensors": "shape of every tensor, by name",
            "bytes": "size of the file",
            "token_norms": "norms of the tokens of every stage",
        },
        frozenset({"token_norms"}),
    ),
    "methods": Schema(1, {"model": "whose size the counts are for", "methods": "an object for every method, by name"}),
    "settings": Schema(
        1,
        {
            "preset": "the preset asked for",
            "method": "its method",
            "settings": "value and meaning of every setting, by name",
        },
    ),
    "doctor": Schema(
        1,
        {
            "sefi": "version of the program",
            "python": "version of Python",
            "system": "operating system, processor and number of cores",
            "libraries": "version of every library that is always needed; null where it is missing",
            "extras": "for every extra: whether it is installed, what it is for, how to install it",
            "devices": "where models can run",
            "embedded_model": "folder of tiny-portraits, or null",
            "face_detector": "what the embedded model's face detector found in the package's portrait",
            "free_disk": "free space where the command was started",
            "problems": "what is wrong, one sentence each; the exit code is 1 if there are any",
        },
    ),
    "bench list": Schema(1, {"suites": "what every bundled suite is about, by name"}),
    "bench run": Schema(
        1,
        {
            "run": "the run's folder",
            "made": "images made by this call",
            "pictures": "images on record",
        },
    ),
    "bench report": Schema(
        1,
        {
            "files": "the files written",
            "pictures": "images on record",
            "planned": "images that the suite asks for",
            "finished": "whether all of them are on record",
        },
    ),
    "study build": Schema(
        1,
        {
            "page": "the page written",
            "study": "name of the study",
            "ways": "what is compared",
            "comparisons": "comparisons of every question, by its name",
            "checks": "attention checks among them",
            "bytes": "size of the page",
        },
    ),
    "study analyse": Schema(
        1,
        {
            "study": "name of the study",
            "raters": "raters counted",
            "left_out": "how many raters are not counted",
            "excluded": "a list of objects with rater and reason",
            "questions": "shares, strengths and agreement of every question, by its name",
        },
    ),
    "world draw": Schema(1, {"out": "the folder written to", "count": "drawings"}),
    "world train": Schema(1, {"out": "the folder written to", "part": "what was trained"}),
    "world check": Schema(1, {"figures": "a list of objects with name, value, target, met and n"}),
    "world grid": Schema(
        1,
        {
            "out": "the grid, a PNG",
            "kind": "kind of prompts",
            "seed": "what was given with --seed",
            "prompts": "the prompts drawn",
        },
    ),
    "world card": Schema(1, {"cards": "the files written or checked"}),
    "world words": Schema(
        1, {"groups": "phrases that the embedded model knows, by what they say", "names": "its named characters"}
    ),
}


def add_schema(command: str, record: dict[str, object]) -> dict[str, object]:
    """Return a record with its `schema`, such as `learn/1`, in front; its keys must be the documented ones."""
    schema = SCHEMAS[command]
    assert schema.keys.keys() - schema.optional <= record.keys() <= schema.keys.keys(), (command, list(record))
    return {"schema": f"{command}/{schema.version}", **record}
