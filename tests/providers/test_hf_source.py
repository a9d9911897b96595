"""Which folders are read at all, and what is said where no hub is reachable. No torch in here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from app.providers.workers.hf_source import LoadRefused, Source, base_hash, is_hub_name, local


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_plain_folder_is_taken(folder: Path) -> None:
    assert local(folder) == Source(folder, is_gguf=False)


@pytest.mark.parametrize("name", ["modeling_x.py", "kernel.so", "sub/hook.PY"])
def test_program_code_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("print()")
    with pytest.raises(LoadRefused, match="program code"):
        local(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [{"auto_map": {"AutoModel": "x.Y"}}, {"text_config": {"auto_map": {}}}])
def test_auto_map_is_refused(folder: Path, file: str, content: object) -> None:
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(LoadRefused, match="auto_map"):
        local(folder)


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickles_as_only_weights_are_refused(folder: Path, ending: str) -> None:
    (folder / "model.safetensors").rename(folder / f"pytorch_model.{ending}")
    with pytest.raises(LoadRefused, match="pickle"):
        local(folder)


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(LoadRefused, match="link"):
        local(folder)


def test_links_within_are_taken(folder: Path) -> None:
    (folder / "again.json").symlink_to(folder / "config.json")
    assert not local(folder).is_gguf


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin", "gone.safetensors"])
def test_an_index_may_name_only_safetensors_beside_it(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadRefused):
        local(folder)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[1]", "\x00"])
def test_a_broken_index_is_refused(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LoadRefused):
        local(folder)


def test_folders_that_are_no_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadRefused, match=r"no config\.json"):
        local(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadRefused, match="no weights"):
        local(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(LoadRefused, match="adapter"):
        local(folder)


def test_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(LoadRefused) as caught:
        local(tmp_path / "gone")
    assert caught.value.unknown


def test_a_pickle_by_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(LoadRefused, match="GGUF"):
        local(tmp_path / "x.bin")


def test_a_folder_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert local(tmp_path) == Source(tmp_path / "a.gguf", is_gguf=True)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadRefused, match="several"):
        local(tmp_path)


def test_hub_names() -> None:
    assert all(map(is_hub_name, ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b_c.d"]))
    assert not any(map(is_hub_name, ["", "/etc/passwd", "../x", "a/../b", "a/b/c", "a b", "a--b", "-x", "x" * 400, "a\n"]))


def test_the_base_hash_is_the_files_own_and_follows_a_change(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = local(folder)
    first = base_hash(source, cache)
    assert first == hashlib.sha256(b"weights").hexdigest()
    assert base_hash(source, cache) == first
    (folder / "model.safetensors").write_bytes(b"wEights")
    assert base_hash(source, cache) != first
    (folder / "more.safetensors").write_bytes(b"more")
    two = base_hash(source, cache)
    assert two not in (first, hashlib.sha256(b"more").hexdigest())


def test_a_cache_that_cannot_be_written_costs_only_time(folder: Path) -> None:
    assert base_hash(local(folder), Path("/dev/null/cache")) == hashlib.sha256(b"weights").hexdigest()
