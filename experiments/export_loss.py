"""What an identity of the default preset loses when it is exported: likeness and prompt score by what is in the file.

    python experiments/export_loss.py              # about an hour on two idle cores; goes on where it stopped
    python experiments/export_loss.py --quick      # one person of each group, two prompts: whether it runs
    python experiments/export_loss.py --write      # the table of docs/hosts/export.md from the record

The default of `sefi export` is chosen on one group of people and reported on another.
"""

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.benchmark.evaluators import drop_not_finite
from sefi.benchmark.identities import Learner
from sefi.benchmark.run import OpenRun
from sefi.benchmark.samples import PromptSeed, generate_images, score_against_photos
from sefi.benchmark.statistics import estimate_difference, estimate_interval
from sefi.benchmark.suite import BenchmarkSubject, Suite, Variant, read_prompt_list
from sefi.cli.bench_setup import BenchOptions, Thresholds, collect_run_info, find_thresholds, open_run
from sefi.cli.options import EMBEDDED
from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.reading import read_json, translate_file_errors
from sefi.core.text import dump_json
from sefi.diffusion.text import get_class_token_ids
from sefi.evaluation.metrics import measure_id_prompt
from sefi.hosts.export import FLAT_SLOT, STAGE_SLOT, Slot, choose_slot, make_stage_embeddings
from sefi.identity.file import Identity
from sefi.training.token_inversion import TrainingTexts, encode_key_value_texts, encode_training_texts

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "experiments" / "records" / "export_loss.json"
PAGE = ROOT / "docs" / "hosts" / "export.md"
BLOCK = re.compile(r"(<!-- export loss -->\n).*?(<!-- end -->)", re.DOTALL)
SEED = 100
DISTILLING_STEPS, DISTILLING_RATE = 200, 1e-2
NATIVE = "sefi: key and value tokens, five stages"

OURS = Variant(label="ours")

Change = Callable[[Identity, Backbone], Identity]


def replace_tokens(identity: Identity, tokens: Tensor) -> Identity:
    """Return an identity with tokens `[stage, 1, vector, width]` for keys and values alike."""
    header = identity.header.model_copy(update={"stages": len(tokens)})
    return replace(identity, tensors={"tokens": tokens.expand(-1, 2, -1, -1).clone()}, header=header)


def keep(identity: Identity, _backbone: Backbone) -> Identity:
    """Return what was learned."""
    return identity


def export_stages(identity: Identity, _backbone: Backbone, slot: Slot) -> Identity:
    """Return what a file for every stage holds."""
    return replace_tokens(identity, torch.stack([one.vectors[None] for one in make_stage_embeddings(identity, slot)]))


def export_flat(identity: Identity, _backbone: Backbone, slot: Slot) -> Identity:
    """Return what the single file of the mean over stages holds."""
    return replace_tokens(identity, choose_slot(identity, slot).mean(0)[None, None])


def export_noisy(identity: Identity, _backbone: Backbone) -> Identity:
    """Return what the single file of the mean over the noisier stages holds, from the middle one."""
    return replace_tokens(identity, choose_slot(identity, "value")[MIDDLE:].mean(0)[None, None])


def export_stage(identity: Identity, _backbone: Backbone, slot: Slot, stage: int) -> Identity:
    """Return what the single file of one stage holds."""
    return replace_tokens(identity, make_stage_embeddings(identity, slot)[stage].vectors[None, None])


def write_class_word(identity: Identity, backbone: Backbone) -> Identity:
    """Return the class word as tokens: what nobody's file gives."""
    return replace_tokens(identity, find_class_row(identity, backbone)[None, None])


def find_class_row(identity: Identity, backbone: Backbone) -> Tensor:
    """Return the class word's embedding `[1, width]`."""
    return backbone.get_token_row(get_class_token_ids(backbone, identity.header.class_word))[None]


def distil_flat(identity: Identity, backbone: Backbone) -> Identity:
    """Return one token whose keys and values in the denoiser are nearest the stages' mean ones."""
    tokens = identity.stage_tokens.float()
    return replace_tokens(identity, distil(backbone, tokens[None])[None, None])


def distil_stages(identity: Identity, backbone: Backbone) -> Identity:
    """Return for each stage one token whose keys and values in the denoiser are nearest its own."""
    tokens = identity.stage_tokens.float()
    return replace_tokens(identity, torch.stack([distil(backbone, one[None, None])[None] for one in tokens]))


