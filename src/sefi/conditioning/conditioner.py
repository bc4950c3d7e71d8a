"""COMPOSER: prompts and identities to the context of every timestep."""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.signature import ModelSignature
from sefi.conditioning.encode import encode_token_ids, get_token_row
from sefi.conditioning.prompt import ParsedPrompt, get_class_token_id, parse_prompt
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.nouns import Identity
from sefi.core.prompt_syntax import refuse_names
from sefi.identity.stages import get_stage

# Times the norm of the class word. Learning drifts far (the preset `paper` to 129); float32 overflows near 1e19.
LONGEST_TOKEN = 10_000.0
Slot = tuple[int, Literal["K", "V"]]


class IdentityConditioner:
    """Contexts for prompts with any number of identities; each text is encoded once a stage.

    Args:
        identities: each with its own stages; placeholders are their names.
        strength: 0 gives the class word, once however many tokens were learned; 1 what was learned; in between a
            straight line.
        class_slots: (stage, "K" or "V") slots that use the class word instead (the paper's Figure 5).

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
    ) -> None:
        check_identities(backbone, identities)
        self.backbone = backbone
        self.class_words = {i.name: i.header.class_word for i in identities}
        self.tables = {i.name: self.table(i, strength, class_slots) for i in identities}
        self.spans = {name: table.shape[2] for name, table in self.tables.items()}
        self.known: dict[tuple[str, int], Tensor] = {}
        self.nulls: dict[str, Tensor] = {}

    def table(self, identity: Identity, strength: float, class_slots: Collection[Slot]) -> Tensor:
        """An identity's tokens `[stage, 2, vector, width]` with strength and overrides applied."""
        row = get_token_row(self.backbone, get_class_token_id(self.backbone.tokenizer, identity.header.class_word))
        tokens = identity.table.float().clone()
        if strength == 0:
            tokens = row.expand(*tokens.shape[:2], 1, -1).clone()
        elif strength != 1:
            tokens = row + strength * (tokens - row)
        for stage, slot in class_slots:
            if not 0 <= stage < len(tokens):
                raise ConfigError(
                    f"{identity.name!r} has no stage {stage}.", f"Choose stages from 0 to {len(tokens) - 1}."
                )
            tokens[stage, "KV".index(slot)] = row
        return tokens

    def parse(self, prompt: str) -> ParsedPrompt:
        """The prompt's tokens and placeholders."""
        return parse_prompt(self.backbone.tokenizer, prompt, self.class_words, self.backbone.text_length, self.spans)

    def stage(self, timestep: int) -> int:
        """A number that changes exactly where some identity's tokens change; finer than each identity's own stages."""
        total = self.backbone.num_train_timesteps
        return sum(get_stage(timestep, len(t), total) for t in self.tables.values())

    def context(self, prompts: Sequence[str], timestep: int) -> Tensor:
        """Key and value text side by side, `[batch, word, 2 * width]`."""
        return torch.stack([self.one(prompt, timestep) for prompt in prompts])

    @torch.no_grad()
    def one(self, prompt: str, timestep: int) -> Tensor:
        """One prompt's `[word, 2 * width]`."""
        key = (prompt, self.stage(timestep))
        if key not in self.known:
            parsed = self.parse(prompt)
            rows, mask = self.rows(parsed, timestep)
            states = encode_token_ids(self.backbone, parsed.ids.expand(2, -1), rows, mask.expand(2, -1))
            self.known[key] = torch.cat([states[0], states[1]], dim=-1)
        return self.known[key]

    def rows(self, parsed: ParsedPrompt, timestep: int) -> tuple[Tensor, Tensor]:
        """Replacement embeddings `[2, word, width]` (key sentence, value sentence) and where they go `[word]`."""
        rows = torch.zeros(2, len(parsed.ids), self.backbone.width, dtype=torch.float32)
        mask = torch.zeros(len(parsed.ids), dtype=torch.bool)
        for name, places in parsed.places.items():
            table = self.tables[name]
            vectors = table[get_stage(timestep, len(table), self.backbone.num_train_timesteps)]
            for number, place in enumerate(places):
                rows[:, place] = vectors[:, number % self.spans[name]]
                mask[place] = True
        return rows, mask

    @torch.no_grad()
    def null_context(self, count: int, negative_prompt: str = "") -> Tensor:
        """The negative text as both key and value text in every stage, `[count, word, 2 * width]`.

        Raises:
            PromptError: it names an identity.
        """
        refuse_names(negative_prompt)
        if negative_prompt not in self.nulls:
            state = encode_token_ids(self.backbone, self.parse(negative_prompt).ids[None])[0]
            self.nulls[negative_prompt] = torch.cat([state, state], dim=-1)
        return self.nulls[negative_prompt].expand(count, -1, -1)


