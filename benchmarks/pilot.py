"""Which settings are best, and which of the learned vectors cost the prompt: people the main job does not use.

A trial is an identity learned with some settings, or one of those with some of its slots set back to the class word
(the paper's Figure 5), or weakened. Every picture is one line of the record file; a second run redoes none of them.

    python benchmarks/pilot.py                       # every trial x people 100 to 105 x 12 prompts x 2 seeds, about 3 h
    python benchmarks/pilot.py --trials ours "ours, keys only"
"""

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from main_job import Trial, earlier, keep, learned, report, scored

from sefi.api import embedded_judges
from sefi.backbone.open import open_backbone
from sefi.cli.demo import ONE_TOKEN
from sefi.conditioning.conditioner import IdentityConditioner, Slot
from sefi.core.config import override, to_dict
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.world.looking import Judges

RECORD = Path(__file__).parent / "records" / "pilot.jsonl"
STAGES = range(5)
KEYS: tuple[Slot, ...] = tuple((stage, "K") for stage in STAGES)
VALUES: tuple[Slot, ...] = tuple((stage, "V") for stage in STAGES)
LEARNED: dict[str, tuple[str, ...]] = {
    "ours": (),
    "one token": ONE_TOKEN,
    "one stage": ("learn.stages=1",),
    "500 steps": ("learn.steps=500",),
    "500 steps, no attention loss": ("learn.steps=500", "learn.attention_weight=0"),
    "one token, 500 steps": (*ONE_TOKEN, "learn.steps=500"),
    "learning rate 2e-3": ("learn.learning_rate=2e-3",),
    "norm limit 1.2": ("learn.token_norm_limit=1.2",),
}
# From which identity, which slots get the class word, and the strength of the others.
CHANGED: dict[str, tuple[str, tuple[Slot, ...], float]] = {
    "ours, keys only": ("ours", VALUES, 1.0),
    "ours, values only": ("ours", KEYS, 1.0),
    **{f"ours, stage {stage} off": ("ours", ((stage, "K"), (stage, "V")), 1.0) for stage in (0, 1, 4)},
    "ours, strength 0.8": ("ours", (), 0.8),
    "one token, strength 0.8": ("one token", (), 0.8),
}
COMPARED = (
    ("ours", "one token"),
    ("500 steps", "one token, 500 steps"),
    ("500 steps", "500 steps, no attention loss"),
    ("500 steps", "ours"),
    ("one token, 500 steps", "one token"),
)


@dataclass(frozen=True)
class Work:
    """Where identities are kept between trials."""

    trial: Trial
    identities: Path


def known(work: Work, number: int, name: str) -> tuple[Identity, float]:
    """This person's identity of this trial, learned once; and the seconds it took."""
    file = work.identities / f"{number}-{name.replace(' ', '-')}.safetensors"
    if not file.is_file():
        identity, seconds = learned(work.trial, number, LEARNED[name])
        identity = replace(identity, header=identity.header.model_copy(update={"metrics": {"seconds": seconds}}))
        identity.save(file)
    identity = Identity.load(file)
    return identity, identity.header.metrics["seconds"]


def changed(work: Work, identity: Identity, slots: Collection[Slot], strength: float) -> Identity:
    """The identity with the class word in these slots, the others between class word and what was learned."""
    tokens = IdentityConditioner(work.trial.backbone, [identity], strength, slots).tables[identity.name]
    return replace(identity, tensors={"tokens": tokens})


def identity_of(work: Work, number: int, name: str) -> tuple[Identity, float]:
    """The identity of a trial, learned or changed."""
    if name in LEARNED:
        return known(work, number, name)
    source, slots, strength = CHANGED[name]
    identity, seconds = known(work, number, source)
    return changed(work, identity, slots, strength), seconds


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument(
        "--identities", type=Path, default=Path("runs/pilot"), help="folder that keeps what was learned"
    )
    parser.add_argument("--model", default="tiny-portraits")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--first", type=int, default=100, help="number of the first person")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", nargs="*", default=[*LEARNED, *CHANGED], choices=[*LEARNED, *CHANGED])
    parser.add_argument("--set", nargs="*", default=["generate.steps=25"], dest="settings")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, then print the table."""
    given = arguments()
    base = override(PRESETS["default"], given.settings)
    trial = Trial(open_backbone(given.model), Judges(embedded_judges()), base, given.seeds)
    records = earlier(given.record, {"model": trial.backbone.fingerprint, "config": to_dict(base)})
    done = {(r["person"], r["way"]) for r in records}
    given.identities.mkdir(parents=True, exist_ok=True)
    work = Work(trial, given.identities)
    for name in given.trials:
        for number in range(given.first, given.first + given.people):
            if (number, name) in done:
                continue
            new = list(scored(trial, number, name, *identity_of(work, number, name)))
            records += new
            keep(given.record, new)
            print(name, number, flush=True)
    report(records, COMPARED)


if __name__ == "__main__":
    main()
