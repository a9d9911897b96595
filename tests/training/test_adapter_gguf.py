"""From PEFT's files to llama.cpp's: names, order, scale and number types; what does not fit is refused in words."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ModelLoadFailed
from app.providers.workers.llamacpp_adapter import check_adapter

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

from app.core.files import hash_file  # noqa: E402
from app.training.worker.adapter_gguf import write_gguf_adapter  # noqa: E402
from app.training.worker.gguf_header import read_header  # noqa: E402
from tests.providers.adapter_tiny import LAYERS, MODULES, matrices, write_base, write_peft  # noqa: E402

pytestmark = pytest.mark.torch
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base.gguf")


def tensors_of(path: Path) -> dict[str, Any]:
    return {
        each.name: each.data.reshape([int(size) for size in reversed(each.shape)]) for each in gguf.GGUFReader(path).tensors
    }


def test_holds_the_same_change_in_the_bases_own_order(base: Path, tmp_path: Path) -> None:
    """For each layer: the base's rows and the adapter's are in the same order, so that B·A is what PEFT would add."""
    write_gguf_adapter(write_peft(tmp_path / "a"), base, tmp_path / "a.gguf")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.type"].contents() == "lora"
    assert fields["adapter.lora.alpha"].contents() == 8.0
    found, wanted = tensors_of(tmp_path / "a.gguf"), matrices(seed=1)
    assert len(found) == 2 * LAYERS * len(MODULES)
    values = wanted[f"{Q}.lora_B.weight"]
    assert np.array_equal(found["blk.0.attn_q.weight.lora_a"], wanted[f"{Q}.lora_A.weight"])
    assert np.array_equal(found["blk.0.attn_q.weight.lora_b"][:8], values[[0, 4, 1, 5, 2, 6, 3, 7]]), (
        "a head's halves alternate"
    )
    down = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    assert np.array_equal(found["blk.2.ffn_down.weight.lora_b"], wanted[down])


def test_the_same_input_gives_the_same_bytes_and_the_engine_takes_them(base: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a")
    for name in ("one", "two"):
        write_gguf_adapter(folder, base, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "one", "two"], "nothing is left behind"
    check_adapter(tmp_path / "one", hash_file(tmp_path / "one"))


def test_rslora_scales_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    write_gguf_adapter(write_peft(tmp_path / "a", use_rslora=True), base, tmp_path / "a.gguf")
    alpha = gguf.GGUFReader(tmp_path / "a.gguf").fields["adapter.lora.alpha"].contents()
    assert alpha / 4 == pytest.approx(8 / 4**0.5), "llama.cpp divides by the rank"


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_is_widened(base: Path, tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import save_file

    folder = write_peft(tmp_path / "a")
    halves = {name: torch.tensor(array).to(getattr(torch, kind)) for name, array in matrices(seed=1).items()}
    save_file(halves, folder / "adapter_model.safetensors")
    write_gguf_adapter(folder, base, tmp_path / "a.gguf")
    found = tensors_of(tmp_path / "a.gguf")["blk.0.attn_q.weight.lora_a"]
    assert np.array_equal(found, halves[f"{Q}.lora_A.weight"].float().numpy())


def with_tensor(name: str, array: Any) -> dict[str, Any]:
    return {**matrices(seed=1), name: array}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in matrices(seed=1).items() if key != name}


def zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "nan": ("no numbers", lambda: with_tensor(f"{Q}.lora_A.weight", zeros(4, 48) + np.nan), {}),
    "infinity": ("no numbers", lambda: with_tensor(f"{Q}.lora_B.weight", zeros(48, 4) - np.inf), {}),
    "rows": ("do not fit the base", lambda: with_tensor(f"{Q}.lora_B.weight", zeros(40, 4)), {}),
    "columns": ("do not fit the base", lambda: with_tensor(f"{Q}.lora_A.weight", zeros(4, 40)), {}),
    "rank": ("not fit together", lambda: with_tensor(f"{Q}.lora_A.weight", zeros(5, 48)), {}),
    "other rank": ("not of the rank", lambda: matrices(seed=1), {"r": 5}),
    "vector": ("not fit together", lambda: with_tensor(f"{Q}.lora_A.weight", zeros(48)), {}),
    "half a pair": ("not fit together", lambda: without(f"{Q}.lora_A.weight"), {}),
    "no pairs": ("no matrices", lambda: {}, {}),
    "no such layer": (
        "no layer",
        lambda: {name.replace("layers.2", "layers.9"): array for name, array in matrices(seed=1).items()},
        {},
    ),
    "a norm": ("something else", lambda: with_tensor("base_model.model.model.norm.weight", zeros(48)), {}),
    "an embedding": (
        "embedding",
        lambda: {
            "base_model.model.model.embed_tokens.lora_A.weight": zeros(4, 48),
            "base_model.model.model.embed_tokens.lora_B.weight": zeros(400, 4),
        },
        {},
    ),
    "whole numbers": ("number type", lambda: with_tensor(f"{Q}.lora_A.weight", np.zeros((4, 48), dtype=np.int32)), {}),
    "dora": ("use_dora", lambda: matrices(seed=1), {"use_dora": True}),
    "trained heads": ("modules_to_save", lambda: matrices(seed=1), {"modules_to_save": ["lm_head"]}),
    "bias": ("bias", lambda: matrices(seed=1), {"bias": "all"}),
    "alpha nought": ("alpha", lambda: matrices(seed=1), {"lora_alpha": 0}),
    "alpha is text": ("alpha", lambda: matrices(seed=1), {"lora_alpha": "16"}),
    "alpha is true": ("alpha", lambda: matrices(seed=1), {"lora_alpha": True}),
    "alpha infinite": ("alpha", lambda: matrices(seed=1), {"lora_alpha": float("inf")}),
    "rank is huge": ("rank", lambda: matrices(seed=1), {"r": 10**9}),
    "not lora": ("not a LoRA", lambda: matrices(seed=1), {"peft_type": "IA3"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(base: Path, tmp_path: Path, case: str) -> None:
    words, tensors, config = REFUSED[case]
    folder = write_peft(tmp_path / "a", tensors=tensors(), **config)
    with pytest.raises(ModelLoadFailed, match=words):
        write_gguf_adapter(folder, base, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_damaged_files_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, words = weights.read_bytes(), config.read_bytes()
    bad_weights = [whole[:cut] for cut in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1)]
    bad_weights += [b"\x80\x04K\x01.", struct.pack("<Q", 2**63) + whole[8:], whole + b"x", struct.pack("<Q", 2) + b"[]"]
    for data in bad_weights:
        weights.write_bytes(data)
        with pytest.raises(ModelLoadFailed):
            write_gguf_adapter(folder, base, tmp_path / "a.gguf")
    weights.write_bytes(whole)
    bad_configs = [b"", b"[]", b"null", b"[" * 100_000, b'{"a": ' * 50_000, words[:-1], b"\xff" * 9, b" " * (1 << 21)]
    for data in bad_configs:
        config.write_bytes(data)
        with pytest.raises(ModelLoadFailed):
            write_gguf_adapter(folder, base, tmp_path / "a.gguf")
    config.unlink()
    with pytest.raises(ModelLoadFailed, match="cannot be read"):
        write_gguf_adapter(folder, base, tmp_path / "a.gguf")


def test_bases_of_other_kinds_and_damaged_ones_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a")
    other = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(str(other), arch="mamba")
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadFailed, match="mamba"):
        write_gguf_adapter(folder, other, tmp_path / "a.gguf")
    whole = base.read_bytes()
    head = len(whole) - sum(4 * int(np.prod(each.shape)) for each in gguf.GGUFReader(base).tensors)
    for cut in (0, 3, 4, 20, *range(24, head - 64, head // 40)):
        other.write_bytes(whole[:cut])
        with pytest.raises(ModelLoadFailed):
            write_gguf_adapter(folder, other, tmp_path / "a.gguf")
    for at, value in ((8, 2**60), (16, 2**60), (24, 2**60)):
        other.write_bytes(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
        with pytest.raises(ModelLoadFailed):
            write_gguf_adapter(folder, other, tmp_path / "a.gguf")


def test_the_header_says_what_the_official_reader_says(base: Path) -> None:
    header, official = read_header(base), gguf.GGUFReader(base)
    assert header.shapes == {each.name: tuple(int(size) for size in reversed(each.shape)) for each in official.tensors}
    for name, value in header.values.items():
        assert official.fields[name].contents() == (pytest.approx(value) if isinstance(value, float) else value)
    assert {"general.architecture", "llama.attention.head_count_kv"} <= header.values.keys()
