"""Random changes of files: of their bytes, and of the structure of JSON, TOML and safetensors headers."""

import copy
import json
import random
import struct
import tomllib
from functools import reduce

EXTREMES: list[object] = [
    None, True, False, 0, -1, 1, 3, 7, 2**31, 10**9, 10**12, -(10**30), 0.0, -0.5, 1e-30, 1e30, "", "x", "../x", "\0",
    "8", "x" * 5000, [], [[]], [None], [0], [1] * 2000, {}, {"a": {}}, "UpBlock2D", "AutoencoderKL", "F16", "gelu",
]  # fmt: skip
DEEP = reduce(lambda inner, _: [inner], range(100), [])
HOSTILE: list[object] = [
    *EXTREMES, float("nan"), float("inf"), -float("inf"), 10**400, 2**63, DEEP, "x" * 10**6, "\udcff", [0, 2**62],
    {str(number): {} for number in range(20_000)}, "I64", "F8_E4M3", "BF16", [10**8, 2, 0], [2] * 64,
]  # fmt: skip
WORDS = (b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"[" * 5000, b"null", b'"x"', b"{}", b"[]", b"\xff\xfe", b"F8_E4M3")
Json = dict | list


def nodes(tree: object) -> list[tuple[Json, object]]:
    """Every place in a JSON tree: its container and its key."""
    places: list[tuple[Json, object]] = []
    todo: list[object] = [tree]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    return places


def change_structure(tree: dict, chance: random.Random, values: list[object] = EXTREMES) -> dict:
    """Delete, rename, retype, swap, nest or exaggerate one to three values."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        places = nodes(tree)
        if not places:
            return tree
        container, key = chance.choice(places)
        value = container[key]
        match chance.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[f"{key}{chance.choice(['_', '2', ''])}x"] = container.pop(key)
            case 2:
                other, place = chance.choice(places)
                container[key] = copy.deepcopy(other[place]) if other is not value else None
            case 3:
                container[key] = [value] if chance.random() < 0.5 else {"content": value}
            case 4 if isinstance(value, int):
                container[key] = value * chance.choice([-1, 2, 3, 1000, 10**9]) + chance.choice([0, 1, -1])
            case _:
                container[key] = copy.deepcopy(chance.choice(values))
    return tree


def change_bytes(content: bytes, chance: random.Random) -> bytes:
    """Overwrite, cut, repeat or insert a few bytes."""
    place = chance.randrange(len(content) + 1)
    match chance.randrange(4):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + bytes(chance.randrange(256) for _ in range(chance.randint(1, 9))) + content[place:]
        case 2:
            return content[:place] + content[place // 2 :]
        case _:
            changed = bytearray(content)
            for _ in range(min(len(changed), chance.randint(1, 9))):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            return bytes(changed)


def change_json(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return change_bytes(content, chance)
    return json.dumps(change_structure(json.loads(content), chance)).encode()


def change_weights(content: bytes, chance: random.Random) -> bytes:
    """Change a header's structure, its bytes or its length; now and then the values."""
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    match chance.randrange(6):
        case 0:
            return content[: chance.randrange(len(content))]
        case 1:
            return content[:8] + header + change_bytes(values, chance)
        case 2:
            return chance.randrange(2 ** chance.choice([4, 16, 21, 40, 64])).to_bytes(8, "little") + header + values
        case _:
            header = change_json(header, chance)
            return len(header).to_bytes(8, "little") + header + values


# ------------------------------------------------------------------ files of `sefi`


def change_parts(content: bytes, chance: random.Random) -> bytes:
    """Make one to four changes: bytes, cuts, repeats, splices, and numbers, brackets and words of JSON and TOML."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(max(len(changed), 1))
        end = place + chance.randint(1, 39)
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[place] = chance.randrange(256)
        elif kind == 1:
            del changed[place:end]
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = changed[place:end]
        else:
            changed[place : place if kind == 4 else end] = chance.choice(WORDS)
    if len(changed) > 8 and content[8:9] == b"{" and chance.random() < 0.7:
        # Let the length of the header fit again, so that what stands in it is read.
        grown = len(changed) - len(content)
        changed[:8] = struct.pack("<Q", max(0, struct.unpack("<Q", content[:8])[0] + grown))
    return bytes(changed)


def change_object(content: bytes, chance: random.Random) -> bytes:
    """Change the structure of a JSON object; a tenth names one key twice."""
    tree = change_structure(json.loads(content), chance, HOSTILE)
    text = json.dumps(tree)
    if tree and chance.random() < 0.1:
        key = chance.choice(list(tree))
        text = f"{{{json.dumps(key)}: {json.dumps(chance.choice(HOSTILE))}, {text[1:]}"
    return text.encode()


def change_line(content: bytes, chance: random.Random) -> bytes:
    """Change the structure of one JSON line."""
    lines = content.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = change_object(lines[place], chance)
    return b"\n".join(lines) + b"\n"


def change_toml(content: bytes, chance: random.Random) -> bytes:
    """Change the structure of a TOML file; every table is written inline."""
    tree = change_structure(tomllib.loads(content.decode()), chance, HOSTILE)
    lines = [f"{json.dumps(key)} = {toml_value(value)}" for key, value in tree.items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def toml_value(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case float():
            return repr(value)  # TOML has nan and inf
        case _:
            return json.dumps(value)


def change_tensors(content: bytes, chance: random.Random) -> bytes:
    """Change the header of a safetensors file, or the JSON that one of its metadata holds; the length fits again."""
    length = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text.startswith("{")]
    if inner and chance.random() < 0.6:
        key = chance.choice(inner)
        metadata[key] = change_object(metadata[key].encode(), chance).decode()
        text = json.dumps(header).encode()
    else:
        text = change_object(json.dumps(header).encode(), chance)
    return len(text).to_bytes(8, "little") + text + values


def change_fields(content: bytes, chance: random.Random) -> bytes:
    """Change some bytes of an ONNX file: three of its first operators, three of its last, one anywhere."""
    changed = bytearray(content)
    for end, start in [(2000, 0)] * 3 + [(len(changed), len(changed) - 6000)] * 3 + [(len(changed), 0)]:
        changed[chance.randrange(start, end)] = chance.randrange(256)
    return bytes(changed)
