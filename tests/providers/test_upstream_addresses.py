"""Where an upstream may be (B11): hostile addresses are refused at start, and what is refused is never connected to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.addresses import upstream_address
from app.core.errors import AprendizError, ConfigurationError, UpstreamError
from app.core.settings import Providers, Upstream
from app.core.types import GenerationRequest, Message, ModelSpec
from app.providers.base import ProviderContext
from app.providers.openai import OpenAIProvider
from app.providers.registry import ProviderRegistry

MakeContext = Callable[..., ProviderContext]
KEY = "sk-canary-2718281828"

# {port}: the canary's. Each would lead to 127.0.0.1 (or a cloud's credentials) for some reader of addresses.
REFUSED = [
    *(
        f"http://{host}:{{port}}"
        for host in ("0.0.0.0", "0", "0.0", "00.0.0.0", "127.1", "127.0.1", "2130706433", "017700000001")
    ),
    *(
        f"http://{host}:{{port}}"
        for host in ("0x7f000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "0177.1", "127.0.0.1.", "127.0.0.01")
    ),
    *(f"http://{host}:{{port}}" for host in ("127.0.0.256", "1.2.3.4.5", "127.0.0.0x1", "4294967296", "127.0.0.1.0x7f", "0x")),
    *(f"http://[{host}]:{{port}}" for host in ("::", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "64:ff9b::127.0.0.1")),
    *(
        f"http://[{host}]:{{port}}"
        for host in ("64:ff9b:1::7f00:1", "2002:7f00:1::", "ff02::1", "::1%25lo", "::1%lo", "v1.x", "::1::1")
    ),
    *(f"http://{host}" for host in ("169.254.169.254", "169.254.170.2", "[fe80::1]", "[fd00:ec2::254]", "[febf::1]")),
    *(f"http://{host}" for host in ("100.100.100.200", "192.0.0.192", "168.63.129.16", "[::ffff:169.254.169.254]")),
    *(f"http://{host}" for host in ("224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255")),
    "http://user:pass@127.0.0.1:{port}",
    "http://user@127.0.0.1:{port}",
    "http://api.openai.com@127.0.0.1:{port}",
    "http://api.openai.com:443@127.0.0.1:{port}",
    "http://127.0.0.1:{port}@api.openai.com",
    "http://api.openai.com\\@127.0.0.1:{port}",
    "http://127.0.0.1:{port}\\@api.openai.com/",
    "http:\\\\127.0.0.1:{port}",
    "http:/127.0.0.1:{port}",
    "http:127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    "127.0.0.1:{port}",
    "localhost:{port}",
    "http://127.0.0.1:{port}?x=1",
    "http://127.0.0.1:{port}#x",
    "http://127.0.0.1:{port}/#@api.openai.com",
    "http://127.0.0.1:{port}/?@api.openai.com/",
    "http://127.0.0.1:{port}/a/../b",
    "http://127.0.0.1:{port}/a/./b",
    "http://127.0.0.1:{port}/a//b",
    "http://127.0.0.1:{port}/%2e%2e/",
    "http://127.0.0.1:{port}/a b",
    "http://127.0.0.1:{port}/a\r\nHost: evil",
    "http://127.0.0.1:{port}\r\nX: y",
    "http://127.0.0.1\t:{port}",
    "http://127.0.0.1:{port}\t",
    "ht\ntp://127.0.0.1:{port}",
    "\x00http://127.0.0.1:{port}",
    " http://127.0.0.1:{port}",
    "http://127.0.0.1:{port} ",
    "http://127。0。0。1:{port}",
    "http://127．0．0．1:{port}",
    "http://①②⑦.0.0.1:{port}",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}",
    "http://loc%61lhost:{port}",
    "http://%31%32%37.0.0.1:{port}",
    "http://exämple.org",
    "http://127.0.0.1:{port}:80",
    "http://127.0.0.1:",
    "http://127.0.0.1:0",
    "http://127.0.0.1:65536",
    "http://127.0.0.1:-1",
    "http://127.0.0.1:+{port}",
    "http://127.0.0.1:0x50",
    "http://",
    "http:///v1",
    "http://.",
    "http://a..b",
    "http://-a.b",
    "http://" + "a" * 64 + ".org",
    "http://" + "a." * 200 + "org",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_x",
    "ftp://127.0.0.1:{port}",
    "data:text/plain,x",
    "ws://127.0.0.1:{port}",
    "unix:///run/docker.sock",
    "HTTP://127.0.0.1:{port}",
    "javascript:alert(1)",
    "https+unix://x",
]


@pytest.fixture
async def canary() -> AsyncIterator[list[int]]:
    """Listens on all addresses of this machine; ``[port, connections]``."""
    seen = [0, 0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen[1] += 1
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    seen[0] = server.sockets[0].getsockname()[1]
    yield seen
    server.close()
    await server.wait_closed()


def upstream_at(url: str, *, key: str | None = KEY, **fields: Any) -> Upstream:
    return Upstream(base_url=url, **fields).model_copy(update={"api_key": None if key is None else SecretStr(key)})


def with_upstreams(context: ProviderContext, **upstreams: Upstream) -> ProviderContext:
    return ProviderContext(
        model=context.model,
        providers=Providers().model_copy(update={"upstreams": upstreams}),
        models_dir=context.models_dir,
        runtime_dir=context.runtime_dir,
        resolve=context.resolve,
    )


async def try_it(context: ProviderContext, upstream: Upstream) -> None:
    """As far as the service would come with it: a registry, a provider, a model, a request."""
    provider = ProviderRegistry(with_upstreams(context, far=upstream), ["openai"]).get("far")
    model = await provider.open(ModelSpec("far", "m"), on_state=lambda state: None)
    try:
        async with asyncio.timeout(5), contextlib.aclosing(model.stream(GenerationRequest((Message("user", "x"),)))) as events:
            await anext(events)
    finally:
        await model.aclose()


def test_the_corpus_is_large() -> None:
    assert len(set(REFUSED)) == len(REFUSED) >= 100


@pytest.mark.parametrize("url", REFUSED)
async def test_a_hostile_address_is_refused_at_start(make_context: MakeContext, canary: list[int], url: str) -> None:
    upstream = upstream_at(url.replace("{port}", str(canary[0])), key=None)  # with one, plain http is refused anyway
    with pytest.raises(ConfigurationError) as caught:
        await try_it(make_context(), upstream)
    assert "providers.upstreams.far.base_url: " in caught.value.detail
    assert not any(part in caught.value.detail for part in ("pass", "127.0.0.1"))
    assert canary[1] == 0


@pytest.mark.parametrize("url", REFUSED)
async def test_the_provider_refuses_it_too(make_context: MakeContext, canary: list[int], url: str) -> None:
    """Without a registry in front, a plug-in's use say."""
    provider = OpenAIProvider(make_context(), "far", upstream_at(url.replace("{port}", str(canary[0])), key=None))
    with pytest.raises(ConfigurationError):
        await provider.open(ModelSpec("far", "m"), on_state=lambda state: None)
    assert canary[1] == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
