"""The npm packages ``openai`` and ``@anthropic-ai/sdk``: their tests are JavaScript, run here by Node's own test runner.

`run_tests.sh` installs the packages that ``node/package-lock.json`` names into ``.cache/sdk-node``; nothing is installed here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sdk.conftest import Site

NODE = Path(__file__).parent / "node"
INSTALLED = Path(__file__).parents[2] / ".cache" / "sdk-node"
LOCK = NODE / "package-lock.json"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests beside the packages."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js: the npm packages are not tested")
    copied = INSTALLED / "package-lock.json"
    if not copied.is_file() or copied.read_bytes() != LOCK.read_bytes():
        pytest.skip("the npm packages are not installed: run ./run_tests.sh without --fast, with npm on the PATH")
    made = tmp_path_factory.mktemp("node")
    for each in NODE.glob("*.mjs"):
        shutil.copy(each, made)
    (made / "node_modules").symlink_to(INSTALLED / "node_modules")
    return made


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_package(site: Site, folder: Path, name: str) -> None:
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "--test", f"{name}.test.mjs"],
        cwd=folder,
        env={"SITE_URL": site.url, "SITE_KEY": site.key, "SITE_ADMIN": site.admin["Authorization"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_lock_fits_and_names_no_registry() -> None:
    lock, wanted = json.loads(LOCK.read_text()), json.loads((NODE / "package.json").read_text())
    packages = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}
    assert not re.search(r"https?://(?!github\.com|opencollective\.com)", LOCK.read_text())
    for name, entry in packages.items():
        assert "resolved" not in entry, name
        assert entry["integrity"].startswith("sha512-"), name
    assert {name: packages[name]["version"] for name in wanted["dependencies"]} == wanted["dependencies"]
