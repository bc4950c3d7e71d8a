"""What every method can do; generation, benchmark and command line ask no more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.encode import get_token_row
from sefi.conditioning.prompt import get_class_token_id
from sefi.core.config import Config, to_dict
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.protocols import Progress, SilentProgress
from sefi.generate.sampler import ConditionedModel
from sefi.learn.loop import Tensors, TrainingTask, train
from sefi.learn.tokens import TokenTraining
from sefi.photo.views import PhotoViews

LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class RunOptions:
    """How one training run is carried out.

    Attributes:
        progress: is advanced after every step.
        checkpoint: file to save an unfinished run to and to resume from; None saves nothing.
        probe: returns the score of an identity, the higher the better; called every `learn.probe_every` steps.
        judges: folder of the evaluators, for methods that need a recogniser; None: there is none.
    """

    progress: Progress = field(default_factory=SilentProgress)
    checkpoint: Path | None = None
    probe: Callable[[Identity], float] | None = None
    judges: Path | None = None


@dataclass(frozen=True)
class MethodInfo:
    """What a list of methods shows of one.

    Attributes:
        title: its name as people write it.
        paper: where it was published.
        licence: on what terms its authors' code is, and what that means here.
        alone: its subjects answer to the same word or change every weight, so that only one fits into a prompt.
    """

    title: str
    paper: str
    licence: str
    alone: bool = False


@dataclass(frozen=True)
class WeightCounts:
    """How many weights a method learns and adds, as the papers count them; recognisers and image encoders not counted.

    Attributes:
        trained: learned and kept for each subject.
        added: beside the model while learning, or for all subjects together.
    """

    trained: int
    added: int


class Method(Protocol):
    """A way to learn a subject and to apply what was learned; neither changes the model that it is given."""

    info: MethodInfo

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """What it learns and adds on this model; works on a model without values (the meta device)."""
        ...

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """Refuse what it cannot learn with, before anything is drawn or learned; whoever calls `learn` asks first.

        Raises:
            ConfigError: settings that it would pass over, or something that is missing.
        """
        ...

    def learn(
        self,
        name: str,
        views: PhotoViews,
        backbone: Backbone,
        config: Config,
        seed: int,
        options: RunOptions,
    ) -> Identity:
        """Learn the subject of these views."""
        ...

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return the model with whatever generation needs in it, and the conditioner.

        `backbone` stays as it is: what a method changes, it changes on a copy (`sefi.backbone.weights`). So people
        never mix, however many generators, threads and methods use one model, and nothing has to be undone.
        """
        ...


class TokenMethod:
    """A method whose identities are tokens and nothing else: any number of them share a prompt."""

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """The model itself, and a conditioner that writes the tokens into the sentences."""
        return ConditionedModel(backbone, IdentityConditioner(backbone, identities, strength))


def get_class_row(backbone: Backbone, config: Config) -> Tensor:
    """The token-table row of the class word, `[width]`."""
    return get_token_row(backbone, get_class_token_id(backbone.tokenizer, config.learn.class_word))


def create_header(name: str, backbone: Backbone, config: Config, seed: int) -> IdentityHeader:
    """What an identity says about itself."""
    return IdentityHeader(
        name=name,
        method=config.method,
        stages=config.learn.stages,
        base_model=backbone.fingerprint,
        signature=backbone.signature.stored() if backbone.signature else {},
        width=backbone.width,
        class_word=config.learn.class_word,
        settings=to_dict(config),
        seed=seed,
        library_versions={library: version(library) for library in LIBRARIES},
    )


def learn_identity(
    task: TrainingTask, name: str, backbone: Backbone, config: Config, seed: int, options: RunOptions
) -> Identity:
    """Train a task; return the identity."""
    header = create_header(name, backbone, config, seed)
    asked = options.probe

    def probe(kept: Tensors) -> float:
        return asked(Identity(kept, header)) if asked is not None else 0.0

    tensors, numbers = train(task, config, options.progress, options.checkpoint, None if asked is None else probe)
    return Identity(tensors, header.model_copy(update={"metrics": numbers}))


def learn_tokens(
    tokens: nn.Module,
    name: str,
    views: PhotoViews,
    backbone: Backbone,
    config: Config,
    seed: int,
    options: RunOptions,
) -> Identity:
    """Learn what gives tokens by denoising views, and by the attention loss where that has a weight."""
    task = TokenTraining(backbone, views, config, seed, tokens)
    return learn_identity(task, name, backbone, config, seed, options)
