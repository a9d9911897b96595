"""The lock files fit ``pyproject.toml`` and one another, hold a hash for everything, and name neither an index nor torch."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = [extra for extra in PROJECT["optional-dependencies"]]
CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def entries(lock: Path) -> list[tuple[str, str, str]]:
    """Name, version and the rest (marker and hashes) of each entry."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [
        re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(\S+)(.*)", line) for line in text.splitlines() if line[:1].strip()
    ]
    assert all(found), [line for line, match in zip(text.splitlines(), found, strict=False) if match is None][:3]
    return [(match[1], match[2], match[3]) for match in found if match is not None]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", item)[0].lower().replace("_", "-") for item in requirements}


def test_there_is_a_lock_for_the_base_and_for_each_extra() -> None:
    assert {lock.stem for lock in LOCKS} == {"base", "bootstrap", *EXTRAS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_entry_has_hashes_and_no_line_names_an_index(lock: Path) -> None:
    assert all("--hash=sha256:" in rest for _, _, rest in entries(lock))
    assert not re.search(r"https?:|index-url|find-links|@ ", lock.read_text(encoding="utf-8"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_torch_and_cuda_stay_out(lock: Path) -> None:
    assert [name for name, _, _ in entries(lock) if CUDA.fullmatch(name)] == []


@pytest.mark.parametrize("extra", ["base", *EXTRAS])
def test_each_lock_holds_what_the_project_asks_for(extra: str) -> None:
    locked = {name: version for name, version, _ in entries(ROOT / "requirements" / f"{extra}.lock")}
    wanted = PROJECT["dependencies"] + ([] if extra == "base" else PROJECT["optional-dependencies"][extra])
    assert names(wanted) - {"torch", "aprendiz"} <= set(locked)
    for requirement in wanted:
        name, exact, version = requirement.partition(";")[0].partition("==")
        if exact and name != "torch":
            assert locked[name.lower()] == version


def test_all_locks_agree_so_that_any_two_can_be_installed_together() -> None:
    versions: dict[tuple[str, str], set[str]] = {}
    for lock in LOCKS:
        if lock.stem != "bootstrap":
            for name, version, rest in entries(lock):
                versions.setdefault((name, rest.partition("--hash")[0].strip()), set()).add(version)
    assert {key: found for key, found in versions.items() if len(found) > 1} == {}


def test_torch_is_pinned_beside_the_locks() -> None:
    lines = (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").splitlines()
    [pin] = [line for line in lines if line and not line.startswith("#")]
    assert pin in PROJECT["optional-dependencies"]["hf"]
    assert "aprendiz[hf]" in PROJECT["optional-dependencies"]["train"]