def distil(backbone: Backbone, wanted: Tensor) -> Tensor:
    """Find the vectors `[vector, width]` whose text gives the denoiser's layers what others gave them in the mean.

    Args:
        wanted: tokens `[1, stage, 2, vector, width]` whose mean keys and values are wanted.
    """
    settings = sefi.PRESETS["scratch"].learn
    texts = encode_training_texts(backbone, settings.model_copy(update={"vectors": wanted.shape[3]}))
    key_forms, value_forms = measure_layers(backbone, "to_k"), measure_layers(backbone, "to_v")
    with torch.no_grad():
        contexts = torch.stack([encode_sentences(backbone, texts, one) for one in wanted[0]]).mean(0)
    vectors = nn.Parameter(wanted[0, :, 1].mean(0).clone())
    optimizer = torch.optim.Adam([vectors], lr=DISTILLING_RATE)
    for _ in range(DISTILLING_STEPS):
        found = encode_sentences(backbone, texts, vectors.expand(2, -1, -1))
        change = found - contexts
        loss = sum(torch.einsum("twi,ij,twj->", change[slot], form, change[slot])
                   for slot, form in enumerate((key_forms, value_forms)))  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vectors.detach()


def encode_sentences(backbone: Backbone, texts: TrainingTexts, tokens: Tensor) -> Tensor:
    """Encode all templates with tokens `[2, vector, width]`, to `[2, template, word, width]`."""
    count = len(texts.ids)
    states = encode_key_value_texts(
        backbone, texts, torch.arange(count), tokens.expand(count, -1, -1, -1)
    ).states.float()
    key, value, _ = states.chunk(3, dim=-1)
    return torch.stack([key, value])


def measure_layers(backbone: Backbone, name: str) -> Tensor:
    """Return the sum `[width, width]` of W^T W over the cross-attention layers, each of trace 1."""
    forms: list[Tensor] = []
    for layer, module in backbone.unet.named_modules():
        if layer.endswith(f"attn2.{name}"):
            weight = module.weight.detach().float()
            form = weight.T @ weight
            forms.append(form / form.trace())
    return torch.stack(forms).sum(0)


STAGES = 5
MIDDLE = STAGES // 2
FLAT_DEFAULT = f"flat, mean over stages, {FLAT_SLOT}"
STAGE_DEFAULT = f"stage files, {STAGE_SLOT}"
EXPLORED = 2  # people of the choosing group that every form is drawn of


@dataclass(frozen=True)
class Form:
    """What can leave in a file.

    Attributes:
        label: what the table calls it.
        change: how the tokens change.
        chosen_from: drawn of every person of the choosing group, not of the first two only.
        reported: drawn of the reporting group.
    """

    label: str
    change: Change
    chosen_from: bool = True
    reported: bool = True


def list_stage_forms() -> list[Form]:
    """List the single files of one stage."""
    values = [Form(f"flat, stage {stage + 1}, value", partial(export_stage, slot="value", stage=stage),
                   chosen_from=stage in (2, 3), reported=stage == 3) for stage in range(STAGES)]  # fmt: skip
    slots: tuple[Slot, ...] = ("key", "mean")
    others = [Form(f"flat, stage {MIDDLE + 1}, {slot}", partial(export_stage, slot=slot, stage=MIDDLE),
                   chosen_from=False, reported=False) for slot in slots]  # fmt: skip
    return values + others


FORMS = (
    Form(NATIVE, keep),
    Form("stage files, value", partial(export_stages, slot="value")),
    Form("stage files, key", partial(export_stages, slot="key"), chosen_from=False, reported=False),
    Form("stage files, mean", partial(export_stages, slot="mean")),
    Form("stage files, distilled", distil_stages, reported=False),
    Form("flat, mean over stages, value", partial(export_flat, slot="value")),
    Form("flat, mean over stages, key", partial(export_flat, slot="key"), chosen_from=False, reported=False),
    Form("flat, mean over stages, mean", partial(export_flat, slot="mean")),
    *list_stage_forms(),
    Form(f"flat, mean over stages {MIDDLE + 1} to {STAGES}, value", export_noisy, reported=False),
    Form("flat, distilled", distil_flat, reported=False),
    Form("class word", write_class_word, chosen_from=False),
)
# Chosen on people that the sweep of settings had, reported on those of the main comparison.
GROUPS = {"choosing": (300, 6, "short"), "reporting": (200, 8, "main")}


