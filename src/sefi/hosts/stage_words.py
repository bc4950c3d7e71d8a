"""A word for every stage's key and value vectors, in copies of the text encoders, for programs that encode prompts."""

from collections.abc import Callable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import TextEncoding, copy_part
from sefi.backbone.tokenizer import add_exact_words
from sefi.core.errors import PromptError
from sefi.core.prompts import PLACEHOLDER, make_unknown_placeholder_error
from sefi.core.text import is_utf8
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.text import TOKENIZING, join_texts
from sefi.identity.tokens import get_stage

# A prompt to states `[1, word, width]`; of SDXL with the pooled text `[1, pooled]`.
TextEncoder = Callable[[str], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StageTextParts:
    """Copies of a pipeline's tokenizers and text encoders that know the identities' vectors, under the same names.

    Programs such as compel take the pipeline itself, or its parts; they take these instead. Weights are shared, except
    for the token tables.
    """

    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any

    @property
    def device(self) -> torch.device:
        """Where the text encoder lives."""
        return self.text_encoder.device


def format_stage_word(name: str, stage: int, half: int, vector: int) -> str:
    """Format the word of one vector; those of several vectors are numbered as diffusers does.

    >>> [format_stage_word("ada", 4, half, vector) for half in (0, 1) for vector in (0, 1)]
    ['<ada-4k>', '<ada-4k>_1', '<ada-4v>', '<ada-4v>_1']
    """
    return f"<{name}-{stage}{'kv'[half]}>" + (f"_{vector}" if vector else "")


def copy_text_parts(conditioner: IdentityConditioner) -> StageTextParts:
    """Copy a model's tokenizers and text encoders, and add a word for every vector of every stage."""
    backbone = conditioner.backbone
    vectors = {
        format_stage_word(name, stage, half, vector): tokens[stage, half, vector]
        for name, tokens in conditioner.stage_tokens.items()
        for stage, half, vector in torch.cartesian_prod(*map(torch.arange, tokens.shape[:3])).tolist()
    }
    nobody = torch.zeros(0, backbone.token_width)  # a pipeline may be attached to without identities
    stacked = torch.cat([nobody, *(vector.cpu()[None] for vector in vectors.values())])
    rows = stacked.split(list(backbone.token_widths), dim=-1)
    tokenizers = [add_words(tokenizer, list(vectors)) for tokenizer in backbone.tokenizers]
    encoders = [
        add_rows(encoder, table, tokenizer.convert_tokens_to_ids(list(vectors)), some)
        for encoder, table, tokenizer, some in zip(
            backbone.text_encoders, backbone.token_tables, tokenizers, rows, strict=True
        )
    ]
    (tokenizer, second), (encoder, second_encoder) = ([*parts, None][:2] for parts in (tokenizers, encoders))
    return StageTextParts(tokenizer, encoder, second, second_encoder)


def add_words(tokenizer: Any, words: list[str]) -> Any:  # noqa: ANN401
    """Return a copy of a tokenizer that knows new words."""
    with TOKENIZING:
        copied = deepcopy(tokenizer)
    add_exact_words(copied, words)
    return copied


def add_rows(encoder: nn.Module, table: Tensor, places: list[int], rows: Tensor) -> nn.Module:
    """Return a copy of a text encoder with these rows `[word, width]` in its token table `[word, width]`.

    Args:
        places: where they go, in the table or after its end.
    """
    longer = table.new_zeros(max([len(table), *(place + 1 for place in places)]), table.shape[1])
    longer[: len(table)] = table.detach()
    longer[places] = rows.to(longer)
    copied: Any = copy_part(encoder)
    copied.set_input_embeddings(nn.Embedding.from_pretrained(longer))
    return copied


def encode_stage(conditioner: IdentityConditioner, encoder: TextEncoder, prompt: str, timestep: int) -> TextEncoding:
    """Encode a prompt's key and value text of a stage by another program, states `[1, word, 2 * width]`.

    Raises:
        PromptError: an unknown name.
    """
    total = conditioner.backbone.num_train_timesteps
    stages = {name: get_stage(timestep, len(tokens), total) for name, tokens in conditioner.stage_tokens.items()}
    halves = [replace_names_by_words(prompt, stages, half, conditioner.vector_counts) for half in (0, 1)]
    return join_texts(*(read_encoding(encoder(text)) for text in halves))


def replace_names_by_words(prompt: str, stages: Mapping[str, int], half: int, counts: Mapping[str, int]) -> str:
    """Replace names by the words of their vectors in a stage, which are several for a name of several vectors.

    Raises:
        PromptError: an unknown name.
    """
    for name in PLACEHOLDER.findall(prompt):
        if name not in stages:
            raise make_unknown_placeholder_error(name, {known: known for known in stages})
    return PLACEHOLDER.sub(
        lambda found: " ".join(format_stage_word(found[1], stages[found[1]], half, v) for v in range(counts[found[1]])),
        prompt,
    )


def read_encoding(answer: Tensor | tuple[Tensor, Tensor]) -> TextEncoding:
    """Return what another program made of a text as an encoding."""
    states, pooled = (answer, None) if isinstance(answer, Tensor) else answer
    return TextEncoding(states, pooled)


def check_equal_lengths(positive: Sequence[TextEncoding], negative: Sequence[TextEncoding]) -> None:
    """Refuse texts of different lengths, which no pipeline takes together.

    Raises:
        PromptError: a prompt or a negative prompt is longer or shorter than the others.
    """
    prompts, negatives = ({one.states.shape[1] for one in some} for some in (positive, negative))
    if len(prompts | negatives) > 1:
        raise PromptError(
            f"Prompts have {format_lengths(prompts)} states, negative prompts {format_lengths(negatives)}.",
            "Let the encoder cut or pad all to one length.",
        )


def format_lengths(lengths: Set[int]) -> str:
    """Format different lengths, the shortest first."""
    return " and ".join(map(str, sorted(lengths)))


def expand_loaded_words(pipe: Any, prompt: str) -> str:  # noqa: ANN401
    """Write every word of a textual inversion that the pipeline has loaded as the words of all its vectors."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    if convert is None or not is_utf8(prompt):  # which is refused where prompts are parsed
        return prompt
    pieces = PLACEHOLDER.split(prompt)
    with TOKENIZING:
        pieces[::2] = [cast(str, convert(piece, pipe.tokenizer)) for piece in pieces[::2]]
    return "".join(f"<{piece}>" if number % 2 else piece for number, piece in enumerate(pieces))
