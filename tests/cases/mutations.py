"""Files and folders damaged at random, each from a seed: bytes, JSON, and what lies in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

OTHER_FILES = [b"", b"{}", b"[]", b"null", b"hello", b"PK\x03\x04", b"\x80\x02}.", b"\x00" * 64]
OUTSIDE = "../outside/secret"
WAYS = ("delete", "rename", "swap", "other")


def flip(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content))
    return (
        content[:place]
        + bytes([content[place] ^ (1 << random.randrange(8))])
        + content[place + 1 :]
    )


def overwrite(content: bytes, random: Random) -> bytes:
    start, count = random.randrange(len(content)), random.randint(1, 16)
    return content[:start] + random.randbytes(count) + content[start + count :]


def cut_out(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + content[start + random.randint(1, 32) :]


def put_in(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + random.randbytes(random.randint(1, 32)) + content[start:]


def repeat(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    end = start + random.randint(1, 64)
    return content[:end] + content[start:end] + content[end:]


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def swap(content: bytes, random: Random) -> bytes:
    count = random.randint(1, max(1, len(content) // 4))
    places = sorted(random.sample(range(len(content) + 1), 2))
    first, second = places[0], max(places[1], places[0] + count)
    one, other = content[first : first + count], content[second : second + count]
    return (
        content[:first] + other + content[first + count : second] + one + content[second + count :]
    )


def replace(content: bytes, random: Random) -> bytes:
    return random.choice(OTHER_FILES)


BYTES: list[Callable[[bytes, Random], bytes]] = [
    *(flip, flip, overwrite, cut_out, put_in, repeat, truncate, swap, replace)
]


def in_json(said: Any, random: Random, ways: tuple[str, ...] = WAYS) -> Any:
    """The same with one value, name or entry changed, somewhere."""
    inner = [key for key in _keys(said) if isinstance(said[key], dict | list) and said[key]]
    if inner and random.random() < 0.75:
        key = random.choice(inner)
        said[key] = in_json(said[key], random, ways)
        return said
    keys = _keys(said)
    if not keys:
        return random.choice([None, 0, [], {}])
    key, how = random.choice(keys), random.choice(ways)
    if how == "delete":
        del said[key]
    elif how == "rename" and isinstance(said, dict):
        said[f"{key}x"] = said.pop(key)
    elif how == "swap":
        other = random.choice(keys)
        said[key], said[other] = said[other], said[key]
    else:
        odd: list[Any] = [
            None,
            True,
            -1,
            0,
            10**19,
            0.5,
            "",
            "x",
            OUTSIDE,
            [],
            [[[]]],
            {},
            {"a": 1},
        ]
        said[key] = random.choice(odd)
    return said


def _keys(said: Any) -> list[Any]:
    return list(said) if isinstance(said, dict) else list(range(len(said)))


def mutate_bytes(file: Path, random: Random) -> str:
    """Change the bytes of a file; of an empty one nothing but its being empty."""
    content = file.read_bytes()
    how = random.choice(BYTES) if content else put_in
    file.write_bytes(how(content, random))
    return f"{how.__name__} in {file.name}"


def mutate_json(file: Path, random: Random) -> str:
    """Change what a JSON file says."""
    said = in_json(json.loads(file.read_text()), random)
    file.write_text(json.dumps(said))
    return f"JSON of {file.name}"


def mutate_header(file: Path, random: Random) -> str:
    """Damage a safetensors file, all but the numbers it still holds, of which it has no sum."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    how = random.randrange(4)
    if how == 0:
        ways = ("delete", "rename", "other")
        header = json.dumps(in_json(json.loads(content[8:end]), random, ways)).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    elif how == 1:
        way = random.choice([truncate, replace])
        file.write_bytes(way(content, random))
    else:
        file.write_bytes(random.choice(BYTES)(content[:end], random) + content[end:])
    return f"header of {file.name}"


def mutate_folder(
    folder: Path, random: Random, mutate: Callable[[Path, Random], str] = mutate_bytes
) -> str:
    """Damage a file of a folder, or what files there are."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    file, other = random.choice(inside), random.choice(inside)
    how = random.randrange(10)
    if how == 0:
        file.unlink()
        return f"without {file.relative_to(folder)}"
    if how == 1:
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
        return f"{file.relative_to(folder)} for {other.relative_to(folder)}"
    if how == 2:
        above = random.choice(sorted({path.parent for path in inside} - {folder}) or [file])
        shutil.rmtree(above) if above.is_dir() else above.unlink()
        return f"without {above.relative_to(folder)}"
    if how == 3:
        file.unlink()
        file.mkdir()
        return f"a folder for {file.relative_to(folder)}"
    if how <= 5:
        texts = [path for path in inside if path.suffix == ".json"]
        if texts:
            return mutate_json(random.choice(texts), random)
    return mutate(file, random) if file.suffix != ".json" else mutate_bytes(file, random)
