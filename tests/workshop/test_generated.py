"""The reference documents and the example files say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from app.core import config
from app.core.settings import VENDOR_KEYS, Settings

ROOT = Path(__file__).parents[2]


def test_generated_documents_are_in_step() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_files_name_every_setting_and_nothing_else() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    settings = {config.env_name(key) for key, _ in config.setting_fields()}
    assert set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.M)) == settings | set(VENDOR_KEYS.values())


def nothing(tmp_path: Path) -> Settings:
    """What there is without any file."""
    (tmp_path / "empty").mkdir()
    return config.load(folder=tmp_path / "empty", environ={}).settings


def test_copying_the_examples_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((ROOT / "config.example.yaml").read_text(encoding="utf-8"))
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text(encoding="utf-8"))
    loaded = config.load(folder=tmp_path, environ={}).settings
    assert loaded == nothing(tmp_path)


def test_every_line_of_the_env_example_is_good_once_it_is_switched_on(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    (tmp_path / ".env").write_text(re.sub(r"^#([A-Z][A-Z0-9_]+=.+)$", r"\1", text, flags=re.M))
    assert config.load(folder=tmp_path, environ={}).settings == nothing(tmp_path)


def test_documents_name_only_commands_that_exist() -> None:
    commands = set(re.findall(r"^## aprendiz (.+)$", (ROOT / "doc" / "cli.md").read_text(encoding="utf-8"), re.M))
    groups = {command.split()[0] for command in commands}
    for document in [ROOT / "README.md", *(ROOT / "doc").glob("*.md")]:
        code = re.findall(r"```(?:bash|sh)?\n(.*?)```|`([^`\n]+)`", document.read_text(encoding="utf-8"), re.S)
        for words in re.findall(r"(?:^|[\s(/])aprendiz ([a-z]+)(?: ([a-z]+))?", "\n".join("\n".join(pair) for pair in code)):
            named = " ".join(word for word in words if word)
            assert words[0] in groups, f"{document.name}: aprendiz {named}"
            if {f"{words[0]} {words[1]}"} & commands or words[0] in ("serve", "chat", "doctor", "bench"):
                continue
            assert not words[1], f"{document.name}: aprendiz {named}"
