"""Prompts with identities, or with plain words, to the context that every denoising stage reads."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sefi.backbone.bundle import Backbone, TextEncoding, join_batches
from sefi.backbone.signature import ModelSignature
from sefi.core.config import GenerateSettings
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.prompts import PLACEHOLDER, make_unknown_placeholder_error, refuse_names
from sefi.diffusion.text import (
    ParsedPrompt,
    apply_weights,
    compute_class_row,
    count_chunks,
    join_texts,
    parse_prompt,
    parse_template,
    tokenize_class_word,
)
from sefi.identity.file import Identity, check_names_differ
from sefi.identity.tokens import get_stage, interpolate_on_sphere


class Conditioner(Protocol):
    """Turns prompts and a timestep into what the denoiser's cross-attention reads."""

    def get_context_key(self, timestep: int) -> int:
        """Return a number that changes exactly where the context does, from one timestep to the next."""
        ...

    def count_chunks(self, prompt: str) -> int:
        """Return how many chunks of the model's text length a prompt has; only equally many share a batch."""
        ...

    def encode_prompts(self, prompts: list[str], timestep: int) -> TextEncoding:
        """Encode prompts to key text and value text on one axis, states `[batch, word, 2 * width]`."""
        ...

    def encode_negative(self, count: int, negative_prompt: str) -> TextEncoding:
        """Encode the negative prompt for guidance, states `[count, word, 2 * width]`."""
        ...


AnyConditioner = TypeVar("AnyConditioner", bound=Conditioner)


