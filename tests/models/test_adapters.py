"""Adapters on disk: whole and as their run wrote them, or not used; nothing in a folder leads anywhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ModelLoadFailed
from app.core.files import FileHashes, hash_file
from app.models.adapters import Adapters

BASE = "ab" * 32
NAME = "0198c0de-0000-7000-8000-00000000abcd"


def make(folder: Path, name: str = NAME, **fields: Any) -> Path:
    """An adapter whose weights are but bytes: nothing here reads them."""
    adapter = folder / name
    adapter.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors", "adapter.gguf"):
        (adapter / file).write_bytes(file.encode() * 100)
    seal(adapter, **fields)
    return adapter


def manifest_of(adapter: Path) -> dict[str, Any]:
    files = {path.name: hash_file(path) for path in adapter.iterdir() if path.name != "manifest.json"}
    return {"name": adapter.name, "base_hash": BASE, "method": "sft", "files": files, "created_at": "2026-11-23T21:00:00Z"}


def seal(adapter: Path, **fields: Any) -> None:
    (adapter / "manifest.json").write_text(json.dumps({**manifest_of(adapter), "tuning": "lora", **fields}))


def test_a_whole_adapter_is_found(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    found = Adapters(tmp_path)(NAME)
    assert (found.name, found.folder, found.peft, found.base_hash) == (NAME, adapter, adapter, BASE)
    assert found.adapter_hash == hash_file(adapter / "adapter_model.safetensors")
    assert found.gguf == adapter / "adapter.gguf"
    assert found.files["adapter.gguf"] == hash_file(adapter / "adapter.gguf")


def test_without_a_gguf_file_only_hf_can_serve_it(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    (adapter / "adapter.gguf").unlink()
    seal(adapter)
    assert Adapters(tmp_path)(NAME).gguf is None


def test_what_was_hashed_is_not_hashed_again_until_it_changes(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    adapters = Adapters(tmp_path, FileHashes())
    adapters(NAME)
    (adapter / "adapter.gguf").write_bytes(b"another")
    with pytest.raises(ModelLoadFailed, match="damaged"):
        adapters(NAME)


NAMES = [
    "", ".", "..", "../up", "a/b", "/etc", "a\\b", "A", "a b", "a\0b", "-a", ".hidden", "_a", "ä", "a\n", "x" * 65, "~",
    "%2e%2e", "con:", "a*", "absent", "a/../" + NAME, "./" + NAME, NAME + "/",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / "A").mkdir()
    make(tmp_path.parent, tmp_path.name + "-up")
    with pytest.raises(ModelLoadFailed, match=r"There is no such adapter here\."):
        Adapters(tmp_path)(name)


def relink(adapter: Path, file: str, target: str | Path) -> None:
    (adapter / file).unlink(missing_ok=True)
    (adapter / file).symlink_to(target)


def moved_and_linked(adapter: Path, file: str) -> None:
    outside = adapter.parent / f"outside-{file}"
    (adapter / file).rename(outside)
    relink(adapter, file, outside)


def replace_by_pipe(adapter: Path, file: str) -> None:
    (adapter / file).unlink()
    os.mkfifo(adapter / file)


def replace_by_folder(adapter: Path, file: str) -> None:
    (adapter / file).unlink()
    (adapter / file).mkdir()


def add(adapter: Path, file: str, data: bytes = b"x", *, named: bool = False) -> None:
    (adapter / file).write_bytes(data)
    if named:
        seal(adapter)


def write(adapter: Path, text: str | bytes) -> None:
    (adapter / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def with_files(adapter: Path, **files: Any) -> None:
    seal(adapter, files={**manifest_of(adapter)["files"], **files})


def without_file(adapter: Path, file: str) -> None:
    (adapter / file).unlink()
    seal(adapter)


W, C, G, M = "adapter_model.safetensors", "adapter_config.json", "adapter.gguf", "manifest.json"
HOSTILE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda a: (a / M).unlink(),
    "manifest is empty": lambda a: write(a, ""),
    "manifest is a list": lambda a: write(a, "[]"),
    "manifest is null": lambda a: write(a, "null"),
    "manifest is cut": lambda a: write(a, (a / M).read_bytes()[:-1]),
    "manifest is deep": lambda a: write(a, "[" * 60_000),
    "manifest is deep objects": lambda a: write(a, '{"files":' * 7000),
    "manifest is huge": lambda a: write(a, b" " * (1 << 17) + (a / M).read_bytes()),
    "manifest is binary": lambda a: write(a, b"\x80\x04\x95\xff\xfe"),
    "manifest is half a surrogate": lambda a: write(a, b'{"name": "\\ud800"}'),
    "manifest links out": lambda a: relink(a, M, "/etc/passwd"),
    "manifest links to its own content": lambda a: moved_and_linked(a, M),
    "manifest is a pipe": lambda a: replace_by_pipe(a, M),
    "manifest is a folder": lambda a: replace_by_folder(a, M),
    "manifest links to itself": lambda a: relink(a, M, M),
    "manifest of another": lambda a: seal(a, name="another"),
    "name is a path": lambda a: seal(a, name="../" + a.name),
    "name is a number": lambda a: seal(a, name=7),
    "no base": lambda a: seal(a, base_hash=None),
    "base is no hash": lambda a: seal(a, base_hash="x" * 64),
    "base is upper case": lambda a: seal(a, base_hash=BASE.upper()),
    "base is longer": lambda a: seal(a, base_hash=BASE + "00"),
    "base ends with a line": lambda a: seal(a, base_hash=BASE + "\n"),
    "no files": lambda a: seal(a, files={}),
    "files are a list": lambda a: seal(a, files=[W, C, G]),
    "files are null": lambda a: seal(a, files=None),
    "files are many": lambda a: with_files(a, **{f"f{n}": "00" * 32 for n in range(500)}),
    "a hash lies": lambda a: with_files(a, **{W: "00" * 32}),
    "another hash lies": lambda a: with_files(a, **{G: "00" * 32}),
    "config's hash lies": lambda a: with_files(a, **{C: "00" * 32}),
    "a hash is a number": lambda a: with_files(a, **{W: 12}),
    "a hash is null": lambda a: with_files(a, **{W: None}),
    "a file that is not there": lambda a: (a / G).unlink(),
    "weights are not there": lambda a: (a / W).unlink(),
    "weights are not named": lambda a: without_file(a, W),
    "config is not named": lambda a: without_file(a, C),
    "names a path upwards": lambda a: with_files(a, **{"../x": "00" * 32}),
    "names an absolute path": lambda a: with_files(a, **{"/etc/passwd": hash_file(Path("/etc/passwd"))}),
    "names the manifest": lambda a: with_files(a, **{M: "00" * 32}),
    "names nothing": lambda a: with_files(a, **{"": "00" * 32}),
    "a pickle beside": lambda a: add(a, "adapter_model.bin", b"\x80\x04cos\nsystem\n"),
    "a pickle, named": lambda a: add(a, "adapter_model.bin", b"\x80\x04cos\nsystem\n", named=True),
    "a program beside": lambda a: add(a, "modeling.py"),
    "a program, named": lambda a: add(a, "modeling.py", named=True),
    "a hidden file": lambda a: add(a, ".hidden"),
    "a folder beside": lambda a: (a / "more").mkdir(),
    "a link beside": lambda a: (a / "more").symlink_to("/etc"),
    "a dead link beside": lambda a: (a / "more").symlink_to("/nowhere"),
    "weights link out": lambda a: relink(a, W, "/etc/passwd"),
    "weights link to their own content": lambda a: moved_and_linked(a, W),
    "config links to its own content": lambda a: moved_and_linked(a, C),
    "gguf links to its own content": lambda a: moved_and_linked(a, G),
    "weights link to a device": lambda a: relink(a, W, "/dev/zero"),
    "weights are a pipe": lambda a: replace_by_pipe(a, W),
    "gguf is a pipe": lambda a: replace_by_pipe(a, G),
    "weights are a folder": lambda a: replace_by_folder(a, W),
    "config is a folder": lambda a: replace_by_folder(a, C),
    "weights changed": lambda a: add(a, W, b"other"),
    "weights emptied": lambda a: add(a, W, b""),
    "gguf is one byte shorter": lambda a: (a / G).write_bytes((a / G).read_bytes()[:-1]),
    "gguf is one byte longer": lambda a: (a / G).write_bytes((a / G).read_bytes() + b"\0"),
    "config is too large": lambda a: add(a, C, b" " * ((1 << 20) + 1), named=True),
    "weights are a sparse giant": lambda a: os.truncate(a / W, (4 << 30) + 1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused_in_the_same_words(tmp_path: Path, case: str) -> None:
    adapter = make(tmp_path)
    HOSTILE[case](adapter)
    with pytest.raises(ModelLoadFailed) as caught:
        Adapters(tmp_path)(NAME)
    assert "restore it from a backup or train again" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


def test_a_folder_that_is_a_link_is_none(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / NAME).symlink_to(tmp_path / "elsewhere" / NAME)
    with pytest.raises(ModelLoadFailed, match="no such adapter"):
        Adapters(tmp_path / "adapters")(NAME)


def test_a_run_that_trained_all_weights_left_no_adapter(tmp_path: Path) -> None:
    whole = {f"{'model' * 20}-{number:05}.safetensors": "0" * 64 for number in range(40)}
    seal(make(tmp_path), tuning="full", files=whole)
    with pytest.raises(ModelLoadFailed, match="all weights"):
        Adapters(tmp_path)(NAME)


def test_a_folder_of_adapters_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="no such adapter"):
        Adapters(tmp_path / "none")(NAME)
