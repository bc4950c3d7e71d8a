"""ComfyUI's interfaces, stated again in few lines on models of diffusers and transformers, and the node pack in it.

Read in ComfyUI 0.3.64: `comfy/sd1_clip.py` (tokens with weights, chunks, vectors among tokens), `comfy/sdxl_clip.py`,
`comfy/model_sampling.py` (noise, timesteps, percents), `comfy/samplers.py::get_area_and_mult` (which text runs),
`comfy/ldm/modules/attention.py::BasicTransformerBlock` (the patch of `attn2`), `folder_paths.py`.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch.nn import functional as F

PACK = Path(__file__).parents[2] / "integrations" / "comfyui-sefi"


# ------------------------------------------------------------------ folders and the pack


def make_folder_paths(models):
    """ComfyUI's module `folder_paths`: a folder of models, and kinds of them with folders and endings."""
    module = ModuleType("folder_paths")
    module.models_dir = str(models)
    module.folder_names_and_paths = {}

    def add_model_folder_path(kind, folder):
        paths, _ = module.folder_names_and_paths.setdefault(kind, ([], set()))
        if folder not in paths:
            paths.append(folder)

    def list_files(kind):
        folders, endings = module.folder_names_and_paths[kind]
        found = {p.relative_to(f): p for f in folders for p in Path(f).rglob("*") if p.suffix in endings}
        return {str(name): str(path) for name, path in found.items()}

    def get_full_path_or_raise(kind, name):
        if name not in list_files(kind):
            raise FileNotFoundError(name)
        return list_files(kind)[name]

    module.add_model_folder_path = add_model_folder_path
    module.get_filename_list = lambda kind: sorted(list_files(kind))
    module.get_full_path_or_raise = get_full_path_or_raise
    return module


def load_pack(folder_paths):
    """Load the pack as ComfyUI does: by the path of its folder, under a name of its own."""
    name = f"custom_nodes_{id(folder_paths)}"
    before = sys.modules.get("folder_paths")
    sys.modules["folder_paths"] = folder_paths
    try:
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    finally:
        del sys.modules["folder_paths"]
        if before is not None:
            sys.modules["folder_paths"] = before
    return sys.modules[name]


# ------------------------------------------------------------------ texts


def parse_weights(text, weight=1.0):
    """`token_weights`: `(words:1.2)` and nested brackets of 1.1 each."""
    parts, depth, current = [], 0, ""
    for sign in text:
        if sign == "(" and not depth:
            parts.append(current)
            current = ""
        depth += {"(": 1, ")": -1}.get(sign, 0)
        current += sign
        if sign == ")" and not depth:
            parts.append(current)
            current = ""
    found = []
    for part in [*parts, current]:
        if not (part.startswith("(") and part.endswith(")")):
            found += [(part, weight)] if part else []
            continue
        inner = part[1:-1]
        number = re.search(r":([0-9.]+)$", inner)
        new = float(number[1]) if number else 1.1 * weight
        found += parse_weights(inner[: number.start()] if number else inner, new)
    return found


def tokenize(tokenizer, text):
    """`tokenize_with_weights`: chunks of (number, weight) with start, end and padding; short words stay together."""
    length, start, end = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    chunks = [[(start, 1.0)]]
    for words, weight in parse_weights(text):
        group = [(number, weight) for number in tokenizer(words, add_special_tokens=False).input_ids]
        while group:
            space = length - 1 - len(chunks[-1])
            if len(group) <= space:
                chunks[-1] += group
                break
            taken = space if len(group) >= 8 else 0
            chunks[-1] += [*group[:taken], (end, 1.0)]
            chunks[-1] += [(tokenizer.pad_token_id, 1.0)] * (length - len(chunks[-1]))
            chunks.append([(start, 1.0)])
            group = group[taken:]
    chunks[-1].append((end, 1.0))
    chunks[-1] += [(tokenizer.pad_token_id, 1.0)] * (length - len(chunks[-1]))
    return chunks


def encode_embeddings(encoder, embeddings, end, *, penultimate):
    """States of a text encoder for token embeddings `[word, width]` and its pooled text at word `end`."""
    ids = torch.full((1, len(embeddings)), encoder.config.bos_token_id)
    ids[0, end] = encoder.config.eos_token_id
    hook = encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings[None])
    try:
        with torch.no_grad():
            answer = encoder(ids, output_hidden_states=True)
    finally:
        hook.remove()
    pooled = answer.text_embeds if penultimate and hasattr(answer, "text_embeds") else None
    return (answer.hidden_states[-2] if penultimate else answer.last_hidden_state), pooled


