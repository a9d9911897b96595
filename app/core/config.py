"""Reads the configuration: ``config.yaml`` < ``.env`` < environment, into one frozen `Settings` tree, with each value's origin.

Environment names are ``APRENDIZ_SECTION__KEY``. A few go by their usual names: see `USUAL_NAMES`. An unknown or mistyped name
is an error that says which names exist, never a silent nothing. Nothing is read at import; `load` is called once, by ``main``
or the command line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, SecretStr, ValidationError

from app.core.addresses import upstream_address
from app.core.errors import ConfigurationError
from app.core.logging import MASK
from app.core.settings import VENDOR_URLS, Settings, Upstream

PREFIX = "APRENDIZ_"
USUAL_NAMES = {
    "SECRET_KEY": "security.secret_key",
    "DATABASE_URL": "database.url",
    "APRENDIZ_DATA_DIR": "data_dir",
}
"""Environment names that are not built from the prefix, and the setting that each one sets."""

_NOT_SETTINGS = frozenset({"APRENDIZ_CONFIG", "APRENDIZ_API_KEY", "APRENDIZ_TEST_MODEL"})
_KEY_FILE = "secret_key"
_LIST_SEPARATOR = ","
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting as ``config show`` and ``config explain`` print it."""

    key: str
    value: Any
    default: Any
    origin: str
    description: str
    env: str
    secret: bool

    @property
    def shown(self) -> Any:
        """The value with secrets masked, as JSON has it."""
        if not self.secret:
            return _plain(self.value)
        return None if self.value is None else MASK


@dataclass(frozen=True, slots=True)
class Config:
    """The settings, and where each came from: default, config.yaml, .env, environment, data directory, command line."""

    settings: Settings
    origins: Mapping[str, str]

    def entries(self) -> list[Entry]:
        """All settings, in the order of the tree."""
        return [self._entry(key) for key, _ in setting_fields()]

    def explain(self, key: str) -> Entry:
        """One setting. Raises ConfigurationError for an unknown key, with the nearest known one."""
        if key not in dict(setting_fields()):
            raise ConfigurationError(_unknown("setting", key, [name for name, _ in setting_fields()]))
        return self._entry(key)

    def _entry(self, key: str) -> Entry:
        field = dict(setting_fields())[key]
        value, default = _get(self.settings, key), _get(Settings(), key)
        secret = "SecretStr" in str(field.annotation)
        return Entry(key, value, default, self.origins.get(key, "default"), field.description or "", env_name(key), secret)


def load(*, folder: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Builds the settings.

    Args:
        folder: where ``config.yaml`` and ``.env`` lie (working directory). ``APRENDIZ_CONFIG`` names another YAML file.
        environ: the environment; ``os.environ`` unless told.

    Raises:
        ConfigurationError: an unknown name, a value out of bounds, an unreadable file; the text says which, and from where.
    """
    folder = folder or Path.cwd()
    environ = os.environ if environ is None else environ
    yaml_file = Path(environ.get("APRENDIZ_CONFIG") or folder / "config.yaml")
    if "APRENDIZ_CONFIG" in environ and not yaml_file.is_file():
        raise ConfigurationError(f"APRENDIZ_CONFIG names {yaml_file}, which does not exist.")
    dotenv = {name: value or "" for name, value in dotenv_values(folder / ".env").items()}
    sources = (
        (yaml_file.name, _read_yaml(yaml_file)),
        (".env", _read_environment(dotenv, where=".env")),
        ("environment", _read_environment(environ, where="the environment")),
    )
    flat: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, values in sources:
        flat.update(values)
        origins.update(dict.fromkeys(values, name))
    settings = _with_upstream_keys(_validate(flat, origins), {**dotenv, **environ})
    return Config(settings, origins)


def with_secret_key(config: Config) -> Config:
    """The same configuration with a secret key: where none is set, the one in the data directory, made at the first start.

    The file has mode 0600 and is created exclusively, so that two processes that start together agree on one key.
    """
    settings = config.settings
    if settings.security.secret_key is not None:
        return config
    make_folder(settings.data_dir)
    path = settings.data_dir / _KEY_FILE
    try:
        fresh = path.with_name(f"{_KEY_FILE}.{os.getpid()}.new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        key = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot keep a secret key in {path}: {error.strerror}. Set SECRET_KEY, or make it writable."
        ) from error
    security = settings.security.model_copy(update={"secret_key": SecretStr(_check_secret(key, str(path)))})
    return Config(
        settings.model_copy(update={"security": security}), {**config.origins, "security.secret_key": "data directory"}
    )


def secrets_in(settings: Settings) -> list[str]:
    """Every secret of the configuration in the clear, for `app.core.logging.configure` to keep out of the log."""
    found = [settings.security.secret_key, settings.security.previous_secret_key, settings.database.url, settings.metrics.token]
    found += [upstream.api_key for upstream in settings.providers.upstreams.values()]
    return [secret.get_secret_value() for secret in found if secret is not None]


def _with_upstream_keys(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The two vendors among the upstreams, and each upstream with its key out of the environment.

    A key belongs to an address: the vendors' usual names are read for the vendors' own addresses only.
    """
    named = {kind: Upstream(kind=kind) for kind in VENDOR_URLS} | settings.providers.upstreams
    upstreams = {}
    for name, upstream in named.items():
        where = f"providers.upstreams.{name}"
        if name in VENDOR_URLS and upstream.kind != name:
            raise ConfigurationError(f"{where}: the upstream of this name is of the kind {name}; take another name.")
        if upstream.api_key is not None:
            raise ConfigurationError(f"{where}: a key has no place here. Name its variable by api_key_env.")
        upstreams[name] = upstream.model_copy(update={"api_key": _upstream_key(where, upstream, environ)})
        upstream_address(name, upstreams[name])
    providers = settings.providers.model_copy(update={"upstreams": upstreams})
    return settings.model_copy(update={"providers": providers})


def _upstream_key(where: str, upstream: Upstream, environ: Mapping[str, str]) -> SecretStr | None:
    name = upstream.key_name
    if name in USUAL_NAMES or name.startswith(PREFIX):
        raise ConfigurationError(f"{where}.api_key_env: {name} is a setting of this service, not a key of another one's.")
    key = environ.get(name, "").strip() if name else ""
    if not key:
        if upstream.api_key_env:
            raise ConfigurationError(f"{where}: the environment has no {name}.")
        return None
    if not _KEY.fullmatch(key):
        raise ConfigurationError(f"{where}: {name} is no key: it holds spaces, line ends or other signs that keys do not have.")
    return SecretStr(key)


def make_folder(path: Path) -> None:
    """Makes a folder of the data directory, for us alone, unless it is there. Raises ConfigurationError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot make the folder {path}: {error.strerror}. APRENDIZ_DATA_DIR names where this service may write."
        ) from error


def setting_fields() -> Iterator[tuple[str, Any]]:
    """Every leaf of the tree as ``(dotted key, pydantic FieldInfo)``."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for leaf, leaf_field in section.model_fields.items():
                yield f"{name}.{leaf}", leaf_field
        else:
            yield name, field


def env_name(key: str) -> str:
    """The environment name of a setting: the usual one where there is one, else ``APRENDIZ_SECTION__KEY``."""
    for usual, target in USUAL_NAMES.items():
        if target == key:
            return usual
    return PREFIX + key.replace(".", "__").upper()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path.name} cannot be read as YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path.name} must hold sections (server:, model:, …), not a {type(tree).__name__}.")
    flat: dict[str, Any] = {}
    known = dict(setting_fields())
    for name, value in tree.items():
        if name in known:
            flat[name] = value
        elif isinstance(value, dict):
            flat.update({f"{name}.{leaf}": leaf_value for leaf, leaf_value in value.items()})
        elif value is not None or name not in Settings.model_fields:
            raise ConfigurationError(f"{path.name}: " + _unknown("section or setting", str(name), [*Settings.model_fields]))
    for key in flat:
        if key not in known:
            raise ConfigurationError(f"{path.name}: " + _unknown("setting", key, [*known]))
    return flat