def pad_texts(conditioner: Conditioner, encodings: Sequence[TextEncoding]) -> list[TextEncoding]:
    """Return encodings of as many words each: shorter ones go on with the chunk of the empty prompt.

    Cross-attention reads that chunk too, so a prompt that is padded gives another image than alone: `sample_images`
    pads to the length of the prompt's own negative prompt only.
    """
    lengths = [one.states.shape[1] for one in encodings]
    if len(set(lengths)) == 1:
        return list(encodings)
    empty = conditioner.encode_negative(1, "").states
    missing = [(max(lengths) - length) // empty.shape[1] for length in lengths]
    return [
        replace(one, states=torch.cat([one.states, empty.to(one.states).repeat(len(one.states), count, 1)], dim=1))
        for one, count in zip(encodings, missing, strict=True)
    ]


MOST_ENCODED = 64  # prompts; of Stable Diffusion XL one of five stages takes 6 MB


class RecentEncodings:
    """The encodings of the prompts that were asked for last, each with all its stages; older ones are dropped.

    Args:
        most: how many prompts; thousands would fill an accelerator's memory.
    """

    def __init__(self, most: int = MOST_ENCODED) -> None:
        self.most = most
        self._stages: OrderedDict[str, dict[int, TextEncoding]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many prompts are held."""
        return len(self._stages)

    def find(self, prompt: str, stage: int = 0) -> TextEncoding | None:
        """Return the encoding of a prompt in a stage; None where it is not held."""
        if prompt not in self._stages:
            return None
        self._stages.move_to_end(prompt)
        return self._stages[prompt].get(stage)

    def add(self, encoding: TextEncoding, prompt: str, stage: int = 0) -> None:
        """Hold the encoding of a prompt in a stage, and drop the prompt that nobody asked for the longest time."""
        self._stages.setdefault(prompt, {})[stage] = encoding
        self._stages.move_to_end(prompt)
        while len(self._stages) > self.most:
            self._stages.popitem(last=False)


# Times the norm of the class word. Learning drifts far (the preset `paper` to 15,600 on the embedded model); numbers of
# float16 end at 65,504, and a class word has a norm of about 1.
LONGEST_RELATIVE_TOKEN = 50_000.0
Slot = tuple[int, Literal["K", "V"]]
HALVINGS = 5  # to 1/32 of the strength
ENCODED_AT_ONCE = 16  # key sentences and value sentences; of several names there are as many more


def count_vectors(backbone: Backbone, identity: Identity, strength: float) -> int:
    """Return for how many tokens of a prompt an identity's name stands: at strength 0 for those of its class word."""
    if strength == 0:
        return len(tokenize_class_word(backbone, identity.header.class_word))
    return identity.stage_tokens.shape[2]


class IdentityConditioner:
    """Contexts for prompts with any number of identities.

    A text is encoded once a stage while it is among the last `MOST_ENCODED`.

    Args:
        identities: each with its own stages; placeholders are their names.
        strength: 0 gives the class word, once however many tokens were learned; 1 what was learned; in between a
            straight line.
        class_slots: (stage, "K" or "V") slots that use the class word instead (the paper's Figure 5), of one of several
            tokens their mean.
        on_sphere: in between turn the class word towards what was learned (slerp), and change its norm evenly.
        context_limit: most that the names may turn the states of the words behind them, 1 - cosine; every prompt has
            its own strength, as high as that allows. None: one strength for all.
        separate_names: where a prompt has several names, encode each with the class words of the others, so that no
            name's state holds anything of another person; the other words are those of the class words alone. The text
            encoder reads from left to right: otherwise each person is mixed into those who are named later.

    Raises:
        IdentityError: an identity of another model, or two of one name.
        ConfigError: a class slot in a stage that an identity does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        identities: Sequence[Identity],
        strength: float = 1.0,
        class_slots: Collection[Slot] = (),
        *,
        on_sphere: bool = False,
        context_limit: float | None = None,
        separate_names: bool = True,
    ) -> None:
        check_identities(backbone, identities)
        self.backbone, self.identities, self.strength = backbone, tuple(identities), strength
        self.class_slots, self.on_sphere, self.context_limit = tuple(class_slots), on_sphere, context_limit
        self.separate_names = separate_names
        # Copied once: who chooses a strength encodes a prompt many times.
        self.text_model = backbone.copy_text_encoders()
        self.class_words = {i.name: i.header.class_word for i in identities}
        self.stage_tokens = {i.name: self.build_stage_tokens(i, strength, class_slots) for i in identities}
        self.vector_counts = {name: tokens.shape[2] for name, tokens in self.stage_tokens.items()}
        self.encodings, self.negative_encodings = RecentEncodings(), RecentEncodings()
        self.chosen_strengths: dict[str, float] = {}

    def build_stage_tokens(self, identity: Identity, strength: float, class_slots: Collection[Slot]) -> Tensor:
        """Build an identity's tokens `[stage, 2, vector, width]` with strength and overrides applied."""
        row = compute_class_row(self.backbone, identity.header.class_word)
        tokens = identity.stage_tokens.float().clone()
        if strength == 0:
            words = tokenize_class_word(self.backbone, identity.header.class_word)
            rows = torch.stack([self.backbone.get_token_row(word) for word in words])
            tokens = rows.expand(*tokens.shape[:2], -1, -1).clone()
        elif strength != 1:
            tokens = self.mix_with_class(row, tokens, strength)
        for stage, slot in class_slots:
            if not 0 <= stage < len(tokens):
                raise ConfigError(
                    f"{identity.name!r} has no stage {stage}.", f"Choose stages from 0 to {len(tokens) - 1}."
                )
            tokens[stage, "KV".index(slot)] = row
        return tokens

    def mix_with_class(self, row: Tensor, tokens: Tensor, strength: float) -> Tensor:
        """Mix the class word's row with tokens `[..., width]`: on a line, or e = |e| slerp(c, e; strength), |e| evenly.

        Source of the second: TEA (ICLR 2026), whose norm is one constant.
        """
        if not self.on_sphere:
            return row + strength * (tokens - row)
        norm = row.norm() + strength * (tokens.norm(dim=-1, keepdim=True) - row.norm())
        return norm.clamp(min=0) * interpolate_on_sphere(row.expand_as(tokens), tokens, strength)

    def choose_tokens(self, prompt: str) -> Mapping[str, Tensor]:
        """Return the identities' tokens for a prompt: with one strength for all, or the prompt's own."""
        if self.context_limit is None:
            return self.stage_tokens
        if prompt not in self.chosen_strengths:
            self.chosen_strengths[prompt] = self.choose_strength(prompt, self.context_limit)
        return self.mix_all(self.chosen_strengths[prompt])

    def mix_all(self, strength: float) -> Mapping[str, Tensor]:
        """Return all identities' tokens at a strength above 0."""
        return {one.name: self.build_stage_tokens(one, strength, self.class_slots) for one in self.identities}

    def choose_strength(self, prompt: str, limit: float) -> float:
        """Choose the highest strength, up to the given one, at which the other words turn no more than the limit.

        By halving: `HALVINGS` times; the least is the last half. Where names are encoded apart no other word turns.
        """
        names = len(self.parse(prompt).places)
        if names == 0 or (self.separate_names and names > 1):
            return self.strength
        if self.measure_change(prompt, self.mix_all(self.strength)) <= limit:
            return self.strength
        low, high = 0.0, self.strength
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.measure_change(prompt, self.mix_all(middle)) <= limit:
                low = middle
            else:
                high = middle
        return low or high

    @torch.no_grad()
    def measure_change(self, prompt: str, tokens: Mapping[str, Tensor]) -> float:
        """Return 1 - cosine between the states of the words behind the first name with tokens and with the class word.

        The mean over words, keys and values, and stages (CoRe's embedding term).
        """
        parsed = self.parse(prompt)
        stages = max(len(tokens[name]) for name in parsed.places)  # of those who are named, whoever else is there
        behind = torch.ones(parsed.ids.shape[-1], dtype=torch.bool)
        behind[: min(min(places) for places in parsed.places.values())] = False
        behind[[place for places in parsed.places.values() for place in places]] = False
        plain = self.expand_class_words(tokens)
        total = self.backbone.num_train_timesteps
        turned: list[Tensor] = []
        for timestep in ((2 * stage + 1) * total // (2 * stages) for stage in range(stages)):
            written, reference = (self.encode_tokens(parsed, timestep, one).states for one in (tokens, plain))
            turned.append(
                1 - cosine_similarity(written.float(), reference.float(), dim=-1)[:, behind.to(written.device)]
            )
        return float(torch.stack(turned).mean())

    def encode_tokens(self, parsed: ParsedPrompt, timestep: int, tokens: Mapping[str, Tensor]) -> TextEncoding:
        """Encode a prompt with tokens, its key sentence and its value sentence, states `[2, word, width]`."""
        rows, mask = self.build_rows(parsed, timestep, tokens)
        return self.text_model.encode_text(parsed.ids.expand(2, -1, -1), rows, mask.expand(2, -1))

    def parse(self, prompt: str) -> ParsedPrompt:
        """Parse a prompt into tokens and placeholders."""
        return parse_prompt(self.backbone, prompt, self.class_words, self.vector_counts)

    def get_context_key(self, timestep: int) -> int:
        """Return the sum of the identities' stages: it changes exactly where the tokens of one do."""
        total = self.backbone.num_train_timesteps
        return sum(get_stage(timestep, len(t), total) for t in self.stage_tokens.values())

    def count_chunks(self, prompt: str) -> int:
        """Return how many chunks a prompt has."""
        return count_chunks(self.backbone, prompt, self.class_words, self.vector_counts)

    def encode_prompts(self, prompts: Sequence[str], timestep: int) -> TextEncoding:
        """Encode prompts to key and value text on one axis, states `[batch, word, 2 * width]`."""
        stage = self.get_context_key(timestep)
        found = {prompt: self.encodings.find(prompt, stage) for prompt in prompts}
        missing = {prompt: self.parse(prompt) for prompt, encoding in found.items() if encoding is None}
        encoded = {prompt: encoding for prompt, encoding in found.items() if encoding is not None}
        groups: dict[int, list[str]] = {}
        for prompt, parsed in missing.items():
            groups.setdefault(parsed.ids.shape[-1], []).append(prompt)
        for group in groups.values():
            names = max(len(missing[prompt].places) for prompt in group)
            at_once = max(1, ENCODED_AT_ONCE // (names + 1 if self.separate_names and names > 1 else 1))
            for start in range(0, len(group), at_once):
                encoded |= self.encode_group({one: missing[one] for one in group[start : start + at_once]}, timestep)
        for prompt in missing:
            self.encodings.add(encoded[prompt], prompt, stage)
        return join_batches(pad_texts(self, [encoded[prompt] for prompt in prompts]))

    @torch.no_grad()
    def encode_group(self, group: Mapping[str, ParsedPrompt], timestep: int) -> dict[str, TextEncoding]:
        """Encode prompts of as many words each in one call of the text encoder, whoever they name."""
        versions = {prompt: self.list_versions(one, self.choose_tokens(prompt)) for prompt, one in group.items()}
        built = [
            self.build_rows(group[prompt], timestep, tokens) for prompt, some in versions.items() for tokens in some
        ]
        ids = torch.cat([group[prompt].ids.expand(2 * len(some), -1, -1) for prompt, some in versions.items()])
        rows, masks = torch.cat([rows for rows, _ in built]), torch.cat([mask.expand(2, -1) for _, mask in built])
        encoded = self.backbone.encode_text(ids, rows, masks).chunk(len(built))
        texts: dict[str, TextEncoding] = {}
        for prompt, parsed in group.items():
            some, encoded = encoded[: len(versions[prompt])], encoded[len(versions[prompt]) :]
            both = apply_weights(self.backbone, take_own_words(parsed, some), parsed)
            texts[prompt] = join_texts(*both.chunk(2))
        return texts

    def list_versions(self, parsed: ParsedPrompt, tokens: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """List the tokens that a prompt is encoded with: all of them at once, or, of several names, one set for each.

        Such a set has one person's own tokens and the class words of the others; a set of class words alone comes
        first. At a strength of 0 all are class words already.
        """
        if not self.separate_names or len(parsed.places) < 2 or self.strength == 0:
            return [tokens]
        plain = self.expand_class_words(tokens)
        return [plain, *({**plain, name: tokens[name]} for name in parsed.places)]

    def expand_class_words(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the class words' rows in the shape of the tokens."""
        rows = {one.name: compute_class_row(self.backbone, one.header.class_word) for one in self.identities}
        return {name: rows[name].expand_as(one) for name, one in tokens.items()}

    def build_rows(
        self, parsed: ParsedPrompt, timestep: int, stage_tokens: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Build replacement embeddings `[2, word, width]` (key and value sentence) and their mask `[word]`.

        Args:
            stage_tokens: other tokens than the conditioner's own, by name.
        """
        words = parsed.ids.shape[-1]
        rows = torch.zeros(2, words, self.backbone.token_width, dtype=torch.float32)
        mask = torch.zeros(words, dtype=torch.bool)
        for name, places in parsed.places.items():
            tokens = (stage_tokens or self.stage_tokens)[name]
            vectors = tokens[get_stage(timestep, len(tokens), self.backbone.num_train_timesteps)]
            for number, place in enumerate(places):
                rows[:, place] = vectors[:, number % self.vector_counts[name]]
                mask[place] = True
        return rows, mask

    @torch.no_grad()
    def encode_negative(self, count: int, negative_prompt: str = "") -> TextEncoding:
        """Encode the negative prompt as both key and value text of every stage, states `[count, word, 2 * width]`.

        Raises:
            PromptError: it names an identity.
        """
        refuse_names(negative_prompt)
        encoding = self.negative_encodings.find(negative_prompt)
        if encoding is None:
            parsed = self.parse(negative_prompt)
            text = apply_weights(self.backbone, self.backbone.encode_text(parsed.ids[None]), parsed)
            encoding = join_texts(text, text)
            self.negative_encodings.add(encoding, negative_prompt)
        return encoding.expand(count)


def take_own_words(parsed: ParsedPrompt, versions: Sequence[TextEncoding]) -> TextEncoding:
    """Join the versions of a prompt that `IdentityConditioner.list_versions` lists, states `[2, word, width]` each.

    Each name's own words are those of its version; all others are those of the first.
    """
    first, *others = versions
    if not others:
        return first
    states = first.states.clone()
    for places, version in zip(parsed.places.values(), others, strict=True):
        states[:, list(places)] = version.states[:, list(places)]
    return replace(first, states=states)


def apply_text_settings(
    conditioner: AnyConditioner, settings: GenerateSettings
) -> "AnyConditioner | IdentityConditioner":
    """Return a conditioner with the way to what was learned, the limit of its effect, and the names apart or together.

    Raises:
        ConfigError: the method puts more than tokens into a prompt, which have no such way.
    """
    if settings.strength_path == "line" and settings.context_limit is None and settings.separate_names:
        return conditioner
    if type(conditioner) is not IdentityConditioner:
        raise ConfigError(
            "This method's subjects are more than tokens; strength_path, context_limit, separate_names are for tokens.",
            "Leave out generate.strength_path, generate.context_limit and generate.separate_names.",
        )
    return IdentityConditioner(
        conditioner.backbone,
        conditioner.identities,
        conditioner.strength,
        conditioner.class_slots,
        on_sphere=settings.strength_path == "sphere",
        context_limit=settings.context_limit if conditioner.strength else None,
        separate_names=settings.separate_names and conditioner.separate_names,
    )


def check_identities(backbone: Backbone, identities: Sequence[Identity]) -> None:
    """Refuse identities that cannot work on this model or with each other.

    Raises:
        IdentityError: two have one name, or one was learned on a model of another kind.
    """
    check_names_differ(identities)
    for identity in identities:
        header = identity.header
        if header.width != backbone.token_width:
            raise IdentityError(
                f"{header.name!r} has tokens of width {header.width}, this model reads {backbone.token_width}.",
                f"Open the model it was learned on ({header.base_model}) or learn it again on this one.",
            )
        compare_model(backbone, identity)
        check_norms(backbone, identity)


def list_identity_remarks(backbone: Backbone, identities: Sequence[Identity]) -> list[str]:
    """Return what a user should know of identities that were learned on another checkpoint than this one.

    Raises:
        IdentityError: one cannot be used on this model, or two have one name.
    """
    check_identities(backbone, identities)
    remarks = [compare_model(backbone, identity) for identity in identities]
    return [remark for remark in remarks if remark is not None]


def compare_model(backbone: Backbone, identity: Identity) -> str | None:
    """Compare a model with the one that an identity was learned on; refuse the identity where it cannot work.

    Returns what a user should know where that was another checkpoint of the model's family; None where it was these
    weights, in whatever dtype. An identity of file version 1 has no signature: its model is known by a name that
    float16 copies may not share.

    Raises:
        IdentityError: it was learned on a model of another family or with other words, its weights belong to a model of
            other shapes, or the model is a small one of its own, like the embedded one, whose weights nothing shares.
    """
    header = identity.header
    other_model = IdentityError(
        f"{header.name!r} was learned on another model ({header.base_model}) than this one ({backbone.fingerprint}).",
        "Open the model it was learned on, or learn it again on this one.",
    )
    if header.base_model.partition(":")[0] != backbone.family:
        raise other_model
    if not header.signature or backbone.signature is None:
        if header.base_model == backbone.fingerprint:
            return None
        differing = "perhaps in weights"
    else:
        differing = _describe_difference(backbone.signature, identity, other_model)
        if differing is None:
            return None
    if backbone.family == "tiny":
        raise other_model
    return (
        f"{header.name!r} was learned on another checkpoint than this one; they differ {differing}. It may be less like"
        " its photo."
    )


def _describe_difference(signature: ModelSignature, identity: Identity, other_model: IdentityError) -> str | None:
    try:
        difference = signature.compare(identity.header.signature)
    except ValueError as error:
        raise IdentityError(
            f"The model signature of {identity.name!r} is damaged.", "Copy the file again, or learn it again."
        ) from error
    if difference.tokenizer or (difference.structure and identity.has_weights):
        raise other_model
    parts = [*difference.structure, *difference.weights]
    return f"in the {' and the '.join(parts)}" if parts else None


def compute_norm_limit(backbone: Backbone, class_word: str) -> float:
    """Return the norm of the longest token that is used: `LONGEST_RELATIVE_TOKEN` times the class word's."""
    return LONGEST_RELATIVE_TOKEN * float(compute_class_row(backbone, class_word).double().norm())


def check_norms(backbone: Backbone, identity: Identity, limit: float | None = None) -> None:
    """Refuse tokens that are so long that the text encoder overflows.

    Args:
        limit: of its class word, where `compute_norm_limit` has given it before.

    Raises:
        IdentityError: a token is longer than `LONGEST_RELATIVE_TOKEN` times the class word's, or is not finite.
    """
    if "tokens" not in identity.tensors:
        return
    longest = float(identity.tokens.double().norm(dim=-1).max())
    limit = compute_norm_limit(backbone, identity.header.class_word) if limit is None else limit
    if not longest <= limit:
        raise IdentityError(
            f"{identity.name!r} has a token of norm {longest:.3g}; this model's text encoder is good for {limit:.3g}.",
            "Learn it again with a lower learning rate.",
        )


class WordsConditioner:
    """The same text as key and value, in every stage.

    Args:
        words: what to write for each name.
    """

    def __init__(self, backbone: Backbone, words: Mapping[str, str]) -> None:
        self.backbone, self.words = backbone, dict(words)
        self.encodings = RecentEncodings()

    def get_context_key(self, timestep: int) -> int:
        """Return 0: the context is the same at every timestep."""
        del timestep
        return 0

    def count_chunks(self, prompt: str) -> int:
        """Return how many chunks a prompt has."""
        return count_chunks(self.backbone, self.replace_names(prompt), {})

    def encode_prompts(self, prompts: Sequence[str], timestep: int) -> TextEncoding:
        """Encode prompts to the same text twice, states `[batch, word, 2 * width]`."""
        del timestep
        return join_batches(pad_texts(self, [self.encode_one(prompt) for prompt in prompts]))

    def encode_negative(self, count: int, negative_prompt: str = "") -> TextEncoding:
        """Encode the negative prompt, states `[count, word, 2 * width]`; `PromptError` if it names an identity."""
        refuse_names(negative_prompt)
        return self.encode_one(negative_prompt).expand(count)

    @torch.no_grad()
    def encode_one(self, prompt: str) -> TextEncoding:
        """Encode one prompt, states `[1, word, 2 * width]`."""
        encoding = self.encodings.find(prompt)
        if encoding is None:
            parsed = parse_prompt(self.backbone, self.replace_names(prompt), {})
            text = apply_weights(self.backbone, self.backbone.encode_text(parsed.ids[None]), parsed)
            encoding = join_texts(text, text)
            self.encodings.add(encoding, prompt)
        return encoding

    def replace_names(self, prompt: str) -> str:
        """Replace names in a prompt by words; `PromptError` for an unknown name."""
        for name in PLACEHOLDER.findall(prompt):
            if name not in self.words:
                raise make_unknown_placeholder_error(name, self.words)
        return PLACEHOLDER.sub(lambda match: self.words[match[1]], prompt)


def tokenize_sentence(backbone: Backbone, sentence: str) -> Tensor:
    """Tokenise a sentence to learn with, without names, to padded ids `[encoder, word]`.

    Raises:
        PromptError: it does not fit, or has weights.
    """
    return parse_template(backbone, sentence, {}).ids
