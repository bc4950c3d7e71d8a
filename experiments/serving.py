"""Serve many people: what a mixed batch costs, how fast identities are read, and 50 clients at once.

    python experiments/serving.py parts       16 people in one batch against one person: what differs, and a step; CPU
                                              time, seven rounds in turn, a minute
    python experiments/serving.py batch       the same with whole images, which takes a quarter of an hour
    python experiments/serving.py identities  reading identity files
    python experiments/serving.py load        a real server, 50 clients of 20 people for two minutes; each image checked

Each writes its part of records/serving.json. The people are random tokens: nothing here depends on who they are.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import numpy as np
import torch
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.core.config import DEFAULT, Config, override
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.diffusion.attention import copy_with_key_value_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import GeneratedImage
from sefi.identity.file import Identity
from sefi.methods.base import create_header

RECORD = Path(__file__).parent / "records" / "serving.json"
SCENES = ("at the beach", "in the snow", "reading a book", "as a pencil drawing", "wearing a hat")
ROUNDS = 7


def make_people(backbone: Backbone, count: int) -> list[Identity]:
    """Make identities of random tokens, as long as those that are learned, each far from the others."""
    people: list[Identity] = []
    for number in range(count):
        noise = torch.randn(5, 2, backbone.token_width, generator=torch.Generator().manual_seed(number))
        people.append(Identity({"tokens": noise}, create_header(f"p{number}", backbone, DEFAULT, seed=number)))
    return people


def describe_machine() -> dict[str, object]:
    """Describe the machine, the versions and the load."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": [round(number, 1) for number in os.getloadavg()],
    }


def write_part(name: str, part: dict[str, Any]) -> None:
    """Write a part of the record, the others stay; print it."""
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    write_text(RECORD, dump_json(record | {name: describe_machine() | part}, indent=1) + "\n")
    sys.stdout.write(dump_json(part, indent=1) + "\n")


# ------------------------------------------------------------------ a mixed batch


def measure_batches(steps: int, count: int = 16) -> dict[str, Any]:
    """Measure the CPU time of a batch of one person and of as many different people; compare their images.

    In the first two all prompts are of one scene: of the one person a single text is encoded, which is as cheap as it
    gets. In the third one person is in as many scenes as the people of the fourth.
    """
    backbone = sefi.open_backbone()
    people = make_people(backbone, count)
    config = override(DEFAULT, [f"generate.steps={steps}", f"generate.batch_size={count}"])
    scenes = [f"{SCENES[n % len(SCENES)]}{' smiling' * (n // len(SCENES))}" for n in range(count)]
    prompts = {
        "one person, one prompt": (["a photo of <p0> at the beach"], people[:1], count),
        "16 people, one scene": ([f"a photo of <p{n}> at the beach" for n in range(count)], people, 1),
        "one person, 16 prompts": ([f"a photo of <p0> {scene}" for scene in scenes], people[:1], 1),
        "16 people, 16 prompts": ([f"a photo of <p{n}> {scene}" for n, scene in enumerate(scenes)], people, 1),
    }

    def draw(name: str) -> list[GeneratedImage]:
        texts, who, images = prompts[name]
        return sefi.generate(texts, who, backbone=backbone, config=config, num_images=images)

    times = time_in_turn({name: lambda name=name: draw(name) for name in prompts})
    together = draw("16 people, 16 prompts")
    largest = max(compare_alone(image, people[n], backbone, config) for n, image in enumerate(together))
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    one, many = middle["one person, one prompt"], middle["16 people, one scene"]
    return {
        "steps": steps,
        "images": count,
        "cpu_seconds": {name: [round(s, 2) for s in seconds] for name, seconds in times.items()},
        "throughput_of_16_people": round(one / many, 4),
        "throughput_of_16_people_and_prompts": round(
            middle["one person, 16 prompts"] / middle["16 people, 16 prompts"], 4
        ),
        "largest_difference_to_alone": largest,
    }


def time_in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the CPU seconds of each call in `ROUNDS` rounds, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:
                times[name].append(time.process_time() - started)
    return times


