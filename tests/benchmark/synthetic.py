"""A made-up run: 3 subjects, 2 variants, 4 reference rows, 3 prompts, 2 seeds; scores drawn from a seed."""

import hashlib

import numpy as np
from PIL import Image, ImageDraw

from sefi.benchmark.records import RunInfo, Sample

SUBJECTS = {"ada": (226, 178, 140), "bob": (150, 104, 78), "eve": (246, 214, 190)}
PROMPTS = [
    {"text": "a photo of {} at the beach", "kind": "scene", "wanted": [["scene", "beach"]]},
    {"text": "a photo of {} holding a cup", "kind": "action", "wanted": [["action", "cup"]]},
    {
        "text": "a painting of {} smiling, in the snow",
        "kind": "combination",
        "wanted": [["style", "painting"], ["attribute", "smiling"], ["scene", "snow"]],
    },
]
VARIANTS = [
    {"label": "class word", "about": "The plain word: what the model does unasked.", "control": "class word"},
    {"label": "photo", "about": "The learned photo pasted as the image.", "control": "photo"},
    {"label": "ours", "about": "Key and value tokens for each stage, with the attention loss.", "control": None},
    {"label": "one token", "about": "One token, no attention loss: textual inversion.", "control": None},
    {"label": "same", "about": "Another image of the subject: the ceiling.", "control": "same"},
    {"label": "other", "about": "Another subject's photo: the floor.", "control": "other"},
]
SEEDS = (7, 11)
WIDTH = 5
# Mean likeness, prompt score and chance that something wanted is shown, by variant.
LEVELS = {
    "class word": (0.08, 0.31, 0.9),
    "photo": (1.0, 0.17, 0.05),
    "ours": (0.52, 0.28, 0.85),
    "one token": (0.61, 0.21, 0.5),
    "same": (0.74, 0.18, 0.05),
    "other": (0.11, 0.17, 0.05),
}
BACKGROUNDS = ((120, 190, 220), (196, 170, 140), (235, 240, 246))


def make_run(**changes):
    """What was asked; changes are values of `run.json` by their keys."""
    evaluators = {
        name: {"file": f"{name}.onnx", "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("detector", "recogniser", "scene_reader", "head_reader", "clip")
    }
    learning = {"steps": 200, "stages": 5, "attention_weight": 0.003}
    values = {
        "schema": 1,
        "suite": {
            "name": "synthetic",
            "about": "Made-up scores.",
            "prompts": PROMPTS,
            "variants": VARIANTS,
            "seeds": SEEDS,
        },
        "subjects": list(SUBJECTS),
        "model": {"name": "tiny-portraits", "fingerprint": "tiny:192:0123456789abcdef"},
        "evaluators": evaluators,
        "versions": {"sefi": "0.1.0", "torch": "2.13.0"},
        "settings": {
            "ours": {"method": "sefi", "learn": learning},
            "one token": {"method": "sefi", "learn": {**learning, "stages": 1, "attention_weight": 0.0}},
        },
        "tau": 0.23,
        "far_threshold": 0.4,
    }
    return RunInfo.model_validate(values | changes)


def make_samples(seed=0):
    chance = np.random.default_rng(seed)
    return [
        make_sample(subject, variant, prompt, draw, chance)
        for subject in SUBJECTS
        for variant in VARIANTS
        for prompt in range(len(PROMPTS))
        for draw in (SEEDS if variant["control"] in (None, "class word") else SEEDS[:1])
    ]


def make_sample(subject, variant, prompt, draw, chance):
    like, obeyed, sure = LEVELS[variant["label"]]
    faces = 1 if variant["control"] else int(chance.choice([0, 1, 2], p=[0.12, 0.8, 0.08]))
    found = float(np.clip(like + chance.normal(0, 0.05), -1, 1)) if faces else 0.0
    other = float(np.clip(0.8 * like + chance.normal(0, 0.05), -1, 1)) if faces else 0.0
    learned = variant["control"] is None
    return Sample(
        subject=subject,
        variant=variant["label"],
        kind=PROMPTS[prompt]["kind"],
        prompt=prompt,
        text=PROMPTS[prompt]["text"].format("person"),
        seed=draw,
        image=f"pictures/{subject}--{variant['label'].replace(' ', '-')}--{prompt}--{draw}.png",
        sha256=hashlib.sha256(f"{subject} {variant['label']} {prompt} {draw}".encode()).hexdigest()[:16],
        faces=faces,
        id=found,
        id_other_photo=other,
        prompt_score=float(obeyed + chance.normal(0, 0.02)),
        shown=tuple(bool(chance.random() < sure) for _ in PROMPTS[prompt]["wanted"]),
        background=float(chance.uniform(0.3, 0.6)),
        background_others=0.4,
        clip_image_others=0.5,
        embedding=tuple(float(v) for v in chance.normal(0, 1, WIDTH) + 3),
        learn_seconds=float(chance.uniform(30, 40)) if learned else None,
        class_seconds=0.0 if learned else None,
        draw_seconds=float(chance.uniform(1, 2)),
        trained={"ours": 7680, "one token": 768}.get(variant["label"]),
        added=0 if learned else None,
        peak_mb=730.0 if learned else None,
    )


def change_all(samples, **changes):
    """Copies of samples with other values in some fields."""
    return [sample.model_copy(update=changes) for sample in samples]


def write_run(folder, run, samples):
    """The folder as a benchmark leaves it: records, images, photos."""
    for name in ("pictures", "photos"):
        (folder / name).mkdir(parents=True)
    (folder / "run.json").write_text(run.dump())
    (folder / "cells.jsonl").write_text("".join(sample.dump() + "\n" for sample in samples))
    for subject in SUBJECTS:
        portrait(subject, (90, 90, 96), 0).save(folder / "photos" / f"{subject}.png")
    for index, sample in enumerate(samples):
        portrait(sample.subject, BACKGROUNDS[sample.prompt], index).save(folder / sample.image)
    return folder


def portrait(subject, background, index):
    """A head before a background, moved a little from image to image."""
    image = Image.new("RGB", (96, 96), background)
    pen, shift = ImageDraw.Draw(image), index % 7 - 3
    pen.ellipse((30 + shift, 22, 66 + shift, 70), SUBJECTS[subject])
    pen.rectangle((22, 74, 74, 96), (70 + 20 * (index % 5), 60, 110))
    for x in (40, 56):
        pen.ellipse((x + shift - 2, 40, x + shift + 2, 44), (30, 30, 34))
    return image
