"""The protocol of a method, and what methods share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.backbone.kinds import USUAL_PREDICTIONS
from sefi.core.config import (
    NAMES_FILE,
    STARTING_PRESETS,
    Config,
    LearnSettings,
    Section,
    SettingsTree,
    choose_start,
    dump_config,
    parse_config,
    read_setting,
)
from sefi.core.errors import ConfigError
from sefi.core.progress import Progress, SilentProgress
from sefi.core.prompts import CHARACTERS, PEOPLE, is_person
from sefi.core.reading import InvalidFileError, read_user_text, translate_file_errors
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import ConditionedModel
from sefi.diffusion.text import compute_class_row, tokenize_text
from sefi.evaluation.encoders import DETECTOR, RECOGNISER, find_sface
from sefi.identity.file import (
    ONE_ENCODER_VERSION,
    SCHEMA_VERSION,
    TWO_ENCODER_VERSION,
    Identity,
    IdentityHeader,
    Tensors,
    compute_tokens_digest,
)
from sefi.photo.augment import PhotoViews
from sefi.provenance.run_record import collect_versions
from sefi.training.finetuning import ClassImages
from sefi.training.loop import IdentityTask, train
from sefi.training.memory import plan_memory
from sefi.training.token_inversion import ENCODE_AT_ONCE, TokenTask

NAME_WORDS = 2  # words of a name that count
FEWEST_NAMES = 2
LARGEST_LIST = 4 * 2**20  # bytes
MOST_NAMES, LONGEST_NAME = 50_000, 200


@dataclass(frozen=True)
class TrainingOptions:
    """How one training is carried out.

    Attributes:
        progress: is advanced after every step.
        checkpoint: file to save an unfinished training to and to resume from; None saves nothing.
        probe: returns the score of an identity, the higher the better; called every `learn.probe_every` steps.
        evaluators: folder of the evaluators, for methods that need a recogniser; None: there is none.
        init: an identity whose tokens are where learning starts, for methods that say `starts_from_tokens`.
        encoder_digest: of the name encoder's file, where `init` is what that reads in the photo.
        networks_digest: of the networks that the method reads the photo with, which sets it (`hash_face_networks`).
        memory: bytes that learning may take; see `sefi.training.memory.plan_memory`. None: whatever there is.
        class_images: that earlier trainings drew, for methods that draw any; None: none are kept for later ones.
    """

    progress: Progress = field(default_factory=SilentProgress)
    checkpoint: Path | None = None
    probe: Callable[[Identity], float] | None = None
    evaluators: Path | None = None
    init: Identity | None = None
    encoder_digest: str | None = None
    networks_digest: str | None = None
    memory: int | None = None
    class_images: ClassImages | None = None


@dataclass(frozen=True)
class MethodInfo:
    """What a list of methods and the table of docs/methods.md show of one.

    Attributes:
        title: its name as people write it.
        paper: where it was published.
        licence: on what terms its authors' code is, and what that means here.
        keeps: what an identity holds of the subject.
        kilobytes: size of an identity's file on the embedded model.
        needs: what it needs in addition to the photo.
        alone: its subjects answer to the same word or change every weight, so that only one fits into a prompt.
        reads_faces: it reads the photo with a face recogniser.
        trains_model: it trains weights of the model itself, in float32 only.
        starts_from_tokens: it goes on from `TrainingOptions.init`; the others are never given one.
        unread: settings that nothing of it depends on, as `learn.batch`; `check_method` refuses them.
    """

    title: str
    paper: str
    licence: str
    _: KW_ONLY
    keeps: str
    kilobytes: float
    needs: str = "nothing"
    alone: bool = False
    reads_faces: bool = False
    trains_model: bool = False
    starts_from_tokens: bool = False
    unread: tuple[str, ...] = ()


# What `MethodInfo.unread` is put together from: settings of the module; of the attention loss, where a method has none;
# of tokens by stage, where it has one token for all; of everything that is learned by tokens; of views that change more
# than size and side.
MODULE_SETTINGS = ("learn.residual_init", "learn.dropout")
ATTENTION_SETTINGS = tuple(
    f"learn.{name}"
    for name in ("attention_option", "attention_reduction", "attention_loss", "attention_share", "detach_query")
)
STAGE_SETTINGS = tuple(
    f"learn.{name}"
    for name in (
        "token_norm_limit", "hold_norm", "token_average", "change_limit", "noise_freedom", "start", "encoder",
        "person_steps"
    )
)  # fmt: skip
TOKEN_SETTINGS = tuple(
    f"learn.{name}" for name in ("stage_sampling", "context_weight", "photo_words", "outside_weight", "compile")
)
VIEW_SETTINGS = tuple(
    f"views.{name}"
    for name in (
        "brightness", "contrast", "saturation", "hue", "min_scale", "max_scale", "aspect", "canvas", "pool_noise"
    )
)  # fmt: skip


@dataclass(frozen=True)
class WeightCounts:
    """How many weights a method learns and adds, as the papers count them; recognisers and image encoders not counted.

    Attributes:
        trained: learned and saved for each subject.
        added: in addition to the model during training, or for all subjects together.
    """

    trained: int
    added: int


class Method(Protocol):
    """A way to learn a subject and to apply what was learned; neither changes the model that it is given."""

    info: MethodInfo

    @property
    def presets(self) -> Mapping[str, SettingsTree]:
        """Settings to start from, by the ending of the preset's name.

        A method `mine` with `{"": ..., "official": ...}` has the presets `mine`, which `--method mine` takes and
        which is made for the embedded model, and `mine-official`, the published recipe.
        """
        ...

    @property
    def config_type(self) -> type[Config]:
        """The class of its settings: `Config`, or one derived from it with sections of its own.

        The `config` that the method is given is of this class; `require_config` tells a type checker so.
        """
        ...

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count what it learns and adds on this model; works on a model without values (the meta device)."""
        ...

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Refuse what it cannot learn with, before anything is generated or learned; whoever calls `learn` asks first.

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
        options: TrainingOptions,
    ) -> Identity:
        """Learn the subject of these views."""
        ...

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return the model with whatever generation needs in it, and the conditioner.

        `backbone` stays as it is: what a method changes, it changes on a copy (`sefi.backbone.weights`). So people
        never mix, however many generators, threads and methods use one model, and nothing has to be undone.

        The settings are those that the identities were saved with; without identities a method's defaults.
        """
        ...


@runtime_checkable
class SettingsCheck(Protocol):
    """A method that refuses settings before a model is open; its `check` asks this too."""

    def check_settings(self, config: Config) -> None:
        """Refuse settings that it would pass over or cannot learn with, whatever the model; `ConfigError`."""
        ...


def check_method(method: Method, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
    """Refuse what a method cannot learn with, and settings that it would pass over, before anything is learned.

    Raises:
        ConfigError: as `refuse_unread_settings` and `Method.check`.
    """
    refuse_unread_settings(method, config)
    method.check(backbone, config, evaluators)


def check_method_settings(method: Method, config: Config) -> None:
    """Refuse what `check_method` refuses, as far as that needs no model, and settings that miss a face.

    Raises:
        ConfigError: names the setting.
    """
    refuse_unread_settings(method, config)
    check_face_settings(config)
    if isinstance(method, SettingsCheck):
        method.check_settings(config)


def check_face_settings(config: Config) -> None:
    """Refuse settings that need a face where the subject is no person.

    Raises:
        ConfigError: names the setting.
    """
    learn = config.learn
    asking = {
        "outside_weight": learn.outside_weight != 1,
        "person_steps": learn.person_steps > 0,
        "start=encoder": learn.start == "encoder",
    }
    for setting, asked in asking.items():
        if asked and not is_person(learn.class_word):
            raise ConfigError(
                f"learn.{setting} needs a face, and {learn.class_word!r} is no word for a person.",
                "Leave it out, or use a class word for a person.",
            )


def check_training_options(config: Config, *, has_init: bool, has_limit: bool) -> None:
    """Refuse how a training is to be carried out where settings contradict it.

    Args:
        has_init: it goes on from an identity.
        has_limit: its memory is limited.

    Raises:
        ConfigError: names the setting.
    """
    if has_init and config.learn.start == "encoder":
        raise ConfigError(
            "Tokens start either at an identity or at what the name encoder reads.",
            "Leave out --init, or set learn.start=class.",
        )
    if has_limit and config.learn.person_steps > 0:
        raise ConfigError(
            "learn.person_steps cannot be taken in parts to fit into a limit of memory.",
            "Leave out the limit, or set learn.person_steps=0.",
        )


def refuse_unread_settings(method: Method, config: Config) -> None:
    """Refuse settings that a method does not read, unless they are the default or what one of its presets has.

    Raises:
        ConfigError: names the setting and the method.
    """
    for name in list_unusual_settings(method, config, method.info.unread):
        raise ConfigError(
            f"{method.info.title} does not read {name}, which is {read_setting(config, name)}: it would have no"
            " effect.",
            "Leave this setting out, or use another method.",
        )


def list_unusual_settings(method: Method, config: Config, names: Iterable[str]) -> list[str]:
    """List those of some settings whose value is neither the default nor that of one of a method's presets."""
    trees = [{}, *method.presets.values()]
    known = [parse_config({**tree, "method": config.method}, method.config_type) for tree in trees]
    starting = [one for one in STARTING_PRESETS.values() if one.method == config.method]
    known += [*starting, *(choose_start(one, encoder=True) for one in starting)]
    return [name for name in names if read_setting(config, name) not in [read_setting(one, name) for one in known]]


