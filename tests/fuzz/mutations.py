"""Damage to valid files: what a bad disk does, and what somebody does who knows the format."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import yaml

# Unpickled, it would make a folder; so would the tag in YAML.
PAYLOAD = b"cos\nmkdir\n(S'executed'\ntR"
NAMES = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "\0", "\ud800", "é", "²", "n" * 5000, "__class__", "a\nb"]
NUMBERS = [-1, 0, 1, 2**31 - 1, 2**63, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf")]
ODD = [None, True, False, *NUMBERS, *NAMES, [], {}, [[]], [{}], {"": []}, [0] * 300]
DEEP = "[" * 100_000
TAGS = ["!!bool x", "!!int ''", "!!float x", "!!timestamp x", "!!binary é", "!!set [a]", "!!omap {a: 1}", "!!null [a]"]
TAGS += ["!!python/object/apply:os.mkdir [executed]", "2020-13-01", "190:20:30", "0o9", "1_0", ".nan", "9" * 5000]
TAGS += ["&a [*a]", "&a {a: *a}", "*b", "{<<: 1}", "{<<: [[1]]}", "? [a]", "{[a]: b}", "{1: 2, a: 3}", "=", "- " * 5000]
BOMB = ["&a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]  # ten times ten times ... as many values
BOMB += [f"&{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghi")]
TAGS += [f"[{', '.join(BOMB)}]", DEEP[:2000], DEEP]
OPCODES = [PAYLOAD, b"c__builtin__\nexec\n", b"ctorch.storage\n_load_from_bytes\n", b"ccollections\nOrderedDict\n"]
OPCODES += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"h\xff"]
OPCODES += [b"\x8a\x08" + b"\x7f" * 8, b"X\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6), b"q\x01", b"\x80\xff"]
OPCODES += [b"]\x85" + b"\x85" * 50_000, b"(" * 50_000, *(bytes([code]) for code in b"()tl]}N\x88.RbQsue0")]


def mutate(folder: Path, draw: Random) -> None:
    """Damage something in ``folder``, in one of many ways."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    file = draw.choice(files)
    if draw.random() < 0.1:
        draw.choice(_TREE)(file, draw.choice(files), draw)
        return
    content = file.read_bytes()
    knows = _FORMATS.get(file.suffix)
    if knows and draw.random() < 0.7:
        try:
            file.write_bytes(knows(content, draw))
            return
        except Exception:  # it was damaged before, so that nobody knows its format any more
            pass
    file.write_bytes(_bytes(content, draw))


def _bytes(content: bytes, draw: Random) -> bytes:
    """Some bytes changed, put in, moved or taken away."""
    begin, end = _span(content, draw)
    part = content[begin:end]
    others = [bytes(len(part)), b"\xff" * len(part), draw.randbytes(len(part)), content[: len(part)], part * 2, b""]
    extremes = [struct.pack("<q", 2 ** draw.randrange(63)), struct.pack("<i", -1), b"\xff", b"\0", draw.randbytes(1)]
    flipped = bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] if part else b"\0"
    if draw.random() < 0.2:
        return content[:begin]
    if draw.random() < 0.2:
        return content[:begin] + draw.randbytes(draw.randrange(40)) + content[begin:]
    new = draw.choice([flipped, draw.choice(others), draw.choice(extremes)])
    return content[:begin] + new + content[begin + len(new) if new in extremes else end :]


def _span(content: bytes, draw: Random) -> tuple[int, int]:
    """A stretch anywhere, more often near an end, where headers and tables of contents are."""
    near = min(len(content), 200)
    begin = draw.choice(
        [draw.randrange(len(content) + 1), draw.randrange(near + 1), len(content) - draw.randrange(near + 1)]
    )
    return begin, min(len(content), begin + draw.choice([1, 1, 4, 8, 1000]))


def _change(content: Any, draw: Random) -> Any:
    """Plain data with one thing in it of another type or size, renamed, nested, repeated or gone."""
    places = list(islice(_places(content), 10_000))  # a few aliases of aliases stand for billions
    if not places:
        return draw.choice(ODD)
    parent, key = draw.choice(places)
    value = parent[key]
    kind = draw.randrange(6)
    if kind == 0:
        parent[key] = [value] if draw.random() < 0.5 else {"a": value}
    elif kind == 1:
        del parent[key]
    elif kind == 2 and isinstance(parent, dict):
        parent[draw.choice(NAMES)] = parent.pop(key)
    elif kind == 3:
        other, name = draw.choice(places)
        parent[key] = copy.deepcopy(other[name])
    elif kind == 4 and isinstance(value, int | float):
        parent[key] = draw.choice([value + 1, value - 1, -value, float(value)])
    else:
        parent[key] = draw.choice(ODD)
    return content