def check_identities(backbone: Backbone, identities: Sequence[Identity]) -> None:
    """Refuse identities that cannot work on this model or with each other."""
    names = [i.name for i in identities]
    for name in names:
        if names.count(name) > 1:
            raise IdentityError(
                f"Two identities are called {name!r}.",
                "Learn one of them again with another --name.",
            )
    for identity in identities:
        header = identity.header
        if header.width != backbone.width:
            raise IdentityError(
                f"{header.name!r} has tokens of width {header.width}, this model reads {backbone.width}.",
                f"Open the model it was learned on ({header.base_model}) or learn it again on this one.",
            )
        describe_other_model(backbone, identity)
        check_norms(backbone, identity)


def describe_other_model(backbone: Backbone, identity: Identity) -> str | None:
    """Return what a user should know where an identity was learned on another checkpoint of the model's family.

    None where it was learned on these weights, in whatever number type. An identity of file version 1 has no signature:
    its model is known by a name that float16 copies may not share.

    Raises:
        IdentityError: it was learned on a model of another family or with other words, its weights belong to a model of
            other shapes, or the model is a small one of its own, like the embedded one, whose weights nothing shares.
    """
    header = identity.header
    refusal = IdentityError(
        f"{header.name!r} was learned on {header.base_model}, this model is {backbone.fingerprint}.",
        "Open the model it was learned on, or learn it again on this one.",
    )
    if header.base_model.partition(":")[0] != backbone.family:
        raise refusal
    if not header.signature or backbone.signature is None:
        if header.base_model == backbone.fingerprint:
            return None
        differing = "perhaps in weights"
    else:
        differing = _describe_difference(backbone.signature, identity, refusal)
        if differing is None:
            return None
    if backbone.family == "tiny":
        raise refusal
    return (
        f"{header.name!r} was learned on another checkpoint than this one; they differ {differing}. It may be less like"
        " its photo."
    )


def _describe_difference(signature: ModelSignature, identity: Identity, refusal: IdentityError) -> str | None:
    try:
        found = signature.compare(identity.header.signature)
    except ValueError as error:
        raise IdentityError(
            f"The model signature of {identity.name!r} is damaged.", "Copy the file again, or learn it again."
        ) from error
    own_weights = any(name.startswith(("unet.", "text_encoder.")) for name in identity.tensors)
    if found.tokenizer or (found.structure and own_weights):
        raise refusal
    parts = [*found.structure, *found.weights]
    return f"in the {' and the '.join(parts)}" if parts else None


def check_norms(backbone: Backbone, identity: Identity) -> None:
    """Refuse tokens that are so long that the text encoder overflows.

    Raises:
        IdentityError: a token is longer than `LONGEST_TOKEN` times the class word's, or holds a number that is none.
    """
    if "tokens" not in identity.tensors:
        return
    row = get_token_row(backbone, get_class_token_id(backbone.tokenizer, identity.header.class_word))
    longest = float(identity.tokens.double().norm(dim=-1).max())
    limit = LONGEST_TOKEN * float(row.double().norm())
    if not longest <= limit:
        raise IdentityError(
            f"{identity.name!r} has a token of norm {longest:.3g}; this model's text encoder is good for {limit:.3g}.",
            "Learn it again with a lower learning rate.",
        )
