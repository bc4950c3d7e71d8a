"""Several names in a prompt: each one's words hold nothing of the others."""

from dataclasses import replace

import pytest
import torch
from tests.hosts.conftest import make_identity

import sefi
from sefi.backbone.bundle import Backbone
from sefi.core.config import dump_config, override
from sefi.core.errors import ConfigError
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner, apply_text_settings
from sefi.identity.file import Identity
from sefi.methods import PRESETS

PROMPT = "a photo of <ada> and <bob> at the beach"
PLACES = {"ada": 4, "bob": 6}  # after the start of the text


@pytest.fixture
def people(backbone: Backbone) -> list[Identity]:
    """Three people, of 5, of 3 and of 3 stages, the second with two vectors."""
    return [
        make_identity(backbone, "ada", 5, 1),
        make_identity(backbone, "bob", 3, 2, 2),
        make_identity(backbone, "cy", 3, 3),
    ]


def encode(backbone: Backbone, people: list[Identity], prompt: str = PROMPT, **settings: object) -> torch.Tensor:
    return IdentityConditioner(backbone, people, **settings).encode_prompts([prompt], 700).states[0]


def make_plain(backbone: Backbone, identity: Identity) -> Identity:
    """The class word under a person's name."""
    row = IdentityConditioner(backbone, [identity]).expand_class_words({identity.name: identity.stage_tokens})
    return replace(identity, tensors={"tokens": row[identity.name].reshape(identity.tokens.shape)})


def test_each_name_reads_as_beside_the_class_word(backbone: Backbone, people: list[Identity]) -> None:
    ada, bob, _ = people
    both = encode(backbone, [ada, bob])
    plain_ada, plain_bob = make_plain(backbone, ada), make_plain(backbone, bob)
    alone = {
        "ada": encode(backbone, [ada, plain_bob], separate_names=False),
        "bob": encode(backbone, [plain_ada, bob], separate_names=False),
        "nobody": encode(backbone, [plain_ada, plain_bob], separate_names=False),
    }
    owner = {4: "ada", 6: "bob", 7: "bob"}
    for place in range(len(both)):
        torch.testing.assert_close(both[place], alone[owner.get(place, "nobody")][place], msg=f"word {place}")
    together = encode(backbone, [ada, bob], separate_names=False)
    assert (both[6] - together[6]).abs().max() > 1e-3, "bob is read after ada"


def test_nobody_changes_what_another_is(backbone: Backbone, people: list[Identity]) -> None:
    ada, bob, cy = people
    other = replace(cy, header=cy.header.model_copy(update={"name": "ada"}))
    first, second = encode(backbone, [ada, bob]), encode(backbone, [other, bob])
    changed = [place for place in range(len(first)) if not torch.allclose(first[place], second[place])]
    assert changed == [PLACES["ada"]]


def test_a_name_alone_is_as_it_was_and_every_place_of_a_name_is_its_own(
    backbone: Backbone, people: list[Identity]
) -> None:
    for prompt in ("a photo of <ada>", "<ada> and <ada>"):
        assert torch.equal(encode(backbone, people, prompt), encode(backbone, people, prompt, separate_names=False))
    twice = encode(backbone, people, "<ada> and <cy> and <ada>")
    plain = encode(
        backbone, [people[0], make_plain(backbone, people[2])], "<ada> and <cy> and <ada>", separate_names=False
    )
    torch.testing.assert_close(twice[[1, 5]], plain[[1, 5]])


def test_prompts_of_a_batch_are_as_alone(backbone: Backbone, people: list[Identity]) -> None:
    prompts = [PROMPT, "a photo of <cy>", "<ada>, <bob> and <cy>", "a dog"]
    together = IdentityConditioner(backbone, people).encode_prompts(prompts, 300).states
    alone = [IdentityConditioner(backbone, people).encode_prompts([prompt], 300).states[0] for prompt in prompts]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_at_strength_0_and_with_a_limit_nothing_is_changed_twice(backbone: Backbone, people: list[Identity]) -> None:
    header = people[1].header.model_copy(update={"class_word": "old person"})
    some = [people[0], replace(people[1], header=header)]
    zero, joint = (encode(backbone, some, strength=0, separate_names=found) for found in (True, False))
    assert torch.equal(zero, joint), "the class words themselves, of however many tokens"
    conditioner = IdentityConditioner(backbone, people, context_limit=1e-6)
    conditioner.encode_prompts([PROMPT, "a photo of <cy>"], 700)
    assert conditioner.chosen_strengths[PROMPT] == 1, "where names are apart no other word turns"
    assert conditioner.chosen_strengths["a photo of <cy>"] < 1


def test_weights_and_slots_of_class_words_are_each_names_own(backbone: Backbone, people: list[Identity]) -> None:
    ada, bob = people[0], people[1]
    weighted = encode(backbone, [ada, bob], "a photo of (<ada>:1.5) and <bob> at the beach")
    plain = encode(backbone, [ada, bob])
    changed = [place for place in range(len(plain)) if not torch.allclose(weighted[place], plain[place], atol=1e-6)]
    assert changed == [PLACES["ada"]]
    slots = [(stage, slot) for stage in range(3) for slot in "KV"]
    held = encode(backbone, [ada, bob], class_slots=slots)
    assert not torch.allclose(held[PLACES["bob"]], plain[PLACES["bob"]])
    torch.testing.assert_close(held[0], plain[0])


def test_the_setting_encodes_them_together(backbone: Backbone, people: list[Identity]) -> None:
    settings = override(PRESETS["default"], ["generate.separate_names=false", "generate.steps=2"]).generate
    found = apply_text_settings(IdentityConditioner(backbone, people), settings).encode_prompts([PROMPT], 700)
    assert torch.equal(found.states[0], encode(backbone, people, separate_names=False))
    with pytest.raises(ConfigError, match="more than tokens"):
        apply_text_settings(WordsConditioner(backbone, {}), settings)
    assert "separate_names" not in dump_config(PRESETS["default"])["generate"]
    draw = {"backbone": backbone, "seed": 1, "steps": 2}
    apart, joined = (sefi.generate([PROMPT], people[:2], separate_names=found, **draw)[0] for found in (True, False))
    assert apart.pixels.tobytes() != joined.pixels.tobytes()
