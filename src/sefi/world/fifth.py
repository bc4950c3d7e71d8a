"""The fifth version's training: its parts in order, each resumable, and all of them in one call."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from safetensors.torch import load_file

from sefi.core.errors import ConfigError
from sefi.world.autoencoder_training import AutoencoderPlan, train_autoencoder
from sefi.world.data import draw_numbers
from sefi.world.diffusion_training import set_scaling
from sefi.world.feature_training import FeatureNetwork, FeatureRecipe, train_features
from sefi.world.lesson import save_whole
from sefi.world.train import Run
from sefi.world.training_times import TimedProgress

FEATURES = "features.safetensors"
# Drawings that the latents' scale is measured on.
SCALED = range(512)


def train_feature_network(run: Run) -> None:
    """Train the feature network of the perceptual loss."""
    network = train_features(FeatureRecipe(), run.seed, run.progress, run.keeping("features"), device=run.device)
    save_whole(network.state_dict(), run.folder / FEATURES)


def load_features(run: Run) -> FeatureNetwork:
    """Return the trained feature network."""
    network = FeatureNetwork()
    network.load_state_dict(load_file(run.need(FEATURES, "features")))
    return network


def train_vae(run: Run) -> None:
    """Train the autoencoder through all its stages."""
    plan = AutoencoderPlan()
    vae = train_autoencoder(
        plan,
        run.folder,
        run.seed,
        run.progress,
        resume=run.resume,
        features=partial(load_features, run),
        device=run.device,
    )
    set_scaling(vae, draw_numbers(SCALED))
    vae.save_pretrained(run.folder / "vae")


FIFTH_PARTS: dict[str, Callable[[Run], None]] = {
    "features": train_feature_network,
    "autoencoder": train_vae,
}


def train_part(part: str, run: Run) -> None:
    """Train one part of the fifth version into the run's folder; write its times down.

    Raises:
        ConfigError: there is no such part, or an earlier part is missing.
    """
    if part not in FIFTH_PARTS:
        raise ConfigError(f"There is no part {part!r}.", f"Choose one of {', '.join(FIFTH_PARTS)}, in this order.")
    FIFTH_PARTS[part](replace(run, progress=TimedProgress(run.progress, run.folder, part)))