NO_ATTENTION_LOSS = "learn.attention_weight is 0 and learn.attention_share is not set"


def list_idle_settings(method: Method, given: Config, chosen: Config) -> list[str]:
    """List settings that somebody has changed and another one leaves without effect, each with the reason.

    Args:
        given: the settings as they were asked for.
        chosen: what is learned with, where `learn.start` is no longer auto.
    """
    learn = chosen.learn
    reasons: dict[str, str] = {}
    if learn.attention_weight == 0 and learn.attention_share is None:
        names = ("attention_option", "attention_reduction", "detach_query")
        reasons |= dict.fromkeys((f"learn.{name}" for name in names), NO_ATTENTION_LOSS)
    if learn.attention_share is not None:
        reasons["learn.attention_weight"] = "learn.attention_share takes its place"
    if learn.change_limit is None:
        reasons["learn.noise_freedom"] = "learn.change_limit is none"
    if learn.expansion == "direct":
        reasons["learn.dropout"] = "learn.expansion is direct"
    if learn.probe_every == 0:
        reasons["learn.patience"] = "learn.probe_every is 0"
    if chosen.views.latent_pool == 0:
        reasons["views.pool_noise"] = "views.latent_pool is 0"
    read = [name for name in reasons if name not in method.info.unread]
    return [f"{name} has no effect: {reasons[name]}" for name in list_unusual_settings(method, given, read)]