async def test_a_private_address_that_is_written_down_is_meant(make_context: MakeContext, canary: list[int], host: str) -> None:
    with contextlib.suppress(UpstreamError):
        await try_it(make_context(), upstream_at(f"http://{host}:{canary[0]}"))
    assert canary[1] == (1 if host != "127.0.0.2" else 0)


async def test_a_name_must_lead_to_public_addresses(
    make_context: MakeContext, canary: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    url = f"https://intern.example:{canary[0]}"
    with pytest.raises(AprendizError) as caught:
        await try_it(make_context(), upstream_at(url))
    assert isinstance(caught.value, UpstreamError)
    assert canary[1] == 0
    with contextlib.suppress(UpstreamError):
        await try_it(make_context(), upstream_at(url, private=True))
    assert canary[1] == 1


@pytest.mark.parametrize(
    "found",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "::", "fe80::1", "fd00:ec2::254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "ff02::1", "2002:7f00:1::"),
    ],
)
async def test_no_name_leads_inside(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    resolve_to(monkeypatch, found)
    with pytest.raises(UpstreamError, match="private"):
        await try_it(make_context(), upstream_at("https://intern.example:1"))
    resolve_to(monkeypatch, "93.184.215.14", found)
    with pytest.raises(UpstreamError, match="private"):
        await try_it(make_context(), upstream_at("https://intern.example:1"))


async def test_what_was_checked_is_what_is_connected_to(
    make_context: MakeContext, canary: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when asked first, loopback when asked again. Nothing asks again."""
    asked = resolve_in_turn(monkeypatch, ["203.0.113.1"], ["127.0.0.1"])
    with pytest.raises((UpstreamError, TimeoutError)):
        await try_it(make_context(), upstream_at(f"https://intern.example:{canary[0]}", connect_timeout_s=1))
    assert (len(asked), canary[1]) == (1, 0)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    resolve_in_turn(monkeypatch, list(addresses))


def resolve_in_turn(monkeypatch: pytest.MonkeyPatch, *turns: list[str]) -> list[str]:
    """The name ``intern.example`` has these addresses, the last ones for ever. Returns the list of questions."""
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo
    asked: list[str] = []

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        if host != "intern.example":
            return await real(host, port, **options)
        asked.append(host)
        turn = turns[min(len(asked), len(turns)) - 1]
        found = []
        for address in turn:
            found += await real(address, port, **options)
        return found

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    ("url", "fields", "allowed"),
    [
        ("http://vllm.example.org", {}, False),
        ("http://8.8.8.8", {}, False),
        ("http://[2606:4700::1111]:8000", {}, False),
        ("http://8.8.8.8", {"private": True}, False),
        ("https://vllm.example.org", {}, True),
        ("https://8.8.8.8", {}, True),
        ("http://vllm:8000", {"private": True}, True),
        ("http://10.1.2.3:8000", {}, True),
        ("http://100.64.1.2:8000", {}, True),
        ("http://[fd00::7]:8000", {}, True),
        ("http://localhost:11434", {}, True),
        ("http://169.254.10.1", {"private": True}, True),
    ],
)
def test_a_key_does_not_travel_in_clear_text(url: str, fields: dict[str, Any], allowed: bool) -> None:
    upstream_address("far", upstream_at(url, key=None, **fields))
    if allowed:
        assert upstream_address("far", upstream_at(url, **fields)).url == url
        return
    with pytest.raises(ConfigurationError, match="clear text"):
        upstream_address("far", upstream_at(url, **fields))


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://API.Example.org:443/", "https://api.example.org"),
        ("http://127.0.0.1:80/v1", "http://127.0.0.1"),
        ("https://openrouter.example/api/v1/", "https://openrouter.example/api"),
        ("https://[2606:4700:0:0:0:0:0:1111]:8443", "https://[2606:4700::1111]:8443"),
        ("https://my_host.internal-1", "https://my_host.internal-1"),
        ("https://xn--exmple-cua.org", "https://xn--exmple-cua.org"),
    ],
)
def test_the_normal_form(url: str, normal: str) -> None:
    assert upstream_address("far", upstream_at(url)).url == normal
