"""Steps that make a person more alike: the second recogniser on the clean image that a prediction means."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone, compute_clean, move_to_device
from sefi.core.config import Config
from sefi.core.errors import REMARKS
from sefi.core.progress import Progress
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.schedulers import create_scheduler
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.evaluation.second_recogniser import embed_faces, load_second_recogniser
from sefi.identity.file import Tensors
from sefi.identity.tokens import IdentityTokens, get_stages
from sefi.photo.augment import PhotoViews, convert_to_bytes
from sefi.photo.detect import YuNetDetector
from sefi.training.loop import Numbers, train
from sefi.training.token_inversion import TrainingModel, draw_noise, encode_key_value_texts, encode_training_texts

LOGGER = logging.getLogger(REMARKS)
# None of them is a prompt of the benchmark.
SENTENCES = (
    "a photo of {}",
    "a photo of a face of {}",
    "a photo of {} smiling",
    "a photo of {} in the snow",
    "a photo of {} in the mountains",
    "a photo of {} in a garden",
    "a painting of {} in a garden",
    "a drawing of {} in the mountains",
)
DENOISING_STEPS = 12
SAMPLES = 4  # of a step
RATE = 5e-3
CHANGE_LIMIT = 0.3  # as `learn.change_limit`, from the tokens that were learned before; nothing where noise is most


class PersonTask:
    """The likeness of predicted faces to the photo's, for tokens that are learned already.

    An image of each sentence is generated once, with the tokens as they are, and all latents on the way are stored. A
    step takes some of them, in the stages in which a face takes shape, predicts the clean image with guidance, aligns
    the face where it was in the end, and takes 1 - cos(f(predicted face), f(photo's face)) as loss.

    Source: the identity loss of PuLID (NeurIPS 2024) on one-step predictions as of ReFL (ImageReward, NeurIPS 2023).
    Differs: tokens are learned instead of adapters, on latents of the model's own images instead of fresh ones.

    Attributes:
        landmarks: of the face in each sentence's image that shows exactly one, by the sentence's number, `[5, 2]`.

    Args:
        views: of photos whose face is known.
        seed: of the images' noise and of what a step takes.
        tokens: what is learned.
    """

    def __init__(
        self, backbone: Backbone, views: PhotoViews, config: Config, seed: int, tokens: IdentityTokens
    ) -> None:
        self.backbone, self.config, self.seed = backbone, config, seed
        self.tokens = tokens.to(backbone.device)
        self.weights: nn.Module = self.tokens
        self.training_key: dict[str, Any] = {}  # no checkpoint of it is written
        self.texts = encode_training_texts(backbone, config.learn.model_copy(update={"templates": SENTENCES}))
        self.model = TrainingModel(backbone, steered=False)
        self.recogniser = load_second_recogniser().to(backbone.device)
        crops = torch.stack(tuple(views.crops)).to(backbone.device)
        places = torch.tensor([face.landmarks for face in views.faces]) * crops.shape[-1]
        self.wanted = F.normalize(embed_faces(self.recogniser, crops, places).mean(0), dim=0)
        self.path: list[tuple[int, Tensor, Tensor]] = []  # timestep, latents, the prediction without a prompt
        self.landmarks: dict[int, Tensor] = {}

    @torch.no_grad()
    def generate_images(self, progress: Progress) -> None:
        """Generate an image of each sentence; store its latents and where its face is."""
        count, tokens = len(SENTENCES), self.tokens()
        scheduler = create_scheduler(self.backbone, "ddim", DENOISING_STEPS)
        scheduler.set_timesteps(DENOISING_STEPS)
        side = self.backbone.latent_size
        like = torch.empty((count, self.backbone.latent_channels, side, side), dtype=self.backbone.dtype)
        latents = draw_noise(like.to(self.backbone.device), create_generator(self.seed, "person"))
        plain = IdentityConditioner(self.backbone, []).encode_negative(count)
        progress.start(DENOISING_STEPS, "images to compare")
        for timestep in scheduler.timesteps:
            times = torch.full((count,), int(timestep), device=latents.device)
            unguided = self.backbone.predict(latents, times, plain, self.model.unet)
            self.path.append((int(timestep), latents, unguided))
            numbers = torch.arange(count, device=latents.device)
            guided = self.predict_guided(tokens, latents, unguided, times, numbers)
            latents = scheduler.step(guided, timestep, latents).prev_sample
            progress.advance()
        progress.finish()
        detector = YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR)
        for number, image in enumerate(self.backbone.decode(latents).float().cpu()):
            faces = detector(convert_to_bytes(image))
            if len(faces) == 1:
                self.landmarks[number] = torch.tensor(faces[0].landmarks)

    def predict_guided(
        self, tokens: Tensor, latents: Tensor, unguided: Tensor, times: Tensor, numbers: Tensor
    ) -> Tensor:
        """Predict with guidance, for the sentences of these numbers; differentiable in the tokens."""
        stages = get_stages(times, len(tokens), self.backbone.num_train_timesteps)
        context = encode_key_value_texts(self.model.backbone, self.texts, numbers, tokens[stages])
        guided = self.backbone.predict(latents, times, context, self.model.unet)
        return unguided + self.config.generate.guidance_scale * (guided - unguided)

    def compute_loss(self, step: int) -> tuple[Tensor, Numbers]:
        """Return the loss of some of the stored latents, and the likeness that it is."""
        random, tokens = create_generator(self.seed, "person", step), self.tokens()
        chosen = self.list_latents(len(tokens))
        places = [chosen[one] for one in torch.randint(len(chosen), (SAMPLES,), generator=random).tolist()]
        shown = list(self.landmarks)
        numbers = [shown[one] for one in torch.randint(len(shown), (SAMPLES,), generator=random).tolist()]
        pairs = list(zip(places, numbers, strict=True))
        latents, unguided = (torch.stack([self.path[at][part][number] for at, number in pairs]) for part in (1, 2))
        times, sentences = (
            move_to_device(torch.tensor(one), latents.device) for one in ([self.path[at][0] for at in places], numbers)
        )
        predicted = self.predict_guided(tokens, latents, unguided, times, sentences)
        alphas, kind = self.backbone.scheduler.alphas_cumprod, self.backbone.prediction_type
        clean = compute_clean(latents, predicted, times, alphas, kind)
        images = self.backbone.decode_with_gradients(clean).float()
        faces = embed_faces(self.recogniser, images, torch.stack([self.landmarks[one] for one in numbers]))
        likeness = (faces @ self.wanted).mean()
        return 1 - likeness, {"likeness": likeness.detach()}

    def list_latents(self, stages: int) -> list[int]:
        """Return which of the stored latents are used: not those of the most noise, nor of the least, if others are.

        Where noise is most there is no face yet, where it is least the face does not change any more.
        """
        total = self.backbone.num_train_timesteps
        found = get_stages(torch.tensor([one[0] for one in self.path]), stages, total).tolist()
        inner = [place for place, stage in enumerate(found) if 0 < stage < stages - 1]
        return inner or list(range(len(found)))

    def after_step(self) -> None:
        """Apply the limits of the tokens."""
        self.tokens.after_step()

    @torch.no_grad()
    def get_identity_tensors(self) -> Tensors:
        """Return the tokens as generation uses them; in the CPU's memory."""
        return {"tokens": self.tokens().detach().cpu().clone()}


def make_person_config(config: Config) -> Config:
    """Return the settings of these steps; how tokens hold their norm stays."""
    changed = {
        "steps": config.learn.person_steps,
        "learning_rate": RATE,
        "rate_schedule": "cosine",
        "weight_decay": 0.0,
        "gradient_clip": None,
        "change_limit": CHANGE_LIMIT,
        "noise_freedom": 0.0,
        "token_average": 0.0,
        "probe_every": 0,
        "expansion": "direct",
        "residual_init": True,
    }
    return config.model_copy(update={"learn": config.learn.model_copy(update=changed)})


def make_more_alike(task: PersonTask, progress: Progress) -> tuple[Tensors, dict[str, float]]:
    """Take the steps; return the tensors of the identity and the last step's numbers.

    Where no image shows exactly one face there are no tensors, and `not_compared` is 1, which is remarked on.

    Raises:
        Interrupted: the user stopped it; nothing of it is saved.
        ConfigError: as `sefi.training.loop.train`.
    """
    task.generate_images(progress)
    if not task.landmarks:
        LOGGER.warning("learn.person_steps had no effect: none of %d images shows exactly one face", len(SENTENCES))
        return {}, {"not_compared": 1}
    return train(task, task.config, progress)