def main() -> None:
    """Make what is missing, write the record; or fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one person of each group, two prompts, no record")
    parser.add_argument("--only", choices=tuple(GROUPS), help="one group of people, and no record")
    parser.add_argument("--write", action="store_true", help="fill in the page from the record")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "export-loss", help="where scores are saved")
    given = parser.parse_args()
    if given.write:
        write_text(PAGE, render_page())
        return
    work = given.work / "quick" if given.quick else given.work
    names = [given.only] if given.only else list(GROUPS)
    groups = {name: measure_group(name, work / name, quick=given.quick) for name in names}
    if not given.quick and not given.only:
        write_text(RECORD, dump_json({"seed": SEED, "groups": groups}, indent=1) + "\n")
    sys.stdout.write("\n\n".join(format_table(group) for group in groups.values()) + "\n")


def open_group(name: str, folder: Path, *, quick: bool) -> tuple[BenchOptions, OpenRun]:
    """Open what a group of people is measured with: options and run."""
    first, people, prompts = GROUPS[name]
    suite = Suite(
        name=f"export-{name}",
        about="What exports lose.",
        prompts=read_prompt_list(prompts)[: 2 if quick else None],
        variants=(OURS,),
        settings=("generate.steps=25", *(["learn.steps=3"] if quick else [])),
        seeds=(SEED,),
        subjects=1 if quick else people,
        first=first,
    )  # fmt: skip
    options = BenchOptions(
        suite, folder, EMBEDDED, None, None, None, None, None, download=False, device="cpu", dtype="float32"
    )
    return options, open_run(options)


def measure_group(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Make and score the missing images of a group of people; return each form's figures by person.

    Raises:
        ConfigError: the folder has those of another model or other settings.
    """
    options, run = open_group(name, folder, quick=quick)
    begin_work(folder, describe_work(options, run))
    for one in (run.folder.identities, run.folder.photos):
        one.mkdir(parents=True, exist_ok=True)
    thresholds = read_thresholds(options, folder / "thresholds.json")
    scores = folder / "scores.jsonl"
    done = dict(read_scores(scores))
    planned = [(form, subject) for place, subject in enumerate(run.subjects)
               for form in FORMS if needs_images(form, name, place)]  # fmt: skip
    for number, (form, subject) in enumerate(planned):
        if (form.label, subject.key) not in done:
            with scores.open("a", encoding="utf-8") as file:
                found = score_form(run, form, subject, thresholds)
                file.write(dump_json({"form": form.label, "person": subject.key, **found}) + "\n")
            done[form.label, subject.key] = found
            sys.stderr.write(f"{name}: {number + 1} of {len(planned)}  {subject.key}  {form.label}  {found}\n")
    return {
        "people": [subject.key for subject in run.subjects],
        "prompts": [prompt.text for prompt in run.suite.prompts],
        "tau": thresholds.tau,
        "forms": {
            form.label: {one.key: done[form.label, one.key] for other, one in planned if other is form}
            for form in FORMS
            if any(other is form for other, _ in planned)
        },
    }


def describe_work(options: BenchOptions, run: OpenRun) -> dict[str, Any]:
    """Return what the scores and identities of a folder depend on: the program, model, evaluators and settings."""
    info = collect_run_info(options, run, Thresholds(0.0, 0.0))  # those are found from the same evaluators
    about = info.model_dump(
        mode="json", include={"suite", "subjects", "photos", "model", "evaluators", "settings", "learning_files"}
    )
    about |= {"sefi": info.versions["sefi"], "seed": SEED, "distilling": [DISTILLING_STEPS, DISTILLING_RATE]}
    signature = run.backbone.signature
    return about | {"signature": signature.compute_digest() if signature else ""}


def begin_work(folder: Path, about: dict[str, Any]) -> None:
    """Write `about.json` into a folder, or check that its scores and identities are those that would be made now.

    Raises:
        ConfigError: they are others, or nobody knows.
    """
    file, remedy = folder / "about.json", "Choose another folder with --work, or remove this one."
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} has no about.json: nobody knows what was measured in it.", remedy)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, dump_json(about, indent=1) + "\n")
        return
    with translate_file_errors(file, ConfigError, "does not say what was measured", remedy):
        before = read_json(file)
    now = json.loads(dump_json(about))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        raise ConfigError(f"{folder} has scores of another measurement: {', '.join(differing)} differ.", remedy)


def needs_images(form: Form, group: str, place: int) -> bool:
    """Return whether a form is drawn of a person, by the person's place in the group."""
    if group == "reporting":
        return form.reported
    return form.chosen_from or place < EXPLORED


def read_thresholds(options: BenchOptions, file: Path) -> Thresholds:
    """Return tau and the recogniser's threshold, found once."""
    if not file.is_file():
        found = find_thresholds(options, None)
        write_text(file, dump_json({"tau": found.tau, "far": found.far}))
    return Thresholds(**json.loads(file.read_text(encoding="utf-8")))


