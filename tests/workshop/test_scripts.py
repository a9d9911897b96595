"""The scripts: sound shell, help without side effects, and a set-up that does its work once."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "run_llm.sh", ROOT / "run_tests.sh", ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    assert script.stat().st_mode & 0o100 or script.name == "env.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["run_llm.sh", "run_tests.sh", "scripts/lock.sh"])
def test_help_does_nothing_else(script: str, tmp_path: Path) -> None:
    copy = house(tmp_path)
    done = subprocess.run(["bash", script, "--help"], cwd=copy, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")
    assert not (copy / ".venv").exists()


def house(tmp_path: Path) -> Path:
    """A checkout with the scripts and locks only."""
    copy = tmp_path / "house with a space"
    copy.mkdir()
    for name in ("run_llm.sh", "run_tests.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "requirements", copy / "requirements")
    return copy


class Setup:
    """run_llm.sh with a `python -m pip` and an `aprendiz` that only write down how they were called."""

    def __init__(self, tmp_path: Path) -> None:
        self.copy = house(tmp_path)
        self.log = tmp_path / "log"
        self.broken = tmp_path / "broken"
        bin_folder = self.copy / ".venv" / "bin"
        subprocess.run(["python3", "-m", "venv", "--without-pip", str(self.copy / ".venv")], check=True)
        packages = next((self.copy / ".venv" / "lib").glob("python3*")) / "site-packages"
        (packages / "pip").mkdir()
        (packages / "pip" / "__init__.py").touch()
        (packages / "pip" / "__main__.py").write_text(
            f"import sys, pathlib\npathlib.Path({str(self.log)!r}).open('a').write('pip ' + ' '.join(sys.argv[1:]) + '\\n')\n"
            f"sys.exit(pathlib.Path({str(self.broken)!r}).exists())\n"
        )
        (bin_folder / "pip").touch()
        (bin_folder / "aprendiz").write_text(f'#!/bin/sh\necho "aprendiz $*" >> "{self.log}"\n')
        (bin_folder / "aprendiz").chmod(0o700)

    def run(self, *arguments: str, code: int = 0) -> list[str]:
        """What was called."""
        self.log.write_text("")
        environ = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(self.copy)}
        done = subprocess.run(["bash", "run_llm.sh", *arguments], cwd=self.copy, env=environ, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return self.log.read_text().splitlines()


def test_the_second_start_installs_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    first = setup.run("--port", "9000", "--no-train")
    assert [call.split()[0] for call in first] == ["pip", "pip", "pip", "aprendiz"]
    assert all("--require-hashes" in call or "--editable" in call for call in first[:3])
    assert first[3] == "aprendiz serve --pull --port 9000"
    assert setup.run("--no-train", "--host", "::1") == ["aprendiz serve --pull --host ::1"]
    assert setup.run("--no-train", "--setup-only") == ["aprendiz models pull --configured"]


def test_what_training_needs_comes_first_or_later_but_once(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    first = setup.run("--train", "--setup-only")
    assert [call.split()[0] for call in first] == ["pip"] * 5 + ["aprendiz"]
    assert first[3].endswith("-r requirements/train.lock")
    assert "--require-hashes" in first[3]
    assert first[4].endswith("-r requirements/torch.txt")
    assert setup.run() == ["aprendiz serve --pull"]
    (setup.copy / ".venv" / ".installed-torch").unlink()
    assert setup.run("--no-train") == ["aprendiz serve --pull"]
    # in the background: the service does not wait for it
    setup.run()
    deadline = time.monotonic() + 20
    while not (setup.copy / ".venv" / ".installed-torch").exists():
        assert time.monotonic() < deadline, (setup.copy / ".cache" / "train-setup.log").read_text()
        time.sleep(0.05)
    while (setup.copy / ".venv" / ".installing-train").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_changed_lock_is_installed(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.run("--no-train")
    with (setup.copy / "requirements" / "memory.lock").open("a") as lock:
        lock.write("# changed\n")
    assert len(setup.run("--no-train")) == 4


def test_a_broken_installation_is_done_again(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.broken.touch()
    setup.run("--no-train", code=1)
    setup.broken.unlink()
    assert len(setup.run("--no-train")) == 4
    assert len(setup.run("--no-train")) == 1


def test_without_a_python_it_says_what_to_do(tmp_path: Path) -> None:
    copy = house(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "cat", "flock"):
        if (found := shutil.which(tool)) is not None:
            (tools / tool).symlink_to(found)
    done = subprocess.run(
        [str(tools / "bash"), "run_llm.sh"], cwd=copy, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_the_container_runs_as_a_nobody_and_its_parts_exist() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    assert "\nUSER 10001:10001\n" in text
    assert "\nHEALTHCHECK " in text
    assert "\nVOLUME /data\n" in text
    assert not re.search(r"uninstall.*\bpip$", text, re.M)  # the first start pulls the model with it
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--"):
            assert all((ROOT / name).exists() for name in words[1:-1]), line


def test_compose_keeps_to_loopback_and_gives_no_rights_away() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["aprendiz"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
