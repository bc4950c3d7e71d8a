"""What `sefi learn --memory` holds a step to at Stable Diffusion 1.4's size, with random weights, on this machine.

Every limit in a process of its own: the plan, the most memory that the process held, and the seconds of one step of
five samples. The identity means nothing. Takes minutes a limit.

    python experiments/memory_limit.py                   # experiments/records/memory_limit.json
    python experiments/memory_limit.py --dtype bfloat16  # where the processor has it
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

from engine import make_large_backbone, make_trainer
from real_size import describe_machine, read_peak_gib

from sefi.backbone.bundle import parse_dtype
from sefi.core.config import override
from sefi.core.files import write_text
from sefi.core.reading import read_json
from sefi.core.text import dump_json, parse_memory
from sefi.methods import PRESETS
from sefi.training.memory import plan_memory

RECORD = Path(__file__).parent / "records" / "memory_limit.json"
# As the default learns, but from the class word: there is no name encoder for random weights.
SETTINGS = ("learn.attention_weight=0", "views.latent_pool=1")
LIMITS = ("24GB", "12GB", "9GB", "6GB")


def main() -> None:
    """Measure every limit, write the record, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", nargs="+", default=LIMITS, metavar="SIZE")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", metavar="SIZE", help="measure this limit here, and print it")
    parser.add_argument("--print", action="store_true", help="print the record, measure nothing")
    given = parser.parse_args()
    if given.only:
        sys.stdout.write(dump_json(measure_limit(given.only, given.dtype)))
        return
    if not given.print:
        limits = {limit: run_limit(limit, given.dtype) for limit in given.limits}
        record = {"machine": describe_machine(), "dtype": given.dtype, "settings": SETTINGS, "limits": limits}
        write_text(RECORD, dump_json(record, indent=1) + "\n")
    print(format_limits(read_json(RECORD)))


def run_limit(limit: str, dtype: str) -> dict[str, Any]:
    """Return what a process that measures one limit prints."""
    command = [sys.executable, __file__, "--only", limit, "--dtype", dtype]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603


def measure_limit(limit: str, dtype: str) -> dict[str, Any]:
    """Take one step within a limit; return the plan, the peak and the seconds."""
    backbone = make_large_backbone(dtype=parse_dtype(dtype))
    trainer = make_trainer(backbone, override(PRESETS["scratch"], SETTINGS))
    plan = plan_memory(trainer.task, backbone.networks.values(), parse_memory(limit))
    trainer.recovery.parts = plan.parts
    started = time.perf_counter()
    trainer.take_step(0)
    return {
        "parts": plan.parts,
        "recompute": plan.recompute,
        "planned_gb": round(plan.bytes_needed / 1e9, 2),
        "peak_gb": round(read_peak_gib() * 2**30 / 1e9, 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def format_limits(record: dict[str, Any]) -> str:
    """Return a row for each limit."""
    titles = ("limit", "samples taken in", "activations computed again", "planned", "held at the most", "one step")
    lines = [f"| {' | '.join(titles)} |", "| --- | --- | --- | --- | --- | --- |"]
    for limit, one in record["limits"].items():
        parts = "one go" if one["parts"] == 1 else f"{one['parts']} parts"
        again = "yes" if one["recompute"] else "no"
        sizes = f"{one['planned_gb']:.1f} GB | {one['peak_gb']:.1f} GB"
        lines.append(f"| {limit} | {parts} | {again} | {sizes} | {one['seconds']:.0f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
