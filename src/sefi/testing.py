"""What every method must do, as checks for the tests of packages that bring one; no test runner is imported.

A test file of such a package, for pytest:

    import pytest
    from sefi.testing import CHECKS, try_method

    @pytest.fixture(scope="module")
    def trial():
        return try_method("mine")

    @pytest.mark.parametrize("check", CHECKS)
    def test_mine_does_what_every_method_does(trial, check):
        check(trial)

Each check raises an AssertionError that says what is wrong. They run on the embedded model.
"""

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from sefi.api import find_evaluators, generate, learn
from sefi.backbone.bundle import Backbone, add_noise, compute_target
from sefi.backbone.open import MODELS, create_empty_stable_diffusion, open_backbone
from sefi.core.config import Config, choose_start, override, parse_saved_config
from sefi.core.errors import IdentityError
from sefi.core.rng import create_generator
from sefi.diffusion.attention import copy_with_key_value_attention
from sefi.diffusion.sampling import ConditionedModel
from sefi.identity.file import Identity
from sefi.methods import (
    METHODS,
    PRESETS,
    get_method,
    get_preset,
    name_default_preset,
    name_published_preset,
    select_read_settings,
)
from sefi.methods.base import check_method
from sefi.photo.read import convert_to_pixels

PORTRAIT = MODELS / "demo" / "portrait.png"
FEW = ("learn.steps=12", "learn.batch=2", "views.latent_pool=3", "tune.prior_images=1", "generate.steps=2")
UNTRAINED = ("learn.steps=1", "learn.learning_rate=1e-12", "tune.prior_images=0")
TIMES = (100, 300, 500, 700, 900)
LARGEST_SIZE_ERROR = 0.15  # share of what `MethodInfo.kilobytes` says
SUBJECT = "a photo of <ada> at the beach"
CLASS = "a photo of person at the beach"


@dataclass(frozen=True)
class Trial:
    """A method and a subject that it has learned in a few steps.

    Attributes:
        name: of the method.
        config: what it learned with.
        backbone: the embedded model.
        half: the same in bfloat16.
        identity: what it learned of the portrait.
        changes: what learning has changed of the model, by name; nothing, if all is well.
    """

    name: str
    config: Config
    backbone: Backbone
    half: Backbone
    identity: Identity
    changes: tuple[str, ...]

    def apply(self, backbone: Backbone, identities: Sequence[Identity], strength: float = 1.0) -> ConditionedModel:
        """Return the method applied to identities."""
        return METHODS[self.name].apply(identities, backbone, strength)


Check = Callable[[Trial], None]


def try_method(
    name: str, settings: Sequence[str] = (), backbone: Backbone | None = None, half: Backbone | None = None
) -> Trial:
    """Learn the portrait of the package with a method's default preset and few steps.

    Args:
        name: of the method.
        settings: what else differs, as `learn.learning_rate=5e-3`: twelve steps must make the loss fall.
        backbone: the embedded model; None opens it.
        half: the same in bfloat16; None opens it.

    Raises:
        SefiError: there is no such method, or it refuses the settings, the photo or the model.
    """
    get_method(name)
    preset = name_default_preset(name)
    config = get_preset(preset, [*select_read_settings(get_preset(preset), FEW), *settings])
    backbone = backbone or open_backbone()
    before = record_state(backbone)
    identity = learn(PORTRAIT, name="ada", backbone=backbone, config=config, seed=1)
    changes = tuple(list_differences(before, record_state(backbone)))
    return Trial(name, config, backbone, half or open_backbone(dtype=torch.bfloat16), identity, changes)


def check_presets(trial: Trial) -> None:
    """Check that the method accepts each of its presets."""
    presets = [config for config in PRESETS.values() if config.method == trial.name]
    require(bool(presets), f"{trial.name} has no presets.")
    for config in presets:
        check_method(METHODS[trial.name], trial.backbone, config, find_evaluators(trial.backbone))


def check_settings_are_saved(trial: Trial) -> None:
    """Check that an identity says with which settings it was learned, those of its method alone included."""
    saved = parse_saved_config(trial.identity.header.settings, METHODS[trial.name].config_type)
    chosen = [choose_start(trial.config, encoder=found) for found in (True, False)]
    require(saved in chosen, f"It was learned with {chosen[0]!r}, and {saved!r} is saved.")


