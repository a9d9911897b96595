"""The settings tree: every setting once, with its default, its bounds and its description.

The description makes ``aprendiz config show``, the documentation and the test that compares the two. Reading and merging
the sources is `app.core.config`'s work; this file is data. Frozen: a section is passed to whoever needs it, and stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=_NAME)]
"""A name that an operator gives: it becomes part of model names, metrics and headers."""

Budget = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?/(hour|day|month)$")]
"""Money as ``2.50/day``: US dollars in any window of that length (a month has 30 days)."""

Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}/(second|minute|hour|day)$")]
"""A limit as ``60/minute``: at most so many in any window of that length."""


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to


class Section(BaseModel):
    """Base of all sections: frozen, and a mistyped key is an error, never a new attribute."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


class Server(Section):
    """The HTTP edge."""

    host: str = Field("127.0.0.1", description="Address to listen on. 0.0.0.0 for all; put TLS in front before you do.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0 lets the system choose.")
    public_url: str = Field(
        "", description="The address people use, as https://llm.example.org. Empty: made from host and port."
    )
    trusted_hosts: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Host names that requests may ask for; the name in public_url is added. `*` accepts all.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed. Empty: none."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Other web origins that may call the API from a browser, without cookies."
    )
    docs: Literal["admin", "open", "off"] = Field(
        "admin", description="Who sees /docs and /openapi.json: admins, anyone or no one."
    )
    max_body_bytes: int = Field(
        4_194_304, ge=1024, le=1 << 30, description="Largest request body in bytes, images included (uploads have their own)."
    )
    receive_timeout_s: float = Field(
        10,
        gt=0,
        le=300,
        description="Seconds in which a client must have sent its headers, and again each further piece of body.",
    )
    grace_s: float = Field(20, ge=0, le=600, description="Seconds that open answers get to end after SIGTERM.")

    @property
    def local_host(self) -> str:
        """Where this machine reaches the service: `host`, or loopback where it listens on all addresses."""
        return _LOOPBACK.get(self.host, self.host)

    @property
    def local_url(self) -> str:
        """The same as an address."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"http://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Where people reach the service: ``public_url``, else `local_url`."""
        return self.public_url.rstrip("/") or self.local_url


class Security(Section):
    """Accounts, sessions and keys."""

    secret_key: SecretStr | None = Field(
        None,
        description="Signs tokens; 32 random bytes or more. Usually SECRET_KEY. Missing: made once into the data directory.",
    )
    previous_secret_key: SecretStr | None = Field(
        None, description="The former secret_key: tokens signed with it stay good until they expire."
    )
    registration: Literal["invite", "open"] = Field("invite", description="Who may register: holders of an invite, or anyone.")
    session_days: int = Field(30, ge=1, le=365, description="Absolute life of a login; refreshing does not extend it.")
    invite_hours: int = Field(72, ge=1, le=8760, description="Life of an invite.")
    secure_cookies: bool = Field(
        True, description="Send cookies with Secure. Only switch off for plain HTTP on a trusted network without localhost."
    )


class RateLimits(Section):
    """Limits per window. The first one reached answers 429 with Retry-After."""

    enabled: bool = Field(True, description="Switch for all rate limits; off only in tests and benchmarks.")
    predict: Rate = Field(
        "600/minute",
        description="Predictions per user, and again per key; five times as many per address, refused credentials included.",
    )
    feedback: Rate = Field("3000/minute", description="Feedback per user, or per address for feedback by token.")
    login: Rate = Field(
        "10/minute",
        description="Failed logins per account and address; five times as many per address, registrations included.",
    )
    api: Rate = Field("6000/minute", description="All other calls per address, feedback included.")


class Database(Section):
    """Where the records live."""

    url: SecretStr | None = Field(
        None,
        description="postgresql://… for PostgreSQL; usually DATABASE_URL. Missing: aprendiz.db (SQLite) in the data directory.",
    )


