"""Learn several identities in one pass of the model: samples of all in one batch, everything else apart."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import TextEncoding, join_batches
from sefi.core.config import Config, LearnSettings
from sefi.core.errors import (
    ConfigError,
    Interrupted,
    SefiError,
    delay_interrupts,
    is_out_of_memory,
    make_interrupted,
    release_memory,
    shorten_reason,
)
from sefi.core.progress import Progress
from sefi.diffusion.attention import LossOptions
from sefi.diffusion.text import join_texts
from sefi.identity.file import Tensors
from sefi.identity.tokens import get_stages
from sefi.training.loop import IdentityTrainer, LossPart, PeriodicSaver, Probe, read_numbers, summarise_step
from sefi.training.token_inversion import (
    Losses,
    TokenTask,
    TrainingBatch,
    TrainingModel,
    compute_denoising_loss,
    is_attention_steered,
    needs_both_gradients,
    place_tokens,
    weight_by_gradients,
)

AT_ONCE = 16
# What belongs to the one pass through the denoiser, which all share.
SHARED = ("attention_loss", "attention_reduction", "attention_option", "detach_query", "compile")


@dataclass(frozen=True)
class JointTraining:
    """One of several identities that are learned together.

    Attributes:
        task: of tokens.
        config: its settings; what belongs to the pass through the denoiser is equal for all.
        checkpoint: file to resume from and to save to; None saves nothing.
        probe: as `sefi.training.loop.train` takes it.
    """

    task: TokenTask
    config: Config
    checkpoint: Path | None = None
    probe: Probe | None = None


Outcome = tuple[Tensors, dict[str, float]] | SefiError


def train_together(learners: Sequence[JointTraining], progress: Progress, at_once: int = AT_ONCE) -> list[Outcome]:
    """Train tasks in passes of several; return what `train` returns of each, or why one of them could not be learned.

    The loss of a pass is the sum over its identities, so the gradient of each is what it is alone, but for rounding:
    how many samples are in a batch changes the last bits. Steps, random streams, optimiser, limits, stopping and what
    is done where a loss is not finite are each identity's own, and so is an error: of a probe, of a checkpoint that is
    damaged or cannot be written. One that is finished makes room for the next. Where there is no memory for so many,
    half as many are learned together from then on. The tasks share one copy of the model from now on.

    Args:
        at_once: most identities in a pass.

    Raises:
        ConfigError: the tasks have other models, image sizes or attention losses.
        Interrupted: the user stopped it; the checkpoints, where they were asked for, are saved.
    """
    check_learners(learners)
    for one in learners:
        one.task.model = learners[0].task.model
    trainers = [IdentityTrainer(one.task, one.config, one.probe) for one in learners]
    group = TrainingGroup(trainers, [one.checkpoint for one in learners], at_once)
    group.resume()
    progress.start(sum(one.options.steps - one.done for one in trainers), f"learning {len(trainers)} identities")
    try:
        for advanced in group.take_steps():
            for trainer in advanced:
                progress.advance(**trainer.numbers)
    except KeyboardInterrupt as stop:
        raise save_all(group, stop) from None
    progress.finish()
    return [group.failed.get(trainer) or collect_outcome(trainer) for trainer in trainers]


def check_learners(learners: Sequence[JointTraining]) -> None:
    """Refuse tasks that cannot share a pass through the denoiser.

    Raises:
        ConfigError: names what differs.
    """
    for one in learners[1:]:
        first = learners[0]
        differing = [
            f"learn.{name}" for name in SHARED if getattr(one.config.learn, name) != getattr(first.config.learn, name)
        ]
        if is_attention_steered(one.config.learn) != is_attention_steered(first.config.learn):
            differing.append("learn.attention_weight")
        if one.task.backbone is not first.task.backbone:
            differing.append("the model")
        if differing:
            raise ConfigError(
                f"Identities that are learned together differ in {', '.join(differing)}.",
                "Give all the same, or learn them apart.",
            )


class TrainingGroup:
    """Trainers that take their steps together, as many at once as there is room for.

    Attributes:
        failed: the error of each that cannot go on.

    Args:
        trainers: in the order in which they begin.
        checkpoints: of each; None saves nothing.
    """

    def __init__(
        self, trainers: Sequence[IdentityTrainer], checkpoints: Sequence[Path | None], at_once: int = AT_ONCE
    ) -> None:
        self.trainers, self.checkpoints, self.at_once = trainers, checkpoints, at_once
        self.savers = [PeriodicSaver(one, path) for one, path in zip(trainers, checkpoints, strict=True)]
        self.failed: dict[IdentityTrainer, SefiError] = {}

    def do_for(self, trainer: IdentityTrainer, work: Callable[[], object]) -> None:
        """Do what concerns one identity; where it fails, that one is left out from now on."""
        if trainer not in self.failed:
            try:
                work()
            except SefiError as error:
                self.failed[trainer] = error

    def resume(self) -> None:
        """Restore the checkpoints that are there, and see whether there is space for that of each by itself."""
        for trainer, checkpoint in zip(self.trainers, self.checkpoints, strict=True):
            self.do_for(trainer, partial(trainer.resume, checkpoint))
            if checkpoint is not None and not trainer.is_finished():
                self.do_for(trainer, partial(trainer.check_space, checkpoint))

    def take_steps(self) -> Iterator[list[IdentityTrainer]]:
        """Take steps until all are finished; yield those that have taken one after each pass."""
        while active := self.find_active():
            with delay_interrupts(second_stops=True):
                self.take_step(active)
                for trainer, saver in zip(self.trainers, self.savers, strict=True):
                    if trainer in active:
                        self.do_for(trainer, saver.save_if_due)
            yield active

    def find_active(self) -> list[IdentityTrainer]:
        """Return the first that are not finished, as many as take a step together; scores that are due are taken."""
        active: list[IdentityTrainer] = []
        for trainer in self.trainers:
            if len(active) == self.at_once:
                break
            self.do_for(trainer, trainer.score_if_due)
            if trainer not in self.failed and not trainer.is_finished():
                active.append(trainer)
        return active

    def take_step(self, trainers: Sequence[IdentityTrainer]) -> None:
        """Take a step of each in one pass; in two where there is no memory for it."""
        if len(trainers) == 1:  # alone it may also split its samples
            self.do_for(trainers[0], partial(take_step_alone, trainers[0]))
            return
        reason = ""
        try:
            parts = compute_gradients_together(trainers)
        except (RuntimeError, MemoryError, SefiError) as error:
            if not is_out_of_memory(error):
                raise
            parts, reason = None, shorten_reason(error)
        if parts is None:  # outside of the handler: what the failed try held is free by now
            release_memory(reason)
            self.at_once = min(self.at_once, (len(trainers) + 1) // 2)
            for half in (trainers[: self.at_once], trainers[self.at_once :]):
                self.take_step(half)
            return
        listed = [trainer.clip_and_list([part]) for trainer, part in zip(trainers, parts, strict=True)]
        read = iter(read_numbers([number for some in listed for number in some]))  # of all in one go
        for trainer, part, some in zip(trainers, parts, listed, strict=True):
            trainer.set_step_rate(trainer.done)
            numbers = summarise_step([part], [next(read) for _ in some])
            trainer.numbers = trainer.apply_step(trainer.done, numbers)


def take_step_alone(trainer: IdentityTrainer) -> None:
    """Take a step of one identity."""
    trainer.numbers = trainer.take_step(trainer.done)


def compute_gradients_together(trainers: Sequence[IdentityTrainer]) -> list[LossPart]:
    """Compute the gradients of a step of each trainer in one pass; return the loss and the numbers of each."""
    for trainer in trainers:
        trainer.optimiser.zero_grad(set_to_none=True)
    tasks = [get_token_task(trainer) for trainer in trainers]
    steps = [trainer.done for trainer in trainers]
    inputs = [task.draw_step(step) for task, step in zip(tasks, steps, strict=True)]
    measured = [task.is_measured(step) for task, step in zip(tasks, steps, strict=True)]
    parts: list[LossPart] = []
    for task, step, (tokens, _), losses in zip(
        tasks, steps, inputs, compute_losses_together(tasks, inputs, measured), strict=True
    ):
        loss, numbers = task.add_context_loss(losses.total, task.list_numbers(losses, tokens), tokens, step)
        parts.append((1.0, loss, numbers))
    # The gradient of a sum is that of each: no identity's tokens are in another's samples.
    torch.stack([loss.to(torch.float32) for _, loss, _ in parts]).sum().backward()
    return [(share, loss.detach(), numbers) for share, loss, numbers in parts]


def get_token_task(trainer: IdentityTrainer) -> TokenTask:
    """Return the task of a trainer, which is one of tokens."""
    task = trainer.task
    assert isinstance(task, TokenTask)
    return task


def compute_losses_together(
    tasks: Sequence[TokenTask], inputs: Sequence[tuple[Tensor, TrainingBatch]], measured: Sequence[bool]
) -> list[Losses]:
    """Compute the losses of each task as `compute_losses` does, in one pass through the model.

    Args:
        inputs: tokens and batch of each.
        measured: which of them measure the share of the gradient on the keys.
    """
    model, settings = tasks[0].model, tasks[0].config.learn
    batch = join_training_batches([one for _, one in inputs])
    context = encode_texts_together(model, tasks, inputs)
    options = make_joint_options(tasks, [one for _, one in inputs], settings)
    several = (needs_both_gradients(t.config.learn, measured=m) for t, m in zip(tasks, measured, strict=True))
    prediction, target, attention = model.predict(batch, context, options, differentiated_once=not any(several))
    sizes = [len(one.latents) for _, one in inputs]
    denoise = [
        compute_denoising_loss(some, wanted, one.outside, task.config.learn.outside_weight)
        for task, (_, one), some, wanted in zip(
            tasks, inputs, prediction.split(sizes), target.split(sizes), strict=True
        )
    ]
    if attention is None:
        nothing = denoise[0].new_zeros(())
        return [Losses(one, one, nothing) for one in denoise]
    steered = [one.mean() for one in attention.split(sizes)]
    return weight_losses_together(tasks, denoise, steered, [tokens for tokens, _ in inputs], measured)


def weight_losses_together(
    tasks: Sequence[TokenTask],
    denoise: Sequence[Tensor],
    attention: Sequence[Tensor],
    tokens: Sequence[Tensor],
    measured: Sequence[bool],
) -> list[Losses]:
    """Add both losses of each as `weight_losses` does; the gradients on the keys take two passes for all together."""
    settings = [task.config.learn for task in tasks]
    wanted = [one.attention_share for one in settings]
    if not any(measured) and not any(share is not None for share in wanted):
        return [
            Losses(pull + one.attention_weight * hold, pull, hold)
            for one, pull, hold in zip(settings, denoise, attention, strict=True)
        ]
    pulls, holds = (
        torch.autograd.grad(torch.stack(list(losses)).sum(), list(tokens), retain_graph=True)
        for losses in (denoise, attention)
    )
    found: list[Losses] = []
    for number, one in enumerate(settings):
        gradients = pulls[number], holds[number]
        needs = measured[number] or wanted[number] is not None
        losses = denoise[number], attention[number]
        found.append(weight_by_gradients(*losses, tokens[number], gradients, one, measured=needs))
    return found


def encode_texts_together(
    model: TrainingModel, tasks: Sequence[TokenTask], inputs: Sequence[tuple[Tensor, TrainingBatch]]
) -> TextEncoding:
    """Encode key, value and reference text of all samples in one batch, states `[batch, word, 3 * width]`."""
    ids: list[Tensor] = []
    rows: list[Tensor] = []
    masks: list[Tensor] = []
    references: list[TextEncoding] = []
    for task, (tokens, batch) in zip(tasks, inputs, strict=True):
        stage = get_stages(batch.timesteps, len(tokens), task.backbone.num_train_timesteps)
        placed = place_tokens(task.texts, batch.template_index, tokens.to(stage.device)[stage])
        for found, into in zip(placed, (ids, rows, masks), strict=True):
            into.append(found)
        references.append(task.texts.reference.select(batch.template_index))
    # All keys first, then all values.
    joined = [
        torch.cat([half for n in (0, 1) for half in (one.chunk(2)[n] for one in some)]) for some in (ids, rows, masks)
    ]
    key, value = model.backbone.encode_text(joined[0], joined[1], joined[2]).chunk(2)
    return join_texts(key, value, join_batches(references))


def join_training_batches(batches: Sequence[TrainingBatch]) -> TrainingBatch:
    """Return the samples of several batches as one; `outside` stays with each."""
    return TrainingBatch(
        torch.cat([one.latents for one in batches]),
        torch.cat([one.noise for one in batches]),
        torch.cat([one.timesteps for one in batches]),
        torch.cat([one.template_index for one in batches]),
    )


def make_joint_options(
    tasks: Sequence[TokenTask], batches: Sequence[TrainingBatch], settings: LearnSettings
) -> LossOptions:
    """Return what the attention loss compares in the samples of all."""
    words = [task.texts.compared_words[one.template_index] for task, one in zip(tasks, batches, strict=True)]
    latents, hinge = batches[0].latents, settings.attention_loss == "hinge"
    options = LossOptions(
        torch.cat(words),
        (int(latents.shape[-2]), int(latents.shape[-1])),
        settings.attention_reduction,
        settings.detach_query,
        hinge,
    )
    if not hinge or all(one.outside is None for one in batches):
        return options
    everywhere = [
        torch.ones_like(one.latents[:, :1], dtype=torch.float32) if one.outside is None else one.outside
        for one in batches
    ]
    return replace(options, outside=torch.cat(everywhere))


def collect_outcome(trainer: IdentityTrainer) -> Outcome:
    """Return what was learned, or the error of one whose loss was not finite too often."""
    try:
        trainer.check_strikes()
        return trainer.get_result(), trainer.numbers | trainer.describe_best() | trainer.describe_recovery()
    except ConfigError as error:
        return error


def save_all(group: TrainingGroup, stop: KeyboardInterrupt) -> Interrupted:
    """Save every training that has a checkpoint after Ctrl-C or SIGTERM; return the error that says so."""
    pairs = zip(group.trainers, group.checkpoints, strict=True)
    saved = [(one, path) for one, path in pairs if path is not None and one not in group.failed]
    for trainer, checkpoint in saved:
        group.do_for(trainer, partial(trainer.save, checkpoint))
    done = f"Stopped with {sum(one.is_finished() for one in group.trainers)} of {len(group.trainers)} learned"
    lost = [group.failed[trainer] for trainer, _ in saved if trainer in group.failed]
    if lost:
        problem = f"{done}; {len(lost)} of {len(saved)} could not be saved: {lost[0].problem}"
        return make_interrupted(stop, problem, lost[0].remedy)
    if not saved:
        return make_interrupted(stop, f"{done}; nothing was saved.", "Run it again.")
    return make_interrupted(stop, f"{done}; what was begun is saved.", "Run the same again to go on from there.")
