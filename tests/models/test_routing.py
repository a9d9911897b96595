"""What names mean: routes, aliases, what is deployed, what upstreams expose; and whom a route asks first."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from app.core.errors import UnknownModel
from app.core.settings import FallbackClass, Route, Routing
from app.core.types import ModelSpec
from app.models.routing import Candidate, Plan, wildcard
from tests.conftest import Serve
from tests.models.conftest import MakeHouse
from tests.models.doubles import House, ask, spec, user
from tests.models.remote import RemoteProvider, route


def far(name: str) -> ModelSpec:
    return ModelSpec("far", name)


async def told(house: House, model: str | None = None) -> str:
    prediction = (await house.manager.answer(ask(model=model), user())).prediction
    return f"{prediction.alias} {prediction.provider}/{prediction.model}"


async def test_a_route_is_looked_up_before_an_alias_of_its_name(make_house: MakeHouse) -> None:
    house = await make_house(others=[RemoteProvider()], routes={"default": route("far/m", "default"), "wise": route("default")})
    assert await told(house) == "default far/m"
    assert await told(house, "default") == "default far/m"
    assert await told(house, "wise") == "wise scripted/a", "inside a route `default` is the alias"
    assert await told(house, "scripted/a") == "None scripted/a"


async def test_a_target_of_a_route_need_not_be_exposed_and_is_not_by_that(make_house: MakeHouse) -> None:
    house = await make_house(others=[RemoteProvider()], routes={"r": route("far/hidden")}, upstreams={"far": {}})
    assert await told(house, "r") == "r far/hidden"
    with pytest.raises(UnknownModel):
        await house.manager.generate(ask(model="far/hidden"), user(role="admin"))


async def test_a_target_is_found_by_every_name_of_a_deployed_model(make_house: MakeHouse) -> None:
    house = await make_house(routes={"full": route("scripted/b"), "bare": route("b"), "alias": route("small")})
    await house.manager.switch(spec("b", "mine"), actor=None, alias="small")
    for name in ("full", "bare", "alias"):
        assert (await house.manager.answer(ask(model=name), user())).prediction.version == "b-mine"


async def test_a_target_that_means_nothing_is_left_out_and_logged(
    make_house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    house = await make_house(routes={"half": route("nobody", "default"), "none": route("nobody")})
    assert [each.__dict__["data"]["target"] for each in caplog.records if "unknown target" in each.message] == ["nobody"] * 2
    assert await told(house, "half") == "half scripted/a"
    with pytest.raises(UnknownModel) as caught:
        await house.manager.generate(ask(model="none"), user())
    assert "administrator" in caught.value.detail


EXPOSED = {"far": {"models": ["gpt-*", "exact", "vendor/*:free"]}, "shut": {}}


@pytest.mark.parametrize("name", ["gpt-", "gpt-5", "gpt-5.1/mini", "exact", "vendor/x:free"])
async def test_what_an_upstream_exposes_can_be_asked_for(make_house: MakeHouse, name: str) -> None:
    house = await make_house(others=[RemoteProvider()], upstreams=EXPOSED)
    assert await told(house, f"far/{name}") == f"None far/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "far/gpt",
        "far/xgpt-5",
        "far/exactly",
        "far/Exact",
        "far/",
        "far",
        "far/*",
        "far/gpt-5\n",
        "far/gpt-\x00",
        "far/gpt-\u0661",
        "far/gpt-../../x y",
        "far/gpt-" + "x" * 300,
        "far/vendorAx:free",
        "shut/gpt-5",
        "nobody/gpt-5",
        "gpt-5",
    ],
)
async def test_nothing_else_of_an_upstream_can_be_asked_for(make_house: MakeHouse, name: str) -> None:
    provider = RemoteProvider()
    house = await make_house(others=[provider], upstreams=EXPOSED)
    with pytest.raises(UnknownModel) as caught:
        await house.manager.generate(ask(model=name), user(role="admin"))
    assert provider.opened == []
    assert "far/gpt-*" in caught.value.detail and len(caught.value.detail) < 400


def test_only_the_star_matters_in_a_pattern() -> None:
    assert wildcard("a.b[c]?*").fullmatch("a.b[c]?anything\nelse")
    assert not wildcard("a.b[c]?*").fullmatch("axb[c]?")
    assert not wildcard("a?").fullmatch("ab")
    assert wildcard("*").fullmatch("")
    assert wildcard("a**b").pattern == "a.*b"


async def test_every_name_that_can_be_asked_for_is_listed_once(make_house: MakeHouse) -> None:
    house = await make_house(
        others=[RemoteProvider()], upstreams=EXPOSED, routes={"default": route("far/x"), "wise": route("far/y")}
    )
    await house.manager.switch(spec("b"), actor=None, alias="small")
    names = {each.id: each.owned_by for each in house.manager.names()}
    assert names == {
        "default": "aprendiz",
        "wise": "aprendiz",
        "scripted/a": "scripted",
        "small": "aprendiz",
        "scripted/b": "scripted",
        "far/exact": "far",
    }
    assert len(house.manager.names()) == len(names)
    assert all(1.7e9 < each.created < 1e10 for each in house.manager.names())
    for name in names:
        await told(house, name)


async def test_the_list_of_an_unknown_name_is_bounded(make_house: MakeHouse) -> None:
    house = await make_house(upstreams={"far": {"models": [f"m{number}" for number in range(500)]}})
    with pytest.raises(UnknownModel) as caught:
        await house.manager.generate(ask(model="x"), user())
    assert "and 482 more" in caught.value.detail and len(caught.value.detail) < 500


# Whom a route asks first


def plan(strategy: Any, *weights: int) -> Plan:
    return Plan("r", tuple(Candidate(far(f"m{number}"), weight) for number, weight in enumerate(weights)), strategy=strategy)


async def test_what_the_operator_named_has_a_label_however_many_names_callers_make_up(make_house: MakeHouse) -> None:
    upstreams = {"far": {"models": ["*", "listed"]}}
    house = await make_house(others=[RemoteProvider()], routes={"r": route("far/a", "far/b")}, upstreams=upstreams)
    for number in range(60):
        await told(house, f"far/made-up-{number}")
    labels = [house.metrics.model_label(f"far/{name}") for name in ("a", "b", "listed", "made-up-59")]
    assert labels == ["far/a", "far/b", "far/listed", "other"]


def test_order_is_the_order() -> None:
    rng = random.Random(0)
    assert plan("order", 1, 900, 1).order(rng, lambda spec: 0) == [far("m0"), far("m1"), far("m2")]


def test_weights_share_the_first_place_and_zero_is_for_the_end() -> None:
    rng = random.Random(11)
    orders = [plan("weights", 1, 3, 0, 6).order(rng, lambda spec: 0) for _ in range(20_000)]
    first = Counter(order[0].model for order in orders)
    assert {name: round(count / 20_000, 1) for name, count in first.items()} == {"m0": 0.1, "m1": 0.3, "m3": 0.6}
    assert all(order[-1] == far("m2") and len(set(order)) == 4 for order in orders)
    second = Counter(order[1].model for order in orders if order[0].model == "m3")
    assert round(second["m1"] / second.total(), 2) == pytest.approx(0.75, abs=0.02), "what is left is shared the same way"


def test_a_seed_gives_the_same_choices() -> None:
    def choices() -> list[list[ModelSpec]]:
        rng = random.Random(3)
        return [plan("weights", 1, 1, 1).order(rng, lambda spec: 0) for _ in range(50)]

    assert choices() == choices()


def test_least_busy_takes_the_fewest_open_requests_and_ties_in_order() -> None:
    rng = random.Random(0)
    busy = {"m0": 2, "m1": 1, "m2": 1}
    assert [each.model for each in plan("least_busy", 1, 1, 1).order(rng, lambda spec: busy[spec.model])] == ["m1", "m2", "m0"]


async def test_least_busy_counts_what_runs_and_what_waits(make_house: MakeHouse) -> None:
    provider = RemoteProvider()
    house = await make_house(others=[provider], routes={"r": route("far/x", "far/y", strategy="least_busy")})
    held = [await house.manager.generate(ask(model="r"), user()) for _ in range(10)]
    assert Counter(each.model for each in held) == {"far/x": 5, "far/y": 5}
    for each in held[::2]:
        async with each:
            pass
    again = [await house.manager.generate(ask(model="r"), user()) for _ in range(5)]
    assert Counter(each.model for each in again)[held[0].model] == 5
    for each in [*held, *again]:
        async with each:
            pass


def test_a_route_of_the_configuration_has_bounds() -> None:
    with pytest.raises(ValueError, match="targets"):
        Route.model_validate({"targets": []})
    with pytest.raises(ValueError, match="retries"):
        Route.model_validate(route("a", retries=9))


# From outside, and in the document


def test_a_caller_sees_who_answered_and_why(serve: Serve) -> None:
    routes = {"default": route("echo/unloadable", "echo/tag-second"), "dead": route("echo/unloadable")}
    service = serve(routing={"models": routes})
    with service.client(service.user()) as client:
        whole = client.post("/predict", json={"prompt": "hi"})
        assert whole.status_code == 200
        assert (whole.json()["model"], whole.json()["text"]) == ("echo/tag-second", "second:hi")
        assert whole.headers["x-aprendiz-fallback"] == "engine-unavailable"
        with client.stream("POST", "/predict", json={"prompt": "hi", "stream": True}) as stream:
            assert stream.headers["x-aprendiz-fallback"] == "engine-unavailable"
            stream.read()
        assert "x-aprendiz-fallback" not in client.post("/predict", json={"prompt": "hi", "model": "echo/echo"}).headers
        assert client.post("/predict", json={"prompt": "hi", "model": "dead"}).status_code == 503
        assert client.post("/predict", json={"prompt": "hi", "model": "echo/unloadable"}).status_code == 404


def blocks() -> list[str]:
    text = (Path(__file__).parents[2] / "doc" / "routing.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", blocks())
def test_the_examples_of_the_document_are_valid(block: str) -> None:
    tree = yaml.safe_load(block)
    if "routing" in tree:
        assert Routing.model_validate(tree["routing"]).models
    else:
        assert Route.model_validate(tree).targets


def test_the_document_names_every_field_and_class() -> None:
    text = (Path(__file__).parents[2] / "doc" / "routing.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) == {*Route.model_fields, *get_args(FallbackClass)}