def read_scores(file: Path) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    """Yield what earlier starts scored; a line that was cut short is left out."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        yield (read.pop("form"), read.pop("person")), read


def score_form(run: OpenRun, form: Form, subject: BenchmarkSubject, thresholds: Thresholds) -> dict[str, float]:
    """Return the figures of one form of one person over all prompts."""
    learned = Learner(run).load_or_learn(OURS, subject)
    identity = form.change(learned, run.backbone)
    prompt_seeds = [PromptSeed(number, SEED) for number in range(len(run.suite.prompts))]
    texts = [prompt.text.format(f"<{identity.name}>") for prompt in run.suite.prompts]
    ids, prompts, shown = list[float](), list[float](), list[float]()
    for image in generate_images(run.backbone, [identity], texts, prompt_seeds, run.suite.make_config(OURS)):
        prompt = run.suite.prompts[image.prompt_seed.prompt]
        evaluation = run.evaluators.evaluate(image.rgb)
        ids.append(score_against_photos(run, [subject], OURS, evaluation)["id"] or 0.0)
        prompts.append(drop_not_finite(run.evaluators.score_prompt(evaluation, prompt.text.format("person"))) or 0.0)
        shown.append(float(np.mean(run.evaluators.find_shown(image.rgb, evaluation, prompt.wanted) or (0,))))
    numbers = {
        "id": np.mean(ids),
        "prompt": np.mean(prompts),
        "shown": np.mean(shown),
        "id_prompt": measure_id_prompt(np.array(ids), np.array(prompts), thresholds.tau or 0.0),
    }
    return {name: round(float(value), 6) for name, value in numbers.items()}


FIGURES = {"id_prompt": "ID(Prompt)", "id": "ID", "prompt": "prompt score", "shown": "shown"}


def format_table(group: Mapping[str, Any]) -> str:
    """Return means with 95 % intervals over people, and the difference of ID(Prompt) from what `sefi` itself draws.

    Forms that only the first people of a group were drawn of are left out.
    """
    forms: Mapping[str, Mapping[str, Mapping[str, float]]] = group["forms"]
    lines = ["| what is in the file | " + " | ".join(FIGURES.values()) + " | ID(Prompt) less sefi's own |",
             "|---|" + "---|" * (len(FIGURES) + 1)]  # fmt: skip
    native = select_figure(forms[NATIVE], "id_prompt")
    for label, people in forms.items():
        if len(people) == len(group["people"]):
            cells = [format_interval(select_figure(people, figure)) for figure in FIGURES]
            apart = estimate_difference(select_figure(people, "id_prompt"), native)
            shown = "" if label == NATIVE else f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
            lines.append(f"| {label} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def select_figure(people: Mapping[str, Mapping[str, float]], figure: str) -> dict[str, float]:
    """Return one figure by person."""
    return {person: figures[figure] for person, figures in people.items()}


def format_interval(values: Mapping[str, float]) -> str:
    """Return a mean with its interval."""
    found = estimate_interval(values)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def compare_best(group: Mapping[str, Any], kind: str, default: str) -> str:
    """Return how far the best form of a kind is above the default, with the interval of their difference."""
    forms = {label: select_figure(people, "id_prompt") for label, people in group["forms"].items()
             if label.startswith(kind) and len(people) == len(group["people"])}  # fmt: skip
    best = max(forms, key=lambda label: estimate_interval(forms[label]).mean)
    if best == default:
        return f'the best is the default, "{default}"'
    apart = estimate_difference(forms[best], forms[default])
    return f'"{best}" is {apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}] from the default, "{default}"'


def render_page() -> str:
    """Return the page with the table of the reporting group, and how the defaults were chosen."""
    groups = json.loads(RECORD.read_text(encoding="utf-8"))["groups"]
    reporting, choosing = groups["reporting"], groups["choosing"]
    parts = [
        format_table(reporting),
        f"{len(reporting['people'])} people, {len(reporting['prompts'])} prompts, tau {reporting['tau']:.3f}. "
        f"The defaults were chosen on {len(choosing['people'])} other people with {len(choosing['prompts'])} prompts:",
        format_table(choosing),
        f"By ID(Prompt) there, of single files {compare_best(choosing, 'flat', FLAT_DEFAULT)}; of files for each stage "
        f"{compare_best(choosing, 'stage files', STAGE_DEFAULT)}.",
    ]
    text = "\n\n".join(parts)
    return BLOCK.sub(lambda found: f"{found[1]}{text}\n\n{found[2]}", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