def compare_alone(image: GeneratedImage, person: Identity, backbone: Backbone, config: Config) -> int:
    """Return the largest difference, in grey levels, of an image of a batch to the same one drawn alone."""
    (alone,) = sefi.generate(image.prompt, person, backbone=backbone, config=config, seed=image.seed)
    return compare_pixels(image.pixels, alone.pixels)


def compare_pixels(first: Image.Image, second: Image.Image) -> int:
    """Return the largest difference of two images in grey levels."""
    one, other = (np.asarray(image.convert("RGB"), np.int16) for image in (first, second))
    return int(np.abs(one - other).max())


def measure_parts(steps: int, count: int = 16) -> dict[str, Any]:
    """Measure what a batch of one person and one of as many people spend on texts, and what both spend on all else.

    The two differ in nothing but the texts: their steps and their decoding are the same calls on tensors of the same
    shapes. So the ratio of whole batches follows from the parts.
    """
    backbone = sefi.open_backbone()
    people = make_people(backbone, count)
    same = ["a photo of <p0> at the beach"] * count
    each = [f"a photo of <p{n}> {SCENES[n % len(SCENES)]}" for n in range(count)]
    stages = [(2 * stage + 1) * backbone.num_train_timesteps // 10 for stage in range(5)]
    unet = copy_with_key_value_attention(backbone.unet)
    context = IdentityConditioner(backbone, people).encode_prompts(each, 500).states
    side, channels = backbone.latent_size, backbone.latent_channels
    noise = torch.randn(2 * count, channels, side, side, generator=torch.Generator().manual_seed(0))

    def encode(prompts: list[str], who: list[Identity]) -> None:
        conditioner = IdentityConditioner(backbone, who)
        for timestep in stages:
            conditioner.encode_prompts(prompts, timestep)

    calls: dict[str, Callable[[], object]] = {
        "texts of one person": lambda: encode(same, people[:1]),
        "texts of 16 people": lambda: encode(each, people),
        "step": lambda: unet(noise, torch.tensor(500), torch.cat([context, context])),
    }
    with torch.no_grad():
        times = time_in_turn(calls)
    one, many, step = (statistics.median(times[name]) for name in calls)
    return {
        "steps": steps,
        "images": count,
        "cpu_seconds": {name: [round(second, 3) for second in seconds] for name, seconds in times.items()},
        "throughput_of_16_people": round((one + steps * step) / (many + steps * step), 4),
    }


# ------------------------------------------------------------------ reading identities


def measure_reading(count: int = 200) -> dict[str, Any]:
    """Measure how long a server takes for an identity that it reads, and for one that it holds, in milliseconds."""
    from sefi.serve.app import open_identities  # noqa: PLC0415  needs the extra

    backbone = sefi.open_backbone()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for person in make_people(backbone, count):
            person.save(folder / f"{person.name}.safetensors")
        identities = open_identities(folder, backbone)
        identities.get("p0")  # loads what reading needs
        read = [time_get(identities.get, f"p{n}") for n in range(1, count)]
        again = [time_get(identities.get, f"p{n}") for n in range(1, count)]
    return {"identities": count - 1, "read_ms": describe_times(read), "held_ms": describe_times(again)}


def time_get(get: Callable[[str], object], name: str) -> float:
    """Return the CPU time of one call in milliseconds."""
    started = time.process_time()
    get(name)
    return 1000 * (time.process_time() - started)


def describe_times(values: Sequence[float]) -> dict[str, float]:
    """Return percentiles."""
    found = np.percentile(values, [50, 90, 99, 100]).tolist()
    return dict(zip(("p50", "p90", "p99", "max"), (round(one, 3) for one in found), strict=True))


# ------------------------------------------------------------------ load


class LoadTest:
    """Clients of a server that ask for people at random, and check every image.

    Args:
        address: of the server.
        references: the image of each person, prompt and seed, drawn alone.
    """

    def __init__(self, address: str, references: dict[tuple[str, int], Image.Image]) -> None:
        self.address, self.references = address, references
        self.seconds: list[float] = []
        self.found: Counter[str] = Counter()
        self.largest = 0
        self.lock = threading.Lock()

    def run(self, clients: int, seconds: float) -> None:
        """Let clients ask until the time is over."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self.ask_until, args=(end, number)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def ask_until(self, end: float, client: int) -> None:
        """Ask for one image after the other; where the server has no room, wait as long as it says."""
        choose = np.random.default_rng(client)
        keys = list(self.references)
        while time.monotonic() < end:
            key = keys[int(choose.integers(len(keys)))]
            started = time.monotonic()
            outcome, difference = self.ask(key)
            with self.lock:
                self.found[outcome] += 1
                self.largest = max(self.largest, difference)
                if outcome == "right":
                    self.seconds.append(time.monotonic() - started)

    def ask(self, key: tuple[str, int]) -> tuple[str, int]:
        """Ask for one image; return `right`, `mixed`, `busy` or the error, and the difference to the image alone."""
        body = dump_json({"prompt": key[0], "seed": key[1]}).encode()
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}/v1/generate", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=1000) as answer:  # noqa: S310
                difference = compare_pixels(Image.open(io.BytesIO(answer.read())), self.references[key])
        except urllib.error.HTTPError as error:
            if error.code == 429:
                time.sleep(float(error.headers["Retry-After"]))
                return "busy", 0
            return f"status {error.code}", 0
        except OSError as error:
            return type(error).__name__, 0
        return ("right" if difference <= 1 else "mixed"), difference


def run_load(clients: int, people: int, seconds: float, steps: int) -> dict[str, Any]:
    """Start a server, let clients ask, stop it with SIGTERM; return what they saw.

    The server leaves the invisible mark out, so that the pixels can be compared with those of each person alone.
    """
    backbone = sefi.open_backbone()
    everybody = make_people(backbone, people)
    config = override(DEFAULT, [f"generate.steps={steps}"])
    references: dict[tuple[str, int], Image.Image] = {}
    for number, person in enumerate(everybody):
        prompt = f"a photo of <{person.name}> {SCENES[number % len(SCENES)]}"
        (image,) = sefi.generate(prompt, person, backbone=backbone, config=config, seed=7)
        references[prompt, 7] = image.pixels
    with tempfile.TemporaryDirectory() as name:
        for person in everybody:
            person.save(Path(name) / f"{person.name}.safetensors")
        server, address = start_server(Path(name), steps, clients)
        try:
            test = LoadTest(address, references)
            test.run(clients, seconds)
            metrics = read_metrics(address)
        finally:
            server.terminate()
            code = server.wait(120)
            if server.stdout is not None:
                server.stdout.close()
    distances = [
        compare_pixels(one, other) for n, one in enumerate(references.values()) for other in [*references.values()][:n]
    ]
    wrong = sum(count for outcome, count in test.found.items() if outcome not in ("right", "busy", "mixed"))
    return {
        "clients": clients,
        "people": people,
        "seconds": seconds,
        "steps": steps,
        "images": test.found["right"],
        "mixed": test.found["mixed"],
        "errors": wrong,
        "outcomes": dict(test.found),
        "largest_difference_to_alone": test.largest,
        "smallest_difference_between_people": min(distances),
        "latency_seconds": describe_times(test.seconds),
        "images_per_batch": round(metrics["sefi_images_total"] / metrics["sefi_batch_images_count"], 2),
        "exit_code": code,
    }


def start_server(folder: Path, steps: int, clients: int) -> tuple["subprocess.Popen[str]", str]:
    """Start the program on a free port; return it and its address."""
    command = [sys.executable, "-m", "sefi", "serve", "--identities", str(folder), "--port", "0", "--json", "--no-mark"]
    command += ["--set", f"generate.steps={steps}", "--max-queue", str(2 * clients), "--timeout", "900"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert server.stdout is not None
    return server, str(json.loads(server.stdout.readline())["address"])


def read_metrics(address: str) -> dict[str, float]:
    """Return what the server counts."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def main() -> None:
    """Measure what is named, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parts", "batch", "identities", "load"))
    parser.add_argument("--steps", type=int, help="denoising steps: 50 for parts and batch, 2 for load")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "batch":
        write_part("batch", measure_batches(given.steps or 50))
    elif given.what == "parts":
        write_part("parts", measure_parts(given.steps or 50))
    elif given.what == "identities":
        write_part("identities", measure_reading())
    else:
        write_part("load", run_load(given.clients, given.people, given.seconds, given.steps or 2))


if __name__ == "__main__":
    main()
