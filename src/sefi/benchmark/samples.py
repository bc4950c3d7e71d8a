"""Make the missing images of a run; score each and add its record as soon as it is made.

An identity is learned, or read from the run's folder, before the first missing image that needs it.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.benchmark.evaluators import (
    Evaluation,
    drop_not_finite,
    make_sentence,
    round_embedding,
    score_attention,
    score_likeness,
    write_maps,
)
from sefi.benchmark.identities import Costs, Learner
from sefi.benchmark.plan import TimeLeft, UnitFailure, list_work_units
from sefi.benchmark.records import Key, Sample, make_group_key
from sefi.benchmark.run import OpenRun
from sefi.benchmark.scored_folder import ImageFolder, read_scored_image
from sefi.benchmark.suite import (
    ANOTHER_PHOTO,
    ANOTHER_SUBJECT,
    BenchmarkSubject,
    Control,
    Variant,
    hash_pixels,
    save_photo,
)
from sefi.core.config import Config
from sefi.core.errors import (
    FaceError,
    Interrupted,
    OutputError,
    PhotoError,
    SefiError,
    is_out_of_memory,
    print_trace,
    release_memory,
    shorten_reason,
)
from sefi.core.files import write_file
from sefi.core.progress import SilentProgress
from sefi.core.prompts import is_person
from sefi.core.reading import InvalidFileError, is_inside, translate_file_errors
from sefi.diffusion.attention_maps import PromptAttention, record_attention
from sefi.diffusion.conditioning import IdentityConditioner, apply_text_settings
from sefi.diffusion.sampling import make_image_record, sample_images
from sefi.evaluation.metrics import measure_similarity
from sefi.identity.file import Identity, compute_identity_digest
from sefi.methods import get_method
from sefi.photo.read import BOMBS, MAX_PIXELS
from sefi.provenance.save import EncodedImage, encode_image, encode_photo, read_named_identities


@dataclass(frozen=True)
class PromptSeed:
    """Which image of a run it is: the number of its prompt, and its seed."""

    prompt: int
    seed: int


@dataclass(frozen=True)
class SampleImage:
    """An image, uint8 RGB, the seconds it took if it was drawn now, and its attention maps if they were asked for.

    Attributes:
        content: its file, if a model generated it now; `rgb` is then what the file has.
        identities: first digits of the SHA-256 of each that the file of another program's image names.
    """

    prompt_seed: PromptSeed
    rgb: NDArray[np.uint8]
    seconds: float | None = None
    attention: PromptAttention | None = None
    content: EncodedImage | None = None
    identities: tuple[str, ...] = ()


def generate_images(
    backbone: Backbone,
    identities: Sequence[Identity],
    texts: Sequence[str],
    prompt_seeds: Sequence[PromptSeed],
    config: Config,
) -> Iterator[SampleImage]:
    """Yield an image of every text, in batches; each batch comes as soon as it is done.

    Args:
        texts: with `<name>` for every identity.
        prompt_seeds: as many; each gives the seed of its image.
    """
    method = get_method(identities[0].method if identities else config.method)
    size = config.generate.batch_size
    reading = backbone.skip_layers(config.generate.clip_skip)
    model = method.apply(identities, reading, config.generate.identity_strength)
    conditioner = apply_text_settings(model.conditioner, config.generate)
    for start in range(0, len(texts), size):
        chosen = slice(start, start + size)
        began, seeds = time.monotonic(), [prompt_seed.seed for prompt_seed in prompt_seeds[chosen]]
        batch = sample_images(model.backbone, conditioner, texts[chosen], seeds, config.generate, SilentProgress())
        made = list(batch)
        each = (time.monotonic() - began) / len(made)
        for prompt_seed, image in zip(prompt_seeds[chosen], made, strict=True):
            yield SampleImage(prompt_seed, np.asarray(image.pixels.convert("RGB"), np.uint8), each)


def generate_with_attention(
    backbone: Backbone,
    identities: Sequence[Identity],
    texts: Sequence[str],
    prompt_seeds: Sequence[PromptSeed],
    config: Config,
) -> Iterator[SampleImage]:
    """Yield images as `generate_images`, one at a time, with attention maps; token methods only (`Suite.check`)."""
    backbone = backbone.skip_layers(config.generate.clip_skip)
    plain = IdentityConditioner(backbone, identities, config.generate.identity_strength)
    conditioner = apply_text_settings(plain, config.generate)
    for text, prompt_seed in zip(texts, prompt_seeds, strict=True):
        began = time.monotonic()
        attention = record_attention(backbone, conditioner, text, prompt_seed.seed, config.generate, SilentProgress())
        rgb = np.asarray(attention.image.convert("RGB"), np.uint8)
        yield SampleImage(prompt_seed, rgb, time.monotonic() - began, attention)


def make_reference_image(
    control: Control, group: Sequence[BenchmarkSubject], others: Sequence[BenchmarkSubject], side: int
) -> NDArray[np.uint8] | None:
    """Return the image of a reference row, uint8 RGB `[side, side, 3]`; None where there is none.

    Args:
        group: the subjects of the image; two are shown side by side.
        others: as many other subjects, for the floor.
    """
    sources = others if control == ANOTHER_SUBJECT else group
    shown = [s.other_photo if control == ANOTHER_PHOTO else s.photo for s in sources]
    squares = [resize_to_square(image, side) for image in shown if image is not None]
    if len(squares) < len(group):
        return None
    return squares[0] if len(squares) == 1 else place_side_by_side(squares, side)


def place_side_by_side(squares: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Return two squares at half their size on a grey one."""
    row = cv2.resize(np.concatenate(squares, axis=1), (side, side // 2), interpolation=cv2.INTER_AREA)
    page = np.full((side, side, 3), 128, np.uint8)
    page[side // 4 : side // 4 + side // 2] = row
    return page


def resize_to_square(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the middle square of an image at another size."""
    height, width = rgb.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = rgb[top : top + edge, left : left + edge]
    method = cv2.INTER_AREA if edge > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(cut, (side, side), interpolation=method), np.uint8)


# What an image shows whose prompt was not followed; CLIP's margin is the prompt's lead over it.
PLAIN = "a photo of {}"
MOST_OTHERS = 23  # photos of other subjects that a background is compared with


@dataclass(frozen=True)
class SampleFiles:
    """Where an image and its attention maps lie, from the run's folder."""

    image: str
    maps: str | None


class IdentityScores(TypedDict):
    """The scores of likeness, by the fields of a `Sample`."""

    faces: int | None
    id: float | None
    id_other_photo: float | None
    id_leaked: float | None
    id_second: float | None
    id_second_other: float | None
    clip_image: float | None
    clip_image_others: float | None
    background: float | None
    background_others: float | None
    dino: float | None


def score_sample(
    run: OpenRun,
    group: Sequence[BenchmarkSubject],
    variant: Variant,
    image: SampleImage,
    files: SampleFiles,
    costs: Costs,
) -> Sample:
    """Return the record of an image; a score without its evaluator is None."""
    prompt, evaluators, class_word = (
        run.suite.prompts[image.prompt_seed.prompt],
        run.evaluators,
        run.suite.class_word,
    )
    evaluation = evaluators.evaluate(image.rgb)
    text = make_sentence(prompt.text, class_word)
    plain = PLAIN.format(" and ".join([class_word] * len(group)))
    return Sample(
        subject=make_group_key(s.key for s in group),
        variant=variant.label,
        kind=prompt.kind,
        prompt=image.prompt_seed.prompt,
        text=text,
        class_word=class_word,
        seed=image.prompt_seed.seed,
        sha256=hash_pixels(image.rgb),
        prompt_score=drop_not_finite(evaluators.score_prompt(evaluation, text)),
        margin=drop_not_finite(evaluators.score_margin(evaluation, text, plain)),
        shown=evaluators.find_shown(image.rgb, evaluation, prompt.wanted),
        embedding=round_embedding(evaluation.clip),
        draw_seconds=None if image.seconds is None else round(image.seconds, 3),
        image=files.image,
        maps=files.maps,
        trained=costs.trained,
        added=costs.added,
        learn_seconds=costs.learn_seconds,
        class_seconds=costs.class_seconds,
        peak_mb=costs.peak_mb,
        **score_against_photos(run, group, variant, evaluation),
        **score_attention(image.attention, prompt.wanted, evaluation, image.rgb),
    )


def score_against_photos(
    run: OpenRun, group: Sequence[BenchmarkSubject], variant: Variant, evaluation: Evaluation
) -> IdentityScores:
    """Return faces, likeness to the learned photos, to other images and the wrong person, CLIP's likeness, leakage.

    Image and background are also compared with other subjects' photos: what an image has of all of them is neither
    likeness nor leakage.
    The face evaluators know people only: for an animal theirs are not computed. Where the image *is* the other image,
    its likeness to itself says nothing and is left out.
    """
    photos = [run.evaluate_photos(s)[0] for s in group]
    others = [run.evaluate_photos(s)[1] for s in group]
    like, leaked = score_likeness(evaluation, [get_first_face(p) for p in photos])
    like_other, _ = score_likeness(evaluation, [get_first_face(o) for o in others])
    second, _ = score_likeness(evaluation, [get_first_face(p, second=True) for p in photos], second=True)
    second_other, _ = score_likeness(evaluation, [get_first_face(o, second=True) for o in others], second=True)
    person, alone = is_person(run.suite.class_word), len(group) == 1
    is_other = variant.control == ANOTHER_PHOTO
    strangers = evaluate_strangers(run, group) if alone else []
    return IdentityScores(
        faces=len(evaluation.faces) if person and evaluation.faces is not None else None,
        id=drop_not_finite(like) if person else None,
        id_other_photo=drop_not_finite(like_other) if person and not is_other else None,
        id_leaked=drop_not_finite(leaked) if person else None,
        id_second=drop_not_finite(second) if person else None,
        id_second_other=drop_not_finite(second_other) if person and not is_other else None,
        clip_image=compare_embeddings(evaluation.clip, photos[0].clip) if alone else None,
        clip_image_others=compare_with_each(evaluation.clip, [one.clip for one in strangers]),
        background=compare_embeddings(evaluation.background, photos[0].background) if alone and person else None,
        background_others=compare_with_each(evaluation.background, [one.background for one in strangers])
        if person
        else None,
        dino=compare_embeddings(evaluation.dino, photos[0].dino) if alone else None,
    )


def get_first_face(evaluation: Evaluation | None, *, second: bool = False) -> NDArray[np.float32] | None:
    """Return the embedding of the surest face; `second` takes the second recogniser's."""
    if evaluation is None:
        return None
    embeddings = evaluation.second_embeddings if second else evaluation.embeddings
    return embeddings[0] if embeddings else None


def evaluate_strangers(run: OpenRun, group: Sequence[BenchmarkSubject]) -> list[Evaluation]:
    """Return what the evaluators find in photos of other subjects.

    They are the next ones in turn, as many for each subject: an image that is the same for all has the same mean cosine
    to them, over the subjects, as to the own photo.
    """
    return [run.evaluate_photos(subject)[0] for subject in run.list_others(group, MOST_OTHERS)]


def compare_with_each(
    embedding: NDArray[np.float32] | None, others: Iterable[NDArray[np.float32] | None]
) -> float | None:
    """Return the mean cosine of an embedding to others, over those that are known; None without any."""
    known = [cosine for other in others if (cosine := compare_embeddings(embedding, other)) is not None]
    return float(np.mean(known)) if known else None


def compare_embeddings(first: NDArray[np.float32] | None, second: NDArray[np.float32] | None) -> float | None:
    """Return the cosine, where both are known."""
    return None if first is None or second is None else drop_not_finite(measure_similarity(first, second))


LESS_AT_ONCE = "Close other programs, or use fewer --jobs, and run the same command again."


def make_samples(
    run: OpenRun, numbers: Iterable[int] | None = None, on_failure: Callable[[UnitFailure], None] | None = None
) -> int:
    """Make whatever is missing of these units (None: all); returns how many images were made.

    Args:
        numbers: of `list_work_units`; they may become known one after another, while others are made.
        on_failure: is called with each unit that failed in a way of `describe_unit_failure`; then the next one is made.
            Without it such an error is raised, as all others are.
    """
    groups, samples, planned = run.list_groups(), run.folder.read_samples(), run.plan_keys()
    units, variants = list_work_units(run.suite, len(groups)), {one.label: one for one in run.suite.variants}
    done = {sample.key for sample in samples}
    missing, left = [key for key in planned if key not in done], TimeLeft(run.suite, planned, samples)
    wanted, all_planned = group_keys(missing), group_keys(planned)
    del samples  # with CLIP's vectors 18 KB each: room that learning needs
    run.progress.start(len(missing), "images")
    made, group_names = 0, run.list_group_keys()
    for unit in units if numbers is None else (units[number] for number in numbers):
        places, failure, reason = [(group_names[number], label) for number, label in unit], None, ""
        place = places[0]
        try:
            for (number, label), place in zip(unit, places, strict=True):
                group, variant = groups[number], variants[label]
                for sample in make_variant_samples(run, group, variant, wanted[place], all_planned[place]):
                    run.folder.add(sample)
                    left.record(sample)
                    if left.costs_differ:  # else the pace of the steps says it
                        run.progress.estimate(left.estimate_seconds())
                    run.progress.advance()
                    made += 1
        except Exception as error:
            failure, reason = describe_unit_failure(error, place, places), shorten_reason(error)
            if failure is None or on_failure is None:
                raise
            print_trace(error)
        if failure is not None and on_failure is not None:
            release_memory(reason)  # that the frames of the error held
            left.give_up(places)
            on_failure(failure)
    run.progress.finish()
    return made


def describe_unit_failure(
    error: Exception, place: tuple[str, str], places: Sequence[tuple[str, str]]
) -> UnitFailure | None:
    """Return the failure of a unit of work that says nothing of the others; None for what must end the run.

    That is what would come again with every unit, a disk that takes no files, and errors that nobody foresaw.

    Args:
        place: subjects and variant at which it came.
        places: all of the unit.
    """
    match error:
        case Interrupted() | OutputError():
            return None
        case SefiError():
            of_photo = isinstance(error, PhotoError | FaceError) and not error.lacks_memory
            return UnitFailure(*place, error.problem, error.remedy, tuple(places), of_photo)
        case _ if is_out_of_memory(error):
            return UnitFailure(*place, "There is not enough memory.", LESS_AT_ONCE, tuple(places))
        case _:
            return None


def group_keys(keys: Iterable[Key]) -> Mapping[tuple[str, str], list[PromptSeed]]:
    """Return prompts and seeds by the key of their subjects and the label of their variant; none where there is no key.

    >>> group_keys([("ada", "ours", 0, 7), ("ada", "ours", 1, 7)])["ada", "ours"]
    [PromptSeed(prompt=0, seed=7), PromptSeed(prompt=1, seed=7)]
    """
    grouped: dict[tuple[str, str], list[PromptSeed]] = defaultdict(list)
    for subject, variant, prompt, seed in keys:
        grouped[subject, variant].append(PromptSeed(prompt, seed))
    return grouped


def make_variant_samples(
    run: OpenRun,
    group: tuple[BenchmarkSubject, ...],
    variant: Variant,
    prompt_seeds: Sequence[PromptSeed],
    planned: Sequence[PromptSeed] = (),
) -> Iterator[Sample]:
    """Yield the samples of one group and one variant as they come.

    Args:
        planned: all prompts and seeds of the group and the variant, where not all are wanted.
    """
    if not prompt_seeds:
        return
    learner = Learner(run)
    needs_none = variant.control is not None or variant.images is not None
    identities = [] if needs_none else [learner.load_or_learn(variant, s) for s in group]
    costs = learner.collect_costs(variant, group, identities)
    for image in make_images(run, group, variant, identities, prompt_seeds, planned):
        path = locate_sample_image(run, group, variant, image.prompt_seed)
        files = SampleFiles(write_image(run, variant, image, path), write_attention(run, image, path))
        yield score_sample(run, group, variant, image, files, costs)


def make_images(
    run: OpenRun,
    group: tuple[BenchmarkSubject, ...],
    variant: Variant,
    identities: Sequence[Identity],
    prompt_seeds: Sequence[PromptSeed],
    planned: Sequence[PromptSeed] = (),
) -> Iterator[SampleImage]:
    """Yield the images of these prompts and seeds; the class word's, equal for all subjects, are drawn once.

    Args:
        planned: as in `make_variant_samples`.
    """
    if variant.images is not None:
        for subject in group:  # nobody learns from it; the pages show it
            photo = run.folder.locate_photo(subject.key)
            if not photo.is_file():
                save_photo(subject, photo)
        yield from read_folder_images(run.folders[variant.label], group, prompt_seeds)
        return
    if variant.control in ("photo", ANOTHER_PHOTO, ANOTHER_SUBJECT):
        rgb = make_reference_image(variant.control, group, run.list_others(group, len(group)), run.image_side)
        if rgb is not None:
            yield from (SampleImage(prompt_seed, rgb) for prompt_seed in prompt_seeds)
        return
    yield from make_generated_images(run, group, variant, identities, prompt_seeds, planned)


def make_generated_images(
    run: OpenRun,
    group: tuple[BenchmarkSubject, ...],
    variant: Variant,
    identities: Sequence[Identity],
    prompt_seeds: Sequence[PromptSeed],
    planned: Sequence[PromptSeed] = (),
) -> Iterator[SampleImage]:
    """Yield generated images of these prompts and seeds; arguments as of `make_images`."""
    files = [(one, locate_sample_image(run, group, variant, one)) for one in prompt_seeds]
    if variant.control == "class word":
        yield from (SampleImage(prompt_seed, read_image(file)) for prompt_seed, file in files if file.is_file())
        prompt_seeds = [prompt_seed for prompt_seed, file in files if not file.is_file()]
    config, wanted = run.suite.make_config(variant), set(prompt_seeds)
    prompt_seeds = list_whole_batches(planned or prompt_seeds, wanted, config.generate.batch_size)
    names = [f"<{i.name}>" for i in identities] or [run.suite.class_word] * len(group)
    texts = [run.suite.prompts[prompt_seed.prompt].text.format(*names) for prompt_seed in prompt_seeds]
    draw = generate_with_attention if run.suite.attention and identities else generate_images
    digests = [compute_identity_digest(identity) for identity in identities]
    for text, image in zip(texts, draw(run.backbone, identities, texts, prompt_seeds, config), strict=True):
        if image.prompt_seed in wanted:
            yield mark_sample_image(run, image, text, config, digests)


def list_whole_batches(planned: Sequence[PromptSeed], wanted: AbstractSet[PromptSeed], size: int) -> list[PromptSeed]:
    """Return all images of the batches that have one that is wanted.

    How many are generated together changes their last bits: a run that was interrupted within a batch generates the
    whole batch again, so that it ends with the images of a run that was not.

    >>> list_whole_batches("abcdefg", {"b", "g"}, 3)
    ['a', 'b', 'c', 'g']
    """
    batches = (planned[start : start + size] for start in range(0, len(planned), size))
    return [one for batch in batches if wanted & set(batch) for one in batch]


def mark_sample_image(
    run: OpenRun, image: SampleImage, text: str, config: Config, digests: Sequence[str]
) -> SampleImage:
    """Return an image with the marks that its file has, before it is evaluated: its scores are the file's."""
    record = make_image_record(run.backbone, text, image.prompt_seed.seed, config.generate, digests)
    encoded = encode_image(Image.fromarray(image.rgb), record, mark=run.mark)
    return replace(image, rgb=np.asarray(encoded.pixels, np.uint8), content=encoded)


def read_folder_images(
    folder: ImageFolder, group: Sequence[BenchmarkSubject], prompt_seeds: Sequence[PromptSeed]
) -> Iterator[SampleImage]:
    """Yield the images of a folder; none where the folder has none of a prompt and seed."""
    files = folder.locate_files(make_group_key(s.key for s in group))
    for prompt_seed in prompt_seeds:
        file = files.get((prompt_seed.prompt, prompt_seed.seed))
        if file is not None:
            named = tuple(sorted(read_named_identities(file)))
            yield SampleImage(prompt_seed, read_scored_image(file), identities=named)


def locate_sample_image(
    run: OpenRun, group: Sequence[BenchmarkSubject], variant: Variant, prompt_seed: PromptSeed
) -> Path:
    """Return the file of an image in the run's folder."""
    key = make_group_key(s.key for s in group)
    return run.folder.locate_image(key, variant, prompt_seed.prompt, prompt_seed.seed)


def write_image(run: OpenRun, variant: Variant, image: SampleImage, path: Path) -> str:
    """Write an image, whole or not at all, unless it was read from there; return its file as the record names it."""
    if image.content is not None:
        write_file(path, image.content.write)
    elif variant.control != "class word":  # a photo; the class word's image was read from there
        write_file(path, encode_photo(Image.fromarray(image.rgb), image.identities).write)
    return run.folder.shorten(path)


def write_attention(run: OpenRun, image: SampleImage, image_path: Path) -> str | None:
    """Write the attention maps of an image, if there are any; return their file as the record names it."""
    if image.attention is None:
        return None
    path = run.folder.locate_maps(image_path)
    write_maps(image.attention, path)
    return run.folder.shorten(path)


def read_image(path: os.PathLike[str]) -> NDArray[np.uint8]:
    """Return an image that this run wrote, uint8 RGB.

    Raises:
        PhotoError: it is damaged, or far larger than one.
    """
    problem, remedy = "is damaged", "Delete it, and let `sefi bench run` make it again."
    with translate_file_errors(path, PhotoError, problem, remedy, BOMBS), Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InvalidFileError(f"it has {image.width} x {image.height} pixels")
        return np.asarray(image.convert("RGB"), np.uint8)


def contains_file(folder: Path, name: str | None) -> bool:
    """Return whether a record names a file that is there, in the run's own folder; no name is no file."""
    if not name or "\0" in name:
        return False
    try:
        return is_inside(folder / name, folder) and (folder / name).is_file()
    except OSError:  # a name that is too long
        return False
