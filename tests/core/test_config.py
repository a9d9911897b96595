"""Configuration: precedence, origins, and errors that say what to do."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.config import env_name, load, setting_fields, with_secret_key
from app.core.errors import ConfigurationError
from app.core.settings import Settings, Upstream


def test_later_sources_win_and_the_origin_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 1001, host: 10.0.0.1}\nmodel: {slots: 3}\n")
    (tmp_path / ".env").write_text("APRENDIZ_SERVER__PORT=1002\nAPRENDIZ_MODEL__SLOTS=4\n")
    config = load(folder=tmp_path, environ={"APRENDIZ_SERVER__PORT": "1003"})
    assert (config.settings.server.port, config.explain("server.port").origin) == (1003, "environment")
    assert (config.settings.model.slots, config.explain("model.slots").origin) == (4, ".env")
    assert (config.settings.server.host, config.explain("server.host").origin) == ("10.0.0.1", "config.yaml")
    assert config.explain("model.queue").origin == "default"


def test_the_provider_is_chosen_as_m1_writes_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text('model: { "provider": "hf", "model": "gpt2" }\n')
    settings = load(folder=tmp_path, environ={}).settings
    assert (settings.model.provider, settings.model.model) == ("hf", "gpt2")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"APRENDIZ_SERVER__PROT": "1"}, "did you mean 'APRENDIZ_SERVER__PORT'"),
        ({"APRENDIZ_SERVER__PORT": "ninety"}, "server.port (from environment)"),
        ({"APRENDIZ_SERVER__PORT": "70000"}, "server.port (from environment)"),
        ({"APRENDIZ_RATE_LIMITS__PREDICT": "a lot"}, "rate_limits.predict"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY is too short"),
        ({"APRENDIZ_CONFIG": "/nowhere/config.yaml"}, "does not exist"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(tmp_path: Path, environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(folder=tmp_path, environ=environ)
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("servr: {port: 1}", "did you mean 'server.port'"),
        ("server: {prt: 1}", "did you mean 'server.port'"),
        ("- a\n- b\n", "must hold sections"),
        ("server: {port: [", "cannot be read as YAML"),
        ("server: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(folder=tmp_path, environ={})
    assert words in caught.value.detail


def test_a_complaint_never_shows_the_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(folder=tmp_path, environ={"SECRET_KEY": "canary-3141592"})
    assert "canary" not in caught.value.detail


def test_the_secret_key_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    environ = {"APRENDIZ_DATA_DIR": str(tmp_path / "data")}
    first = with_secret_key(load(folder=tmp_path, environ=environ))
    again = with_secret_key(load(folder=tmp_path, environ=environ))
    assert first.settings.security.secret_key == again.settings.security.secret_key
    assert first.explain("security.secret_key").origin == "data directory"
    assert first.explain("security.secret_key").shown == "********"
    mode = stat.S_IMODE((tmp_path / "data" / "secret_key").stat().st_mode)
    assert mode == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret_key"]


def test_lists_come_comma_separated(tmp_path: Path) -> None:
    config = load(folder=tmp_path, environ={"APRENDIZ_SERVER__TRUSTED_HOSTS": "a.example, b.example"})
    assert config.settings.server.trusted_hosts == ("a.example", "b.example")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().server.port = 1  # type: ignore[misc]


def test_every_setting_is_described_and_they_are_few() -> None:
    fields = dict(setting_fields())
    assert len(fields) < 60
    assert all(field.description for field in fields.values())
    assert len({env_name(key) for key in fields}) == len(fields)


KEY = "sk-canary-1618033988"
VENDOR = "https://api.openai.com"


def upstreams(tmp_path: Path, text: str = "", **environ: str) -> dict[str, Upstream]:
    if text:
        (tmp_path / "config.yaml").write_text(f"providers: {{upstreams: {{{text}}}}}")
    return load(folder=tmp_path, environ=environ).settings.providers.upstreams


def key_of(upstream: Upstream) -> str | None:
    return None if upstream.api_key is None else upstream.api_key.get_secret_value()


def test_both_vendors_are_there_with_their_keys(tmp_path: Path) -> None:
    there = upstreams(tmp_path, OPENAI_API_KEY=KEY, ANTHROPIC_API_KEY=f" {KEY}-2\n")
    assert {name: (one.kind, one.url, key_of(one)) for name, one in there.items()} == {
        "openai": ("openai", VENDOR, KEY),
        "claude": ("claude", "https://api.anthropic.com", f"{KEY}-2"),
    }
    assert [key_of(one) for one in upstreams(tmp_path, OPENAI_API_KEY="").values()] == [None, None]


def test_a_key_may_stand_in_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\nVLLM_KEY={KEY}-v\n")
    there = upstreams(tmp_path, "vllm: {base_url: 'http://127.0.0.1:1', api_key_env: VLLM_KEY}")
    assert (key_of(there["openai"]), key_of(there["vllm"])) == (KEY, f"{KEY}-v")
    there = upstreams(tmp_path, OPENAI_API_KEY="sk-from-the-environment")
    assert key_of(there["openai"]) == "sk-from-the-environment"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com.evil.example",
        "https://evil.example",
        "https://api.openai.com/proxy",
        "https://api.openai.com:444",
        "https://openai.com",
        "http://127.0.0.1:1",
        "https://api.anthropic.com",
    ],
)
def test_another_address_does_not_get_the_vendors_key(tmp_path: Path, url: str) -> None:
    for name in ("openai", "other"):
        there = upstreams(tmp_path, f"{name}: {{base_url: '{url}'}}", OPENAI_API_KEY=KEY, ANTHROPIC_API_KEY=KEY)
        assert key_of(there[name]) is None
    there = upstreams(tmp_path, f"openai: {{base_url: '{url}', api_key_env: OTHER}}", OPENAI_API_KEY=KEY, OTHER="sk-other")
    assert key_of(there["openai"]) == "sk-other"


def test_the_vendors_address_in_other_words_is_the_vendors(tmp_path: Path) -> None:
    there = upstreams(tmp_path, f"a: {{base_url: '{VENDOR}/v1/'}}, b: {{base_url: '{VENDOR}/'}}, c: {{}}", OPENAI_API_KEY=KEY)
    assert [key_of(there[name]) for name in "abc"] == [KEY, KEY, KEY]


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        (f"a: {{api_key: {KEY}}}", {}, "a key has no place here"),
        (f"a: {{api_key: [{KEY}]}}", {}, "providers.upstreams.a.api_key"),
        (f"a: {{key: {KEY}}}", {}, "providers.upstreams.a.key"),
        ("a: {api_key_env: NOT_THERE}", {}, "the environment has no NOT_THERE"),
        ("a: {api_key_env: EMPTY}", {"EMPTY": "  "}, "the environment has no EMPTY"),
        (f"a: {{api_key_env: {KEY}}}", {}, "api_key_env"),
        ("a: {api_key_env: SECRET_KEY}", {"SECRET_KEY": KEY * 3}, "a setting of this service"),
        ("a: {api_key_env: APRENDIZ_X}", {}, "a setting of this service"),
        ("a: {api_key_env: K}", {"K": f"{KEY}\r\nX-Evil: 1"}, "K is no key"),
        ("a: {api_key_env: K}", {"K": f"{KEY} two"}, "K is no key"),
        ("a: {api_key_env: K}", {"K": f"{KEY}ñ"}, "K is no key"),
        ("a: {api_key_env: K}", {"K": KEY * 500}, "K is no key"),
        ("", {"OPENAI_API_KEY": f"{KEY}\x7f"}, "OPENAI_API_KEY is no key"),
        ("openai: {kind: claude}", {}, "is of the kind openai"),
        ("claude: {}", {}, "is of the kind claude"),
        ("a: {kind: gemini}", {}, "providers.upstreams.a.kind"),
        ("A B: {}", {}, "providers.upstreams.A B"),
        (f"a: {{base_url: 'https://me:{KEY}@host'}}", {}, "providers.upstreams.a.base_url"),
        ("a: {base_url: 'http://169.254.169.254'}", {}, "link-local"),
        ("a: {base_url: 'http://host.example', api_key_env: K}", {"K": KEY}, "clear text"),
        ("a: {max_concurrency: 0}", {}, "providers.upstreams.a.max_concurrency"),
    ],
)
def test_an_upstream_that_is_wrong(tmp_path: Path, text: str, environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        upstreams(tmp_path, text, **environ)
    assert words in caught.value.detail
    assert "canary" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_a_key_in_the_environments_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no place here"):
        upstreams(tmp_path, APRENDIZ_PROVIDERS__UPSTREAMS=f'{{"a": {{"api_key": "{KEY}"}}}}')


def test_no_key_is_shown(tmp_path: Path) -> None:
    config = load(folder=tmp_path, environ={"OPENAI_API_KEY": KEY})
    shown = [repr(config), repr(config.entries()), config.settings.model_dump_json(), str(config.settings)]
    entry = config.explain("providers.upstreams")
    shown += [repr(entry), json.dumps(entry.shown), str(entry.value)]
    assert not [text for text in shown if "canary" in text]
    assert entry.shown["openai"] == {"api_key": "********"}
    assert "api_key" not in entry.shown["claude"]