def _read_environment(environ: Mapping[str, str], *, where: str) -> dict[str, Any]:
    known = {env_name(key): key for key, _ in setting_fields()}
    known |= {PREFIX + key.replace(".", "__").upper(): key for key, _ in setting_fields()}
    flat: dict[str, Any] = {}
    for name, text in environ.items():
        if name in _NOT_SETTINGS or not (name.startswith(PREFIX) or name in USUAL_NAMES):
            continue
        if name not in known:
            raise ConfigurationError(f"{where}: " + _unknown("variable", name, [*known]))
        if text == "" and known[name] in ("security.secret_key", "database.url"):
            continue  # `SECRET_KEY=` in a copied .env.example means "not set"
        flat[known[name]] = _parse(known[name], text)
    return flat


def _parse(key: str, text: str) -> Any:
    """Environment values are text; lists are comma-separated, mappings are JSON."""
    default = _get(Settings(), key)
    if isinstance(default, tuple):
        return [item.strip() for item in text.split(_LIST_SEPARATOR) if item.strip()]
    if isinstance(default, Mapping):
        try:
            return json.loads(text or "{}")
        except ValueError:
            raise ConfigurationError(f"{env_name(key)} must hold a JSON object.") from None
    return text


def _validate(flat: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, leaf = key.partition(".")
        if leaf:
            tree.setdefault(section, {})[leaf] = value
        else:
            tree[section] = value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_complaints(error, origins))) from None
    for key in ("secret_key", "previous_secret_key"):
        secret = getattr(settings.security, key)
        if secret is not None:
            _check_secret(secret.get_secret_value(), env_name(f"security.{key}"))
    return settings


def _complaints(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    for item in error.errors(include_input=False, include_url=False):
        parts = [str(part) for part in item["loc"]]
        origin = origins.get(".".join(parts[:2]), "default")
        yield f"{'.'.join(parts)[:200]} (from {origin}): {item['msg']}"


def _check_secret(key: str, where: str) -> str:
    if len(key.encode()) < 32:
        raise ConfigurationError(
            f"{where} is too short: use 32 random bytes or more, as "
            "`python3 -c 'import secrets; print(secrets.token_urlsafe(48))'` prints."
        )
    return key


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}.")


def _get(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _plain(value: Any) -> Any:
    """Sections in mappings as mappings of what differs from the defaults; a key only by whether there is one."""
    if isinstance(value, Upstream):
        shown = value.model_dump(mode="json", exclude_defaults=True)
        return shown if value.api_key is None else {**shown, "api_key": MASK}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
