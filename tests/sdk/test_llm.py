"""The command ``llm`` with models of ours in its ``extra-openai-models.yaml``, and with ``llm openai endpoint``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from llm.cli import cli

from tests.sdk.conftest import Site, loopback_environment

MODELS = """\
- model_id: aprendiz
  model_name: default
  api_base: {v1}
  api_key_name: aprendiz
  supports_schema: true
  supports_tools: true
  vision: true
- model_id: aprendiz-responses
  model_name: default
  api_base: {v1}
  api_key_name: aprendiz
  responses: true
  supports_schema: true
  supports_tools: true
- model_id: aprendiz-text
  model_name: default
  api_base: {v1}
  api_key_name: aprendiz
  completion: true
"""
TOOL = 'def weather(city: str) -> str:\n    """The weather of a city."""\n    return f"sunny in {city}"\n'


class Llm:
    """The command in a home of its own. It runs in this process: to start it anew takes longer than all it does."""

    def __init__(self, home: Path, site: Site) -> None:
        (home / "extra-openai-models.yaml").write_text(MODELS.format(v1=site.v1))
        (home / "keys.json").write_text(json.dumps({"aprendiz": site.key}))
        self.environ = {"HOME": str(home), "LLM_USER_PATH": str(home)}

    def __call__(self, *arguments: str, said: str = "", fails: bool = False) -> str:
        done = CliRunner().invoke(cli, arguments, input=said, env=self.environ)
        assert (done.exit_code != 0) == fails, done.output
        return done.output


@pytest.fixture
def llm(tmp_path: Path, site: Site) -> Llm:
    return Llm(tmp_path, site)


def test_in_a_process_of_its_own(llm: Llm) -> None:
    environ = loopback_environment(**llm.environ)
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "aprendiz", "one two"], env=environ, capture_output=True, timeout=60, check=False
    )
    assert done.stdout == b"one two\n", done.stderr


def test_prompts_streams_and_schemas(llm: Llm) -> None:
    assert llm("-m", "aprendiz", "-s", "Repeat.", "one two three", "-o", "temperature", "0") == "one two three\n"
    assert llm("-m", "aprendiz", "--no-stream", "one two", "-o", "max_tokens", "1") == "one\n"
    assert json.loads(llm("-m", "aprendiz", "--schema", "city, people int", "Rome")) == {"city": "Rome", "people": 0}
    assert llm("-c", "and again") == "and again\n"


def test_a_chat(llm: Llm) -> None:
    assert "first words" in llm("chat", "-m", "aprendiz", said="first words\nexit\n")


def test_tools(llm: Llm) -> None:
    for model in ("aprendiz", "aprendiz-responses"):
        said = llm("-m", model, "--functions", TOOL, 'call weather {"city": "Rome"}')
        assert said == "sunny in Rome\n"


def test_other_shapes(llm: Llm) -> None:
    assert llm("-m", "aprendiz-responses", "one two") == "one two\n"
    assert llm("-m", "aprendiz-text", "one two") == "one two\n"


def test_an_endpoint_without_configuration(llm: Llm, site: Site) -> None:
    assert "default" in llm("openai", "endpoint", site.v1, "--key", site.key, "--models").split()
    assert llm("openai", "endpoint", site.v1, "hello", "-m", "default", "--key", site.key) == "hello\n"


def test_the_vendors_own_names(llm: Llm, site: Site) -> None:
    """Routes called as the vendor's models are, and the address in the environment: nothing else changes."""
    llm.environ |= {"OPENAI_BASE_URL": site.v1, "OPENAI_API_KEY": site.key}
    assert llm("-m", "4o-mini", "one two") == "one two\n"
    assert len(json.loads(llm("embed", "-m", "3-small", "-c", "a red car"))) > 8


def test_errors_are_told(llm: Llm, site: Site) -> None:
    assert "There is no model" in llm("openai", "endpoint", site.v1, "x", "-m", "gpt-9", "--key", site.key, fails=True)
    assert "401" in llm("openai", "endpoint", site.v1, "x", "-m", "default", "--key", "sk-wrong", fails=True)