def check_counts(trial: Trial) -> None:
    """Check that weights are counted on a model without values, and that some are where learning makes a loss fall."""
    config = get_preset(name_published_preset(trial.name))
    counts = METHODS[trial.name].count_weights(create_empty_stable_diffusion(), config)
    require(counts.trained >= 0 and counts.added >= 0, f"A count is below 0: {counts}.")
    require(counts.trained + counts.added > 0, "Nothing is learned and nothing is added.")


def check_learning_leaves_no_trace(trial: Trial) -> None:
    """Check that learning changed nothing of the model."""
    require(not trial.changes, f"Learning changed {', '.join(trial.changes)}.")


def check_loss_falls(trial: Trial) -> None:
    """Check that the loss is lower than before learning, where the method learns anything of a subject."""
    if not METHODS[trial.name].count_weights(trial.backbone, trial.config).trained:
        return
    config = override(trial.config, select_read_settings(trial.config, UNTRAINED))
    untrained = learn(PORTRAIT, name="ada", backbone=trial.backbone, config=config, seed=1)
    before, after = (compute_error(trial, identity) for identity in (untrained, trial.identity))
    require(after < before, f"The denoising error is {after:.4f} after learning and {before:.4f} before.")


def check_file_keeps_everything(trial: Trial) -> None:
    """Check that an identity is the same after it was saved and loaded."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ada.safetensors"
        trial.identity.save(path)
        loaded = Identity.load(path)
    tensors = trial.identity.tensors
    require(loaded.header == trial.identity.header, "The header differs after loading.")
    require(loaded.tensors.keys() == tensors.keys(), f"The file holds {list(loaded.tensors)}, not {list(tensors)}.")
    changed = [name for name, tensor in tensors.items() if not torch.equal(loaded.tensors[name], tensor)]
    require(not changed, f"Tensors differ after loading: {', '.join(changed)}.")


def check_file_size(trial: Trial) -> None:
    """Check that an identity's file is as large as the method says."""
    with TemporaryDirectory() as folder:
        trial.identity.save(Path(folder) / "ada.safetensors")
        found = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1000
    stated = METHODS[trial.name].info.kilobytes
    require(abs(found - stated) <= LARGEST_SIZE_ERROR * stated, f"The file has {found:.1f} KB, not {stated:g}.")


def check_subject_is_generated(trial: Trial) -> None:
    """Check that an image of the subject differs from one of the class word, and that drawing leaves no trace."""
    before = record_state(trial.backbone)
    subject, plain = (
        generate(prompt, identities, backbone=trial.backbone, config=trial.config, seed=3)[0].pixels.tobytes()
        for prompt, identities in ((SUBJECT, [trial.identity]), (CLASS, []))
    )
    require(subject != plain, "The subject's image is that of the class word.")
    changes = list_differences(before, record_state(trial.backbone))
    require(not changes, f"Drawing changed {', '.join(changes)}.")


def check_half_precision(trial: Trial) -> None:
    """Check that what was learned serves the same model in half precision, and changes nothing of it."""
    before = record_state(trial.half)
    subject = [trial.identity]
    wide, narrow = (predict(backbone, trial.apply(backbone, subject)) for backbone in (trial.backbone, trial.half))
    plain = predict(trial.half, apply_nothing(trial.half), CLASS)
    lost, changed = float((narrow - wide).norm()), float((narrow - plain).norm())
    require(lost < 0.5 * changed, f"Half precision changes the prediction by {lost:.3f}, the subject by {changed:.3f}.")
    changes = list_differences(before, record_state(trial.half))
    require(not changes, f"Applying changed {', '.join(changes)}.")


def check_strength_zero_is_class_word(trial: Trial) -> None:
    """Check that a strength of 0 gives the class word."""
    nothing = predict(trial.backbone, trial.apply(trial.backbone, [trial.identity], 0.0))
    plain = predict(trial.backbone, apply_nothing(trial.backbone), CLASS)
    torch.testing.assert_close(nothing, plain)


