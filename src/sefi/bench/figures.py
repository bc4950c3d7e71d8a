"""The figures of a benchmark, a table: name, unit, direction, formula, what it needs, and what it says."""

from dataclasses import dataclass
from typing import Literal

from sefi.bench import formulas
from sefi.bench.formulas import Formula

Unit = Literal["cosine", "share", "seconds", "count", "MB"]
Direction = Literal["up", "down", "none"]
Part = Literal["main", "person", "prompt", "picture", "cost"]


@dataclass(frozen=True)
class Figure:
    """One column of a table.

    Attributes:
        name: Short name, for files.
        label: What a reader sees.
        unit: `cosine` is raw, -1 to 1; `share` is 0 to 1.
        direction: Whether higher or lower is better; `none` where neither is.
        of: From the pictures of one subject and one way to the figure; nan where it was not computed.
        needs: What a run must have for it: judges, `tau`, `far_threshold`, or a field of its samples.
        part: Which of the page's tables shows it.
        about: One sentence on what it says.
    """

    name: str
    label: str
    unit: Unit
    direction: Direction
    of: Formula
    needs: tuple[str, ...]
    part: Part
    about: str


FACES, FACE_ID, CLIP, READERS = ("detector",), ("detector", "recogniser"), ("clip",), ("reader",)
FIGURES: tuple[Figure, ...] = (
    Figure("id_prompt", "ID(Prompt)", "cosine", "up", formulas.id_prompt, (*FACE_ID, *CLIP, "tau"), "main",
           "Likeness to the photo where the prompt score is at least tau, else 0: person and prompt at once."),
    Figure("prompt", "prompt score", "cosine", "up", formulas.mean_of("prompt_score"), CLIP, "main",
           "CLIP cosine of the picture and its prompt, the class word in place of the person."),
    Figure("shown", "shown", "share", "up", formulas.shown, READERS, "main",
           "Share of what a prompt asks for that readers find in the picture."),
    Figure("id", "ID", "cosine", "up", formulas.mean_of("id"), FACE_ID, "main",
           "Likeness of the face to the learned photo; a picture without a face counts 0."),
    Figure("verified", "verified", "share", "up", formulas.verified, (*FACE_ID, "far_threshold"), "main",
           "Share of pictures whose face passes as the person of the photo at the run's false-accept threshold."),
    Figure("face", "face found", "share", "up", formulas.face_found, FACES, "main",
           "Share of pictures with at least one face."),

    Figure("id_detected", "ID over faces", "cosine", "up", formulas.id_detected, FACE_ID, "person",
           "Likeness to the learned photo over the pictures with a face only."),
    Figure("id_other", "ID to another picture", "cosine", "up", formulas.mean_of("id_other"),
           (*FACE_ID, "id_other"), "person",
           "Likeness to a picture of the subject that was not learned; a picture without a face counts 0."),
    Figure("copy", "copying", "cosine", "none", formulas.copying, (*FACE_ID, "id_other"), "person",
           "Likeness to the learned photo less that to another picture, over faces: best near 0, above it is copied."),
    Figure("one_face", "exactly one face", "share", "up", formulas.one_face_each, FACES, "person",
           "Share of pictures with as many faces as subjects: one, or two where two share a picture."),
    Figure("id_leaked", "ID of the wrong one", "cosine", "down", formulas.mean_of("id_leaked"),
           (*FACE_ID, "id_leaked"), "person",
           "Where two share a picture: likeness of each face to the other of the two."),

    Figure("id_prompt_area", "area of ID(Prompt)", "cosine", "up", formulas.id_prompt_area,
           (*FACE_ID, *CLIP), "prompt",
           "Mean of ID(Prompt) over every tau from the run's lowest to its highest prompt score: no threshold."),
    Figure("margin", "obeyed, by CLIP's margin", "share", "up", formulas.obeyed_by_margin, (*CLIP, "margin"), "prompt",
           "Share of pictures nearer to their prompt than to the sentence of a plain photo: needs no reader."),
    Figure("shown_attribute", "attribute", "share", "up", formulas.shown_kind("attribute"), READERS, "prompt",
           "Share of every wanted attribute, such as a smile, that readers find."),
    Figure("shown_action", "action", "share", "up", formulas.shown_kind("action"), READERS, "prompt",
           "Share of every wanted action, such as playing the guitar, that readers find."),
    Figure("shown_scene", "scene", "share", "up", formulas.shown_kind("scene"), READERS, "prompt",
           "Share of every wanted scene, such as a beach, that readers find."),
    Figure("shown_style", "style", "share", "up", formulas.shown_kind("style"), READERS, "prompt",
           "Share of every wanted style, such as a painting, that readers find."),

    Figure("background", "background leakage", "cosine", "down", formulas.mean_of("background"),
           (*FACES, *CLIP), "picture",
           "CLIP cosine of picture and photo, faces blanked in both: how much of the photo's background came along."),
    Figure("clip_image", "CLIP likeness", "cosine", "none", formulas.mean_of("clip_image"), CLIP, "picture",
           "CLIP cosine of the whole picture and the photo: who it is, but also how the photo was taken."),
    Figure("diversity", "diversity", "cosine", "up", formulas.diversity_over_seeds, (*CLIP, "embedding"), "picture",
           "1 - CLIP cosine between the pictures of one prompt from different seeds, mean over prompts."),
    Figure("focus", "attention on the face", "share", "up", formulas.mean_of("focus"), ("focus",), "picture",
           "Share of the learned word's attention that lies inside the face."),
    Figure("on_objects", "attention on objects", "share", "down", formulas.mean_of("on_objects"),
           ("on_objects",), "picture",
           "Share of the learned word's attention that lies where the prompt's action or scene draws."),
    Figure("focus_plain", "class word's attention on the face", "share", "none", formulas.mean_of("focus_plain"),
           ("focus_plain",), "picture",
           "The same of the plain word in the same pictures: what the learned word's is to be compared with."),
    Figure("on_objects_plain", "class word's attention on objects", "share", "none",
           formulas.mean_of("on_objects_plain"), ("on_objects_plain",), "picture",
           "The same of the plain word in the same pictures."),

    Figure("learn_seconds", "learning", "seconds", "down", formulas.mean_of("learn_seconds"),
           ("learn_seconds",), "cost", "Seconds to learn one subject, class pictures included."),
    Figure("class_seconds", "of it class pictures", "seconds", "down", formulas.mean_of("class_seconds"),
           ("class_seconds",), "cost", "Seconds of it to draw pictures of the class, the same for every subject."),
    Figure("draw_seconds", "drawing", "seconds", "down", formulas.mean_of("draw_seconds"),
           ("draw_seconds",), "cost", "Seconds to draw one picture."),
    Figure("trained", "trained numbers", "count", "down", formulas.mean_of("trained"), ("trained",), "cost",
           "Numbers that are learned and kept in the identity."),
    Figure("added", "added weights", "count", "down", formulas.mean_of("added"), ("added",), "cost",
           "Weights beside the model while learning, or trained once for all subjects; other networks not counted."),
    Figure("peak_mb", "peak memory", "MB", "down", formulas.most("peak_mb"), ("peak_mb",), "cost",
           "The most memory that was held."),
)  # fmt: skip
