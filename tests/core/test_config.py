"""Configuration: precedence, origins, and errors that say what to do."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.config import env_name, load, setting_fields, with_secret_key
from app.core.errors import ConfigurationError
from app.core.settings import Settings


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