def check_prompt_is_not_shared(trial: Trial) -> None:
    """Check that identities of two methods are refused together."""
    header = trial.identity.header.model_copy(update={"name": "bob", "method": "another"}, deep=True)
    both = [trial.identity, replace(trial.identity, header=header)]
    try:
        generate("a photo of <ada> and <bob>", both, backbone=trial.backbone)
    except IdentityError as error:
        require("do not fit together" in error.problem, f"They are refused for another reason: {error.problem}")
    else:
        require(condition=False, problem="They are drawn.")


CHECKS: tuple[Check, ...] = (
    check_presets,
    check_settings_are_saved,
    check_counts,
    check_learning_leaves_no_trace,
    check_loss_falls,
    check_file_keeps_everything,
    check_file_size,
    check_subject_is_generated,
    check_half_precision,
    check_strength_zero_is_class_word,
    check_prompt_is_not_shared,
)
"""All checks, cheap ones first."""


def require(condition: bool, problem: str) -> None:  # noqa: FBT001
    """Raise an AssertionError unless a condition holds; unlike `assert` also where Python leaves those out.

    Raises:
        AssertionError: it does not.
    """
    if not condition:
        raise AssertionError(problem)


def apply_nothing(backbone: Backbone) -> ConditionedModel:
    """Return the model as it is, with a conditioner for plain words."""
    return METHODS[Config().method].apply([], backbone)


@torch.no_grad()
def predict(backbone: Backbone, model: ConditionedModel, prompt: str = SUBJECT) -> Tensor:
    """Return what a model takes from a little noise for a prompt, float32."""
    shape = (1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noisy = torch.randn(shape, generator=create_generator(6, "half")).to(backbone.dtype)
    context = model.conditioner.encode_prompts([prompt], 300).to(backbone.dtype)
    unet = copy_with_key_value_attention(model.backbone.unet)
    return model.backbone.predict(noisy, torch.tensor([300]), context, unet).float()


@torch.no_grad()
def compute_error(trial: Trial, identity: Identity) -> float:
    """Return the squared denoising error of the portrait, summed over timesteps; the noise is always the same."""
    backbone = trial.backbone
    side = backbone.resolution
    square = convert_to_pixels(Image.open(PORTRAIT).convert("RGB").resize((side, side)))
    latents = backbone.encode_image(square[None])
    noise = torch.randn(latents.shape, generator=create_generator(5, "probe"))
    model = trial.apply(backbone, [identity])
    unet = copy_with_key_value_attention(model.backbone.unet)
    total = 0.0
    for t in map(torch.tensor, TIMES):
        noisy = add_noise(latents, noise, t[None], backbone.scheduler.alphas_cumprod)
        context = model.conditioner.encode_prompts(["a photo of <ada>"], int(t))
        predicted = model.backbone.predict(noisy, t[None], context, unet)
        wanted = compute_target(latents, noise, t[None], backbone.scheduler.alphas_cumprod, backbone.prediction_type)
        total += float((predicted - wanted).pow(2).mean())
    return total


def record_state(backbone: Backbone) -> dict[str, object]:
    """Return everything that a call could leave behind: on the modules, on their parameters, in the process."""
    levels = [logging.getLogger(name).getEffectiveLevel() for name in ("diffusers", "transformers")]
    state: dict[str, object] = {
        "rng": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "verbosity": levels,
        "level": logging.getLogger().level,
    }
    for part, network in backbone.networks.items():
        for name, module in network.named_modules():
            place = f"{part}.{name}"
            state[place] = id(module)
            for attribute, value in vars(module).items():
                state[f"{place}:{attribute}"] = tuple(map(id, value.values())) if isinstance(value, dict) else id(value)
        for name, weight in network.named_parameters():
            state[f"{part}.{name}="] = weight.detach().clone()
            state[f"{part}.{name}?"] = (weight.requires_grad, weight.grad is None, weight.data_ptr())
    return state


def list_differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what differs between two states."""

    def is_same(one: object, other: object) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return torch.equal(one, other)
        return one == other

    names = before.keys() | after.keys()
    return sorted(n for n in names if n not in before or n not in after or not is_same(before[n], after[n]))