def _places(content: Any) -> Any:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield content, key
        yield from _places(value)


def _json(content: bytes, draw: Random) -> bytes:
    text = json.dumps(_change(json.loads(content), draw))
    if draw.random() < 0.1:  # what no writer of JSON would write
        place = draw.choice([k for k, letter in enumerate(text) if letter in ":,["])
        text = text[: place + 1] + draw.choice([DEEP, "9" * 5000, "1e999,", '"\\x"', text]) + text[place + 1 :]
    if draw.random() < 0.1 and text.startswith("{"):
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode()


def _yaml(content: bytes, draw: Random) -> bytes:
    if draw.random() < 0.4:
        return yaml.safe_dump(_change(yaml.safe_load(content), draw)).encode("utf-8", "surrogatepass")
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    key = lines[number].partition(":")[0]
    new = draw.choice([f"{key}: {draw.choice(TAGS)}", f"{key}: [{draw.choice(TAGS)}]", draw.choice(TAGS), ""])
    return "\n".join([*lines[:number], new, *lines[number + draw.randrange(2) :]]).encode()


def _safetensors(content: bytes, draw: Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if draw.random() < 0.3:
        data = _bytes(data, draw)
    else:
        header = _json(header, draw)
    return struct.pack("<Q", len(header)) + header + data


def _archive(content: bytes, draw: Random) -> bytes:
    """A .pt file: the archive that torch writes, or the pickles in a row that it wrote once."""
    if not content.startswith(b"PK"):
        return _pickle(content, draw)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([*members, *[name for name in members if name.endswith("data.pkl")] * len(members)])
    kind = draw.randrange(8)
    if kind == 0:
        members[draw.choice([f"{name}x", "archive/constants.pkl", *NAMES[1:6]])] = members.pop(name)
    elif kind == 1:
        del members[name]
    else:
        members[name] = (_pickle if name.endswith(".pkl") else _bytes)(members[name], draw)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED if kind == 2 else zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(name.encode("utf-8", "replace").decode(), member)
    return written.getvalue()


def _pickle(content: bytes, draw: Random) -> bytes:
    """An opcode more, less, twice, or another one in its place."""
    places = [place for _, _, place in pickletools.genops(content)]
    k = draw.randrange(len(places) - 1)
    begin, end = places[k], places[k + 1]
    old, new = content[begin:end], draw.choice(OPCODES)
    return content[:begin] + draw.choice([new, new + old, b"", old * 2]) + content[end:]


def _lines(content: bytes, draw: Random) -> bytes:
    """A table of text: a cell of it changed, or a line gone, doubled or moved."""
    lines = content.decode().splitlines()
    k = draw.randrange(len(lines))
    cells = lines[k].split(",")
    cells[draw.randrange(len(cells))] = str(draw.choice(ODD))
    changed = draw.choice([[",".join(cells)], [], [lines[k]] * 2, [draw.choice(lines)], ['"' + lines[k]]])
    return "\n".join([*lines[:k], *changed, *lines[k + 1 :]]).encode("utf-8", "surrogatepass")


def _remove(file: Path, other: Path, draw: Random) -> None:
    file.unlink()


def _exchange(file: Path, other: Path, draw: Random) -> None:
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def _folder(file: Path, other: Path, draw: Random) -> None:
    file.unlink()
    file.mkdir()


def _link(file: Path, other: Path, draw: Random) -> None:
    """To itself, nowhere, outside, a folder, a device, or another file."""
    file.unlink()
    file.symlink_to(
        draw.choice([file, file.with_name("nowhere"), Path("/etc/passwd"), file.parent, Path("/dev/null"), other])
    )


def _rename(file: Path, other: Path, draw: Random) -> None:
    file.rename(file.with_name(draw.choice(["é", "a\nb", "n" * 200, f".{file.name}", f"{file.name}.json"])))


def _empty(file: Path, other: Path, draw: Random) -> None:
    file.write_bytes(b"")


def _stray(file: Path, other: Path, draw: Random) -> None:
    file.with_name(f"stray{file.suffix}").write_bytes(other.read_bytes())


_TREE: list[Callable[[Path, Path, Random], None]] = [_remove, _exchange, _folder, _link, _rename, _empty, _stray]
_FORMATS: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _json,
    ".ipynb": _json,
    ".yml": _yaml,
    ".safetensors": _safetensors,
    ".pt": _archive,
    ".csv": _lines,
    ".txt": _lines,
}
