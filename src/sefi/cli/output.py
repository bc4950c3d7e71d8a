"""The output of a command: its answer on stdout with its schema, remarks on stderr, and the names of its files."""

from dataclasses import dataclass

import typer

from sefi.core.errors import ConfigError
from sefi.core.text import dump_json, escape_controls


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
    "demo": Schema(1, {"page": "the page written", "mark": "false where --no-mark was given", "seconds": "time spent"}),
    "learn": Schema(
        1,
        {
            "identity": "the identity file",
            "name": "the subject's name in prompts, without angle brackets",
            "base_model": "fingerprint of the model, family:width:hash",
            "bytes": "size of the file",
            "seed": "what was given with --seed",
            "metrics": "numbers of the training, by name",
            "seconds": "time spent learning",
            "resumed_at": "step at which an unfinished training was gone on with; 0 for a new one",
            "unknown_words": "words of the training sentences that the model does not know",
            "photos": "for every photo the square that was learned, in its pixels, and notes on it",
            "sha256": "of the identity file",
            "run": "what explains the identity: a run record, see docs/reproducibility.md",
            "next": "a command that generates images of the subject",
        },
    ),
    "batch": Schema(
        1,
        {
            "folder": "the folder of identities, previews and records",
            "learned": "identities learned by this call, by name",
            "finished": "identities that were there already: of the same photos, settings and model",
            "failed": "a list of objects with name, photos, problem, try, tries and put_aside; the exit code is 1 if "
            "there are any",
            "ignored": "files in the folder of photos, and in those in it, that are none; folders in those end with a "
            "slash and are not read",
            "page": "the page of all",
            "failures": "the table of what failed, CSV",
            "engine": "in-process, processes or ray",
            "jobs": "workers at the same time",
            "seconds": "time spent",
        },
    ),
    "export": Schema(
        1,
        {
            "files": "the files written",
            "prompt": "what to write in the program's prompt, or how",
            "folder": "where the program looks for such files",
            "notes": "what its user should know",
        },
    ),
    "import": Schema(
        1,
        {
            "identity": "the identity file",
            "name": "the name in prompts, without angle brackets",
            "vectors": "how many vectors it stands for",
            "base_model": "fingerprint of the model, family:width:hash",
        },
    ),
    "generate": Schema(
        1,
        {
            "images": "a list of objects with file, prompt, seed and invisible_mark; with --repair-faces also "
            "repaired_faces, squares as left, top, width and height in pixels; flagged where the image is black",
            "safety_checker": "whether the model's own safety checker looked at the images; null where it brings none",
            "grid": "one image with all of them",
            "identities": "the identity files given",
            "base_model": "fingerprint of the model, family:width:hash",
            "settings": "every setting generate.*; width, height, clip_skip and the text's options only if given",
            "size": "width and height of every image in pixels",
            "inputs": "images that generation started from or followed, and how: the options given, and their defaults",
            "seed": "what was given with --seed; image k of a prompt has seed + k",
            "mark": "false where --no-mark was given",
            "unknown_words": "words of the prompts that the model does not know",
            "records": "the file that this run was added to",
            "run": "what explains the images: a run record, see docs/reproducibility.md",
            "expired_consent": "true where --expired-consent was given",
        },
        frozenset({"expired_consent"}),
    ),
    "attend": Schema(
        1,
        {
            "figure": "the figure, a PNG",
            "safety_checker": "whether the model's own safety checker looked at the image; null where it brings none",
            "mark": "false where --no-mark was given",
            "words": "the tokens of the prompt, start and end included",
            "reference_words": "the same with class words for names",
            "mean_attention": "mean attention to every word; with padding they sum to 1",
            "reference_mean_attention": "the same for the class word's prompt",
            "share_in_face": "share of each name's attention inside the face, by name",
            "reference_share_in_face": "the same for the class word's prompt",
            "unknown_words": "words of the prompt that the model does not know",
        },
    ),
    "key": Schema(
        1,
        {
            "file": "where the installation's key is, or would be",
            "exists": "whether there is one",
            "number": "of the installation, in the invisible mark; 0 without a key",
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
            "widths": "widths of the tokens of each text encoder, where there are two",
            "prediction_type": "what that model predicts, where its family does not say it",
            "class_word": "what the subject is",
            "settings": "every setting it was learned with",
            "seed": "seed of the training",
            "library_versions": "versions of the libraries it was learned with",
            "consent": "a statement by whoever learned it, or null",
            "metrics": "numbers of the training",
            "shards": "further files of a very large identity",
            "record": "machine, squares of the photos, and what learning started from; not in files of before",
            "tensors": "shape of every tensor, by name",
            "bytes": "size of the file",
            "token_norms": "norms of the tokens of every stage",
            "of_photo": "with --photo: whether it was learned from that photo; null where the file does not say",
            "tokens_sha256": "of the tokens, as `record.init.tokens` of an identity that started from these",
        },
        frozenset({"of_photo", "prediction_type", "record", "token_norms", "tokens_sha256", "widths"}),
    ),
    "compare": Schema(
        1,
        {
            "equal": "whether nothing differs that both sides state; the exit code is 1 if something does",
            "kind": "what both are, or null where they are of two kinds",
            "first": "the first difference in order of cause, or null",
            "differences": "every difference in order of cause: objects with cause, name, a, b (null: not stated) and "
            "detail, which says how tensors or pixels differ and where",
            "unknown": "facts that only one side states, and salted hashes of photos, as the same objects",
            "unexplained": "whether results differ although nothing that is stated does",
            "compared": "facts, tensors and images that were compared",
        },
    ),
    "forget": Schema(
        1,
        {
            "removed": "the files removed or cleared of the identity",
            "left": "what could not be removed, and with `--leftovers` folders that cannot be read: a list of objects "
            "with file and reason; the exit code is 1 if there are any",
            "unproven": "files that may be of the identity and stay: a list of objects with file and reason",
        },
    ),
    "methods": Schema(
        1,
        {
            "model": "whose size the counts are for",
            "methods": "an object for every method, by name; its `unread` are the settings that it refuses, because it "
            "does not read them",
        },
    ),
    "settings": Schema(
        1,
        {
            "preset": "the preset asked for",
            "method": "its method",
            "settings": "value and meaning of every setting that the method has, by name; `by_start` has the values "
            "where they depend on where tokens start",
        },
    ),
    "doctor": Schema(
        2,
        {
            "sefi": "version of the program",
            "python": "version of Python",
            "system": "operating system, processor and number of cores",
            "libraries": "version of every library that is always needed; null where it is missing",
            "extras": "for every extra: whether it is installed, what it is for, how to install it",
            "devices": "where models can run, as `--device` takes it, with what it is",
            "embedded_model": "folder of tiny-portraits, or null",
            "face_detector": "what the embedded model's face detector found in the package's portrait",
            "leftovers": "unfinished trainings and temporary files, here and below, in caches and the system's "
            "temporary folder, which `sefi forget --leftovers` removes",
            "not_searched": "folders that were not searched for them, or not to their end, each with the reason",
            "free_disk": "free space where the command was started",
            "problems": "what is wrong, one sentence each; the exit code is 1 if there are any",
        },
    ),
    "verify": Schema(
        1,
        {
            "images": "for every image its file, size, source_type and parameters (its words), invisible_mark "
            "(strength, false_alarm, scale, angle, payload), installation, this_installation, words_fit and "
            "content_credentials (present, valid, trusted, signer, is_generated, and remote: the image only names an "
            "address of its manifest, which is not asked for); null where there is none, or where it is not known",
            "marked": "how many of them say in any way that a trained model made them",
            "unreadable": "files and folders that cannot be read, each with its error; the exit code is 1 if there "
            "are any",
            "false_alarm_bound": "an unmarked image seems to bear the invisible mark at most so often",
        },
    ),
    "bench list": Schema(1, {"suites": "what every bundled suite is about, by name"}),
    "bench run": Schema(
        2,
        {
            "run": "the run's folder",
            "made": "images made by this call",
            "mark": "false where --no-mark was given",
            "images": "images on record",
            "planned": "images that the suite asks for",
            "failed": "why images are missing: a list of objects with subject, variant, problem and try; the exit code "
            "is 1 if there are any",
        },
    ),
    "bench report": Schema(
        2,
        {
            "files": "the files written",
            "images": "images on record",
            "planned": "images that the suite asks for",
            "finished": "whether all of them are on record",
            "not_comparable": "why variants are not compared: a sentence on each that has other subjects and prompts",
        },
    ),
    "bench publish": Schema(
        1,
        {
            "files": "the files written",
            "images": "images whose scores they have",
            "pushed": "address of the upload, or null",
        },
    ),
    "score": Schema(
        1,
        {
            "run": "the run's folder",
            "images": "images on record",
            "subjects": "the subjects that have images",
            "unreadable": "by variant the files that cannot be read, which are left out",
            "evaluators": "drawings or photographs: what the evaluators are for",
            "prompts": "read: how many prompts say what the readers know; clip_only: the others",
            "cut_prompts": "the prompts that CLIP reads, and so scores, the beginning of",
            "unknown_words": "words of the prompts that the embedded model's CLIP does not know; of another CLIP none",
            "values": "by variant and figure mean, low, high and n (subjects); null where not computed",
            "not_computed": "by figure, why no variant has it",
            "not_comparable": "why variants are not compared: a sentence on each that has other subjects and prompts",
            "files": "the files written",
            "failed": "why images are missing, as of `bench run`; the exit code is 1 if there are any",
        },
    ),
    "serve": Schema(
        1,
        {
            "address": "where it listens, printed before the first request is answered",
            "identities": "the folder of identity files",
            "names": "identity files in it",
            "base_model": "fingerprint of the model, family:width:hash",
            "workers": "threads that generate, one for each device",
            "key": "whether requests need an API key",
            "mark": "false where --no-mark was given",
        },
    ),
    "study build": Schema(
        2,
        {
            "page": "the page written",
            "study": "name of the study",
            "variants": "what is compared",
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
            "questions": "shares, strengths and agreement of every question, by its name; `n` is of how many raters, "
            "or comparisons of a single one, an interval is",
        },
    ),
    "encoder train": Schema(
        1,
        {
            "encoder": "the encoder, a safetensors file",
            "bytes": "size of the file",
            "pairs": "images that it was fitted on, people left out included",
            "people": "people in them",
            "words": "tokens that it gives: learn.vectors",
            "explained": "share of the variance of tokens that it explains for people left out (R2)",
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
            "mark": "false where --no-mark was given",
            "prompts": "the prompts",
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


def print_remark(text: str) -> None:
    """Print a remark for people on stderr, so that stdout holds results only."""
    typer.echo(escape_controls(text, allowed="\n"), err=True)


def print_answer(record: dict[str, object], text: str, *, as_json: bool, command: str) -> None:
    """Print the result of a command: a text, or the record with its schema as one line of JSON.

    Raises:
        ConfigError: standard output cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    described = add_schema(command, record)
    try:
        typer.echo(dump_json(described) if as_json else escape_controls(text, allowed="\n"))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(
            f"The answer could not be written: {error.strerror or error}.",
            "Free some space, or send the output somewhere else; files that the command names are written.",
        ) from None