class Model(Section):
    """The model behind the alias `default`, and how engines run."""

    provider: str = Field(
        "llamacpp",
        description="Provider of the default model: llamacpp, hf, echo, openai, claude, an upstream, or one of a package.",
    )
    model: str = Field(
        "smollm2-135m-instruct", description="Its name there: a catalogue name, a Hub name, a folder or a GGUF file."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where it runs; auto takes the best there is.")
    preload: bool = Field(True, description="Load at start, beside serving. Off: load with the first request.")
    context_tokens: int = Field(
        2048, ge=256, le=1_048_576, description="Context per request in tokens, prompt and answer together."
    )
    slots: int = Field(8, ge=1, le=256, description="Requests an engine works on at the same time.")
    threads: int = Field(
        0, ge=0, le=512, description="Threads of an engine, and of a training run; 0 takes the number of cores."
    )
    max_tokens: int = Field(
        512, ge=1, le=1_048_576, description="Longest answer where the caller names no limit, and the default."
    )
    temperature: float = Field(0.2, ge=0, le=2, description="Sampling temperature where the caller names none.")
    system_prompt: str = Field(
        "You are Aprendiz, a helpful assistant. Give clear, correct and short answers in plain words.",
        max_length=20_000,
        description="System message where a request has none; stored with the prediction. Empty: the model's own default.",
    )
    queue: int = Field(256, ge=0, le=100_000, description="Requests that may wait for a slot; one more is refused with 503.")
    queue_per_user: int = Field(32, ge=0, le=100_000, description="Of these, per user; one more is refused with 429.")
    queue_timeout_s: float = Field(120, gt=0, le=3600, description="Longest wait for a slot; then 503 with Retry-After.")
    answer_timeout_s: float = Field(300, gt=0, le=86_400, description="Longest time from a slot to the end of the answer.")
    load_timeout_s: float = Field(180, gt=0, le=86_400, description="Longest time that an engine may take to become ready.")
    idle_unload_minutes: float = Field(0, ge=0, le=100_000, description="Unload a model unused for so long; 0 keeps it.")
    max_loaded: int = Field(
        2, ge=1, le=64, description="Engines alive at once, draining ones not counted; the longest unused goes."
    )


VENDOR_URLS = {"openai": "https://api.openai.com", "claude": "https://api.anthropic.com"}
"""Where an upstream of a kind is, unless its ``base_url`` says otherwise."""
VENDOR_KEYS = {"openai": "OPENAI_API_KEY", "claude": "ANTHROPIC_API_KEY"}
"""The environment name of its key there. Sent to that address only: another ``base_url`` has to name its key itself."""


class Upstream(Section):
    """A server of other people's models. Its key comes from the environment, by name; it has no place in a file."""

    kind: Literal["openai", "claude"] = Field("openai", description="Which format it speaks: OpenAI's or Anthropic's.")
    base_url: str = Field("", description="Its address without /v1. Empty: the vendor's own.")
    api_key_env: str = Field(
        "",
        pattern=r"^([A-Z][A-Z0-9_]{0,127})?$",
        description="Environment variable that holds its key. Empty: the vendor's usual one, at the vendor's address only.",
    )
    models: tuple[str, ...] = Field((), description="Models that callers may ask for as NAME/MODEL; `*` matches any text.")
    private: bool = Field(False, description="Its host name may lead to a private address. An address written as such may too.")
    max_concurrency: int = Field(256, ge=1, le=10_000, description="Requests that it gets at once.")
    context_tokens: int | None = Field(None, ge=256, description="Its models' context, where it is to be checked here.")
    connect_timeout_s: float = Field(5, gt=0, le=60, description="Longest time to connect.")
    read_timeout_s: float = Field(120, gt=0, le=3600, description="Longest silence within an answer.")
    api_key: SecretStr | None = Field(None, exclude=True, description="Filled in from the environment; refused in files.")

    @property
    def url(self) -> str:
        """``base_url``, or the vendor's."""
        return (self.base_url or VENDOR_URLS[self.kind]).rstrip("/").removesuffix("/v1")

    @property
    def key_name(self) -> str:
        """The environment name of its key, or empty: it has none."""
        return self.api_key_env or (VENDOR_KEYS[self.kind] if self.url == VENDOR_URLS[self.kind] else "")


class Providers(Section):
    """Which kinds of model may be used at all."""

    allowed: tuple[str, ...] = Field(
        ("llamacpp", "hf", "onnx", "echo", "openai", "claude"),
        description="Providers that may be used; others are refused even if installed.",
    )
    upstreams: dict[Name, Upstream] = Field(
        {},
        description="Servers of other people's models by name: kind, base_url, api_key_env, models, … "
        "`openai` and `claude` are there without an entry.",
    )
    engine_memory_mb: int = Field(
        0, ge=0, le=16_777_216, description="Address space of an engine process in MiB; 0 sets no limit."
    )


class RouteTarget(Section):
    """One of the targets of a route."""

    model: str = Field(min_length=1, max_length=256, description="An alias, or provider/name.")
    weight: int = Field(1, ge=0, le=1000, description="Its share under the strategy `weights`.")


FallbackClass = Literal["timeout", "unreachable", "busy", "refused", "error", "engine"]


class Route(Section):
    """A model name that stands for several targets."""

    targets: tuple[RouteTarget, ...] = Field(min_length=1, max_length=16, description="Who may answer.")
    strategy: Literal["order", "weights", "least_busy"] = Field(
        "order", description="Who is asked first: the first, one by weight, or the one with the fewest open requests."
    )
    fallback_on: tuple[FallbackClass, ...] = Field(
        ("timeout", "unreachable", "busy", "refused", "error", "engine"),
        description="Failures before the first byte for which the next target is asked.",
    )
    long_context: str | None = Field(None, description="Target for prompts that do not fit into the others' context.")
    retries: int = Field(1, ge=0, le=5, description="Further tries on the same target, within the retry budget of 20 %.")
    deadline_s: float | None = Field(None, gt=0, le=86_400, description="Longest time over all tries; else answer_timeout_s.")
    hedge_s: float = Field(
        0, ge=0, le=600, description="Ask a second target too when the first is silent for so long; 0: never."
    )


class Routing(Section):
    """Model names that stand for several targets."""

    models: dict[Name, Route] = Field(
        {}, description="Routes by name: targets, strategy, fallback_on, long_context, retries, deadline_s, hedge_s."
    )


class Price(Section):
    """US dollars for a million tokens."""

    input: float = Field(0, ge=0, le=100_000, description="Prompt tokens.")
    output: float = Field(0, ge=0, le=100_000, description="Completion tokens, reasoning included.")
    cached_input: float | None = Field(None, ge=0, le=100_000, description="Prompt tokens from a cache; else as input.")
    cache_write: float | None = Field(None, ge=0, le=100_000, description="Prompt tokens written to a cache; else as input.")


class Costs(Section):
    """What calls cost, and how much may be spent."""

    prices: dict[str, Price] = Field({}, description="Prices by provider/name; `*` matches any text, the longest match wins.")
    budgets: dict[Literal["total", "user", "key"], Budget] = Field(
        {}, description="Most money in a window, over all and for each user and key, as `user: 2.50/day`; then 429."
    )


class Cache(Section):
    """Whole answers, kept to be given again to the same caller for the same question."""

    ttl_s: float = Field(300, ge=0, le=604_800, description="Seconds for which an answer may be given again; 0: no cache.")
    max_mb: int = Field(64, ge=1, le=65_536, description="Memory for it in MiB; the longest unused answers go first.")


class Logging(Section):
    """What the service says about itself, on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severity that is written.")
    format: Literal["json", "text"] = Field("json", description="One JSON object a line, or lines for a person.")


class Metrics(Section):
    """Prometheus."""

    token: SecretStr | None = Field(
        None, description="Bearer token that opens /metrics from other machines. Missing: loopback and admins only."
    )


class Memory(Section):
    """Conversations, facts and documents."""

    history_tokens: int = Field(1024, ge=0, le=1_048_576, description="Most tokens of earlier turns that go into a prompt.")
    context_tokens: int = Field(
        768, ge=0, le=1_048_576, description="Most tokens of recalled facts and passages of documents that go into a prompt."
    )
    embedder: str = Field(
        "onnx/multilingual-e5-small",
        max_length=256,
        description="Model that makes vectors, as provider/name; of an upstream too. Empty: none, search goes by words alone.",
    )
    store: str = Field(
        "auto",
        pattern=r"^(auto|faiss|chroma|pgvector|https?://[A-Za-z0-9._:\[\]-]{1,255}/?)$",
        description="Where vectors are searched: faiss, chroma, pgvector, or a Chroma server's address. "
        "auto: pgvector in a PostgreSQL that has it, else faiss.",
    )
    document_mb: int = Field(32, ge=1, le=1024, description="Largest uploaded document in MiB.")


class Training(Section):
    """Learning from feedback."""

    review: Literal["anonymous", "all", "none"] = Field(
        "anonymous",
        description="Whose corrections train only once a reviewer has approved them: those of feedback tokens, all, or none.",
    )
    examples: int = Field(
        2, ge=0, le=8, description="Most approved corrections that are shown to the model with a similar question; 0: none."
    )
    runs_per_day: int = Field(
        24, ge=0, le=10_000, description="Training runs that may be started in 24 hours; one runs at a time."
    )


class Settings(Section):
    """The whole tree."""

    data_dir: Path = Field(
        Path("data"), description="Folder for everything that the service writes. Usually APRENDIZ_DATA_DIR."
    )
    server: Server = Server()
    security: Security = Security()
    rate_limits: RateLimits = RateLimits()
    database: Database = Database()
    model: Model = Model()
    providers: Providers = Providers()
    routing: Routing = Routing()
    costs: Costs = Costs()
    cache: Cache = Cache()
    logging: Logging = Logging()
    metrics: Metrics = Metrics()
    memory: Memory = Memory()
    training: Training = Training()

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()