class HostClip:
    """ComfyUI's `CLIP`: tokenizers and text encoders by the names l, g and h."""

    def __init__(self, encoders, *, penultimate):
        self.encoders, self.penultimate = encoders, penultimate
        self.cond_stage_model = SimpleNamespace(
            **{f"clip_{key}": SimpleNamespace(transformer=encoder) for key, (_, encoder) in encoders.items()}
        )

    def tokenize(self, text):
        # SDXL's come as g, l.
        return {key: tokenize(self.encoders[key][0], text) for key in sorted(self.encoders)}

    def encode_one(self, key, chunks):
        """`encode_token_weights`: a weighted word lies on the line from the empty text's to its own."""
        tokenizer, encoder = self.encoders[key]
        table = encoder.get_input_embeddings().weight.detach()
        blank = [number for number, _ in tokenize(tokenizer, "")[0]]
        texts = [*([number for number, _ in chunk] for chunk in chunks), blank]
        states, pooled = [], []
        for text in texts:
            rows = torch.stack([n.float() if torch.is_tensor(n) else table[n] for n in text])
            end = next(i for i, n in enumerate(text) if not torch.is_tensor(n) and n == tokenizer.eos_token_id)
            state, one = encode_embeddings(encoder, rows, end, penultimate=self.penultimate)
            states.append(state)
            pooled.append(one)
        weighted = [
            torch.stack([(z - e) * w + e for z, e, (_, w) in zip(state[0], states[-1][0], chunk, strict=True)])[None]
            if any(w != 1 for _, w in chunk)
            else state
            for state, chunk in zip(states, chunks, strict=False)
        ]
        return torch.cat(weighted, dim=1), pooled[0]

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        assert return_pooled
        assert return_dict
        answers = {key: self.encode_one(key, tokens[key]) for key in self.encoders}
        cond = torch.cat([states for states, _ in answers.values()], dim=-1)
        return {"cond": cond, "pooled_output": list(answers.values())[-1][1]}


def make_clip(backbone):
    """The host's CLIP of a model of ours; the names are those of ComfyUI."""
    if backbone.text_encoder_2 is None:
        return HostClip({"l": (backbone.tokenizer, backbone.text_encoder)}, penultimate=False)
    second = (backbone.tokenizer_2, backbone.text_encoder_2)
    return HostClip({"l": (backbone.tokenizer, backbone.text_encoder), "g": second}, penultimate=True)


# ------------------------------------------------------------------ noise


class HostSampling:
    """`ModelSamplingDiscrete`: noise by timestep, rounded in the logarithm; percents count from the noisiest."""

    def __init__(self, alphas_cumprod):
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.log_sigmas = self.sigmas.log()

    def timestep(self, sigma):
        return int((torch.as_tensor(sigma).log() - self.log_sigmas).abs().argmin())

    def sigma(self, timestep):
        t = torch.tensor(float(timestep)).clamp(0, len(self.sigmas) - 1)
        low, high, part = int(t.floor()), int(t.ceil()), t.frac()
        return float(((1 - part) * self.log_sigmas[low] + part * self.log_sigmas[high]).exp())

    def percent_to_sigma(self, percent):
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else self.sigma((1 - percent) * 999)

    def list_running(self, conditioning, sigma):
        """Which conditionings run at a noise, `get_area_and_mult`: those whose range holds it, ends counted."""
        return [
            one
            for one in conditioning
            if self.percent_to_sigma(one[1].get("end_percent", 1.0))
            <= sigma
            <= self.percent_to_sigma(one[1].get("start_percent", 0.0))
        ]

    def list_sigmas(self, scheduler, steps):
        """ComfyUI's schedulers of these names, without the last noise of 0."""
        first, last = float(self.sigmas[-1]), float(self.sigmas[0])
        total = len(self.sigmas)
        if scheduler == "karras":
            ramp = torch.linspace(0, 1, steps)
            return ((first ** (1 / 7) + ramp * (last ** (1 / 7) - first ** (1 / 7))) ** 7).tolist()
        if scheduler == "exponential":
            return torch.linspace(self.log_sigmas[-1], self.log_sigmas[0], steps).exp().tolist()
        if scheduler == "simple":
            return [float(self.sigmas[-(1 + int(x * total / steps))]) for x in range(steps)]
        points = torch.linspace(total - 1, 0, steps + (scheduler == "sgm_uniform"))[:steps]
        return [self.sigma(t) for t in points.tolist()]


# ------------------------------------------------------------------ the UNet


class PatchedProcessor:
    """`BasicTransformerBlock`: patches change the texts before `attn2` makes keys and values of them."""

    def __init__(self, patches):
        self.patches = patches

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, temb=None):
        query, key, value = hidden_states, encoder_hidden_states, encoder_hidden_states
        for patch in self.patches:
            query, key, value = patch(query, key, value, {"sigmas": None, "cond_or_uncond": [0]})
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, query), (attn.to_k, key), (attn.to_v, value))
        )
        read = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](read.transpose(1, 2).flatten(2)))


class HostModel:
    """`ModelPatcher`: clones share the UNet, each has patches of its own that are on during a call only."""

    def __init__(self, unet, patches=()):
        self.unet, self.patches = unet, list(patches)
        config = {"context_dim": unet.config.cross_attention_dim}
        self.model = SimpleNamespace(model_config=SimpleNamespace(unet_config=config))

    def clone(self):
        return HostModel(self.unet, self.patches)

    def set_model_attn2_patch(self, patch):
        self.patches.append(patch)

    def predict(self, noisy, timestep, text, **conditions):
        stock = dict(self.unet.attn_processors)
        cross = {name for name in stock if name.endswith("attn2.processor")}
        try:
            if self.patches:
                self.unet.set_attn_processor(
                    {name: PatchedProcessor(self.patches) if name in cross else one for name, one in stock.items()}
                )
            with torch.no_grad():
                return self.unet(noisy, timestep, text, added_cond_kwargs=conditions or None).sample
        finally:
            self.unet.set_attn_processor(stock)