class TokenMethod:
    """A method whose identities are applied by their tokens alone: any number of them share a prompt."""

    config_type: type[Config] = Config

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return the model itself, and a conditioner that writes the tokens into the sentences."""
        return ConditionedModel(backbone, IdentityConditioner(backbone, identities, strength))


class NameListSettings(Section, frozen=True):
    """Where a method takes known names from."""

    names: str | None = Field(
        None,
        description="text file with one name a line; none: the embedded model's characters",
        json_schema_extra=NAMES_FILE,
    )


def read_name_list(backbone: Backbone, listed: str | None, setting: str = "basis.names") -> list[str]:
    """Return the names in a file; without a file those that the embedded model knows.

    Args:
        setting: the method's own name for the setting `listed`, for messages.

    Raises:
        ConfigError: the file cannot be read, or there is none for a model that is not the embedded one.
    """
    if listed is None and not backbone.is_embedded:
        raise ConfigError(
            "This model needs a list of the names that it knows.",
            f"Write one name a line into a file and give it with --set {setting}=FILE.",
        )
    return read_listed_names(CHARACTERS if listed is None else Path(listed))


def read_listed_names(path: Path) -> list[str]:
    """Return the names in a file, one a line, in order and without repeats.

    Raises:
        ConfigError: the file cannot be read, is too long or has no name.
    """
    with translate_file_errors(path, ConfigError, "is no list of names", "Give a text file with a name a line."):
        lines = read_user_text(path, LARGEST_LIST).splitlines()
        if len(lines) > MOST_NAMES:
            raise InvalidFileError(f"it has {len(lines):,} lines; at most {MOST_NAMES:,} are read")
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_NAME:
                raise InvalidFileError(f"line {number} has more than {LONGEST_NAME} letters")
        names = sorted({line.strip() for line in lines if line.strip()})
        if not names:
            raise InvalidFileError("it has no name")
        return names


def find_name_rows(backbone: Backbone, names: list[str], setting: str = "basis.names") -> list[Tensor]:
    """Find the token-table rows of the names' first words and of their second, each `[name, width]`.

    Source: Celeb Basis, `_get_celeb_embeddings`: later tokens of a name do not count.

    Args:
        setting: where the names are from, for messages.

    Raises:
        ConfigError: fewer than two names have a first or a second token.
    """
    names_tokens = [tokenize_text(backbone, name) for name in names]
    columns = [[one[column] for one in names_tokens if len(one) > column] for column in range(NAME_WORDS)]
    if min(map(len, columns)) < FEWEST_NAMES:
        raise ConfigError("The list has too few names of two words.", f"Give a longer list with {setting}.")
    return [torch.stack([backbone.get_token_row(token) for token in column]) for column in columns]


def get_class_row(backbone: Backbone, config: Config) -> Tensor:
    """Return the token-table row of the class word, `[width]`; of several text encoders side by side."""
    return compute_class_row(backbone, config.learn.class_word)


def create_header(name: str, backbone: Backbone, config: Config, seed: int) -> IdentityHeader:
    """Create the header of an identity."""
    widths = backbone.token_widths
    # Only what the family does not say: other files stay as earlier versions of the package read them.
    stated = "" if backbone.prediction_type == USUAL_PREDICTIONS.get(backbone.family) else backbone.prediction_type
    without_stated = TWO_ENCODER_VERSION if len(widths) > 1 else ONE_ENCODER_VERSION
    return IdentityHeader(
        schema_version=SCHEMA_VERSION if stated else without_stated,
        name=name,
        method=config.method,
        stages=config.learn.stages,
        base_model=backbone.fingerprint,
        signature=backbone.signature.dump() if backbone.signature else {},
        width=backbone.token_width,
        widths=widths if len(widths) > 1 else (),
        prediction_type=stated,
        class_word=config.learn.class_word,
        settings=dump_config(config),
        seed=seed,
        library_versions=collect_versions(),
    )


def learn_identity(
    task: IdentityTask, name: str, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
) -> Identity:
    """Train a task; return the identity."""
    header = create_header(name, backbone, config, seed)
    probe = options.probe

    def score_tensors(tensors: Tensors) -> float:
        return probe(Identity(tensors, header)) if probe is not None else 0.0

    plan = None if options.memory is None else plan_memory(task, backbone.networks.values(), options.memory)
    tensors, numbers = train(
        task,
        config,
        options.progress,
        options.checkpoint,
        None if probe is None else score_tensors,
        parts=1 if plan is None else plan.parts,
    )
    return Identity(tensors, header.model_copy(update={"metrics": numbers}))


def learn_tokens(
    tokens: nn.Module,
    name: str,
    views: PhotoViews,
    backbone: Backbone,
    config: Config,
    seed: int,
    options: TrainingOptions,
) -> Identity:
    """Train a module of tokens by denoising views, and by the attention loss where that has a weight."""
    at_once = ENCODE_AT_ONCE if options.memory is None else 1
    task = TokenTask(backbone, views, config, seed, tokens, at_once)
    task.training_key |= describe_training_start(options)
    return learn_identity(task, name, backbone, config, seed, options)


def describe_training_start(options: TrainingOptions) -> dict[str, str]:
    """Return what a training key says of where tokens start, and of the networks that the photo is read with.

    Nothing of the class word, and where there are none. A checkpoint that started elsewhere is none of this training.
    """
    networks = {} if options.networks_digest is None else {"networks": options.networks_digest}
    if options.encoder_digest is not None:  # the start is what the encoder reads, which is rounded otherwise elsewhere
        return {"encoder": options.encoder_digest, **networks}
    return networks if options.init is None else {"init": compute_tokens_digest(options.init), **networks}


def fit_first_tokens(init: Identity | None, settings: LearnSettings) -> Tensor | None:
    """Return an identity's tokens as these settings learn them, `[stage, slot, vector, width]`, float32.

    Args:
        init: where learning starts; None gives None.
        settings: stages, vectors, and whether keys differ from values: with one slot they may not.

    Raises:
        ConfigError: the tokens have other stages or vectors, or keys of their own where the settings have none, or the
            settings make tokens by a module.
    """
    if init is None:
        return None
    tokens, remedy = init.stage_tokens.float(), "Change the setting, or leave out the identity to start from."
    if settings.expansion == "module":
        raise ConfigError("The module makes its tokens from the class word alone.", "Set learn.expansion=direct.")
    if tokens.shape[2] != settings.vectors:
        raise ConfigError(f"{init.name!r} has {tokens.shape[2]} vectors; learn.vectors is {settings.vectors}.", remedy)
    if len(tokens) not in (1, settings.stages):
        raise ConfigError(f"{init.name!r} has {len(tokens)} stages; learn.stages is {settings.stages}.", remedy)
    if not settings.split_key_value and not torch.equal(tokens[:, 0], tokens[:, 1]):
        raise ConfigError(f"{init.name!r} has keys of its own; learn.split_key_value is off.", remedy)
    slots = tokens if settings.split_key_value else tokens[:, :1]
    return slots.expand(settings.stages, -1, -1, -1).clone()


def require_learn_values(title: str, config: Config, **values: object) -> None:
    """Refuse learning settings that a method would pass over.

    Args:
        values: settings of `learn`, each with the only value that the method knows.

    Raises:
        ConfigError: one has another value.
    """
    for name, value in values.items():
        if getattr(config.learn, name) != value:
            raise ConfigError(
                f"{title} knows only learn.{name}={value}, not {getattr(config.learn, name)}.",
                "Leave this setting out, and start from the method's own preset.",
            )


def refuse_stages(title: str, config: Config, vectors: int = 1) -> None:
    """Refuse stages, keys that differ from values, and the module; `STAGE_SETTINGS` are the options of these.

    Raises:
        ConfigError: a setting has another value than the method knows.
    """
    require_learn_values(title, config, stages=1, split_key_value=False, vectors=vectors, expansion="direct")


def refuse_vectors_and_limit(title: str, config: Config) -> None:
    """Refuse what tokens of the module do not have: several for a placeholder, limits, a start of their own.

    Raises:
        ConfigError: a setting has another value than the method knows.
    """
    if config.learn.expansion == "module":
        module = f"{title} with learn.expansion=module"
        # Its weights are not the tokens, and cannot be put back to where a token was.
        limit = config.learn.token_norm_limit if config.learn.hold_norm else None
        require_learn_values(module, config, vectors=1, token_norm_limit=limit, change_limit=None, start="class")


def check_person(title: str, config: Config) -> None:
    """Refuse subjects whose face no recogniser knows.

    Raises:
        ConfigError: the class word is no word for a person.
    """
    if not is_person(config.learn.class_word):
        raise ConfigError(
            f"{title} knows a subject by the face of a person, and {config.learn.class_word!r} is none.",
            f"Use another method, or a class word for a person: {', '.join(PEOPLE[:7])} ...",
        )


# Of methods that train the model's own weights.
UNREAD_BY_WEIGHTS = (*MODULE_SETTINGS, *ATTENTION_SETTINGS, *STAGE_SETTINGS, *TOKEN_SETTINGS)


def refuse_stages_and_attention(title: str, config: Config) -> None:
    """Refuse what no method that trains the model's own weights has: stages and the attention loss.

    Raises:
        ConfigError: a setting has another value than the method knows.
    """
    refuse_stages(title, config)
    require_learn_values(title, config, attention_weight=0.0)


def check_single_precision(title: str, backbone: Backbone) -> None:
    """Refuse to train weights whose steps would be rounded away.

    Raises:
        ConfigError: the model is in another dtype than float32.
    """
    if backbone.dtype != torch.float32:
        raise ConfigError(
            f"{title} trains weights of the model itself, and {str(backbone.dtype).removeprefix('torch.')} is too "
            "coarse for their small steps.",
            "Open the model with --dtype float32.",
        )


def require_face_networks(title: str, evaluators: Path | None) -> None:
    """Refuse to learn with a method that reads faces where there is no recogniser for them.

    Raises:
        ConfigError: no folder is named and SFace was not downloaded, or the folder lacks a network.
    """
    if evaluators is not None:
        require_evaluators(title, evaluators, DETECTOR, RECOGNISER)
    elif find_sface() is None:
        raise ConfigError(
            f"{title} reads the photo with a face recogniser, which this model does not bring.",
            f"Fetch OpenCV's SFace (39 MB) with --download, or name a folder with {DETECTOR} and {RECOGNISER} in it "
            "with --evaluators.",
        )


def require_evaluators(title: str, evaluators: Path | None, *names: str) -> Path:
    """Return the folder of evaluators that a method reads the photo with.

    Raises:
        ConfigError: there is none, or it lacks one of them.
    """
    missing = names if evaluators is None else [name for name in names if not (evaluators / name).exists()]
    if evaluators is None or missing:
        raise ConfigError(
            f"{title} reads the photo with {' and '.join(missing)}, which this model does not bring.",
            f"Name a folder with {' and '.join(names)} in it with --evaluators.",
        )
    return evaluators
