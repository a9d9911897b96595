"""Stored responses: shown, continued, listed, deleted, and only by their owner."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.api.responses_client import ABSENT, PATH, TOOL, ask, create, get, read_by, refused, text, told
from tests.conftest import Account, Serve, Service


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def test_a_chain_carries_all_but_the_instructions(service: Service, user: Account) -> None:
    first = create(service, user, input="one", instructions="speak like a pirate")
    second = create(service, user, input="two", previous_response_id=first["id"])
    third = create(service, user, input="three", previous_response_id=second["id"], instructions="be brief")
    assert third["previous_response_id"] == second["id"]
    read = read_by(service, user, third["id"])
    assert [(item["role"], item["content"][0]["text"]) for item in read] == [
        ("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two"), ("user", "three")
    ]  # fmt: skip
    assert get(service, user, second["id"]).json()["instructions"] is None


def test_what_earlier_responses_bring_back_is_bounded_as_a_body_is(serve: Serve) -> None:
    service = serve(server={"max_body_bytes": 20_000}, model={"context_tokens": 100_000})
    user = service.user()
    said = create(service, user, input="a" * 8_000)
    (item,) = read_by(service, user, said["id"])
    reference = {"type": "item_reference", "id": item["id"]}
    assert ask(service, user, input=[reference] * 2).status_code == 200
    refused(ask(service, user, input=[reference] * 3), 400, "input")
    longer = create(service, user, input="b" * 4_000, previous_response_id=said["id"])
    refused(ask(service, user, input="c", previous_response_id=longer["id"]), 400, "previous_response_id")


def test_a_chain_survives_the_deletion_of_its_beginning(service: Service, user: Account) -> None:
    first = create(service, user, input="one")
    second = create(service, user, input="two", previous_response_id=first["id"])
    with service.client(user) as client:
        deleted = client.delete(f"{PATH}/{first['id']}")
        assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
        refused(client.delete(f"{PATH}/{first['id']}"), 404, "response_id")
    refused(get(service, user, first["id"]), 404, "response_id")
    refused(ask(service, user, input="x", previous_response_id=first["id"]), 404, "previous_response_id")
    third = create(service, user, input="three", previous_response_id=second["id"])
    assert len(read_by(service, user, third["id"])) == 5


def test_a_stored_response_is_shown_as_it_was_answered(service: Service, user: Account) -> None:
    body = create(service, user, input="x y", instructions="be kind", metadata={"k": "v"}, tools=[TOOL], temperature=1)
    assert told(get(service, user, body["id"]).json()) == told(body)
    assert told(get(service, user, body["id"], include="message.output_text.logprobs", stream="false").json()) == told(body)


def test_without_store_it_cannot_be_found(service: Service, user: Account) -> None:
    body = create(service, user, input="x", store=False)
    refused(get(service, user, body["id"]), 404, "response_id")
    refused(get(service, user, body["id"], "/input_items"), 404, "response_id")
    refused(ask(service, user, input="y", previous_response_id=body["id"]), 404, "previous_response_id")
    with service.client(user) as client:
        refused(client.delete(f"{PATH}/{body['id']}"), 404, "response_id")
        assert client.post("/feedback", json={"prediction_id": body["id"], "rating": "up"}).status_code == 201


def test_other_predictions_are_no_responses(service: Service, user: Account) -> None:
    prediction = service.predict(user)
    refused(get(service, user, prediction["id"]), 404, "response_id")
    refused(ask(service, user, input="y", previous_response_id=prediction["id"]), 404, "previous_response_id")


def test_anothers_response_is_as_absent(service: Service, user: Account) -> None:
    other = service.user()
    theirs = create(service, other, input="secret")["id"]
    item = f"msg_{theirs}"
    bodies: dict[str, list[str]] = {}

    def note(name: str, answer: httpx.Response) -> None:
        assert answer.status_code == 404
        bodies.setdefault(name, []).append(answer.text)

    for response_id in (theirs, ABSENT):
        note("get", get(service, user, response_id))
        note("items", get(service, user, response_id, "/input_items"))
        note("continue", ask(service, user, input="x", previous_response_id=response_id))
        note("refer", ask(service, user, input=[{"type": "item_reference", "id": item.replace(theirs, response_id)}]))
        with service.client(user) as client:
            note("delete", client.delete(f"{PATH}/{response_id}"))
            note("cancel", client.post(f"{PATH}/{response_id}/cancel"))
            count = {"input": "x", "previous_response_id": response_id}
            note("count", client.post(f"{PATH}/input_tokens", json=count))
    assert all(len(set(each)) == 1 and "secret" not in each[0] for each in bodies.values()), bodies
    assert get(service, other, theirs).status_code == 200
    assert json.loads(bodies["continue"][0])["error"]["code"] == "previous_response_not_found"


def test_an_item_can_stand_for_its_content(service: Service, user: Account) -> None:
    first = create(service, user, input='call weather {"city": "Bonn"}', tools=[TOOL])
    (call,) = first["output"]
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "item_reference", "id": call["id"]},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"},
    ]
    body = create(service, user, input=items, tools=[TOOL])
    read = read_by(service, user, body["id"])
    assert [item["type"] for item in read] == ["message", "function_call", "function_call_output"]
    referred = create(service, user, input=[{"id": read[0]["id"]}])
    assert text(referred) == "weather?"
    refused(ask(service, user, input=[{"id": f"msg_{first['id']}"}]), 404, "input[0].id")
    refused(ask(service, user, input=[{"id": "msg_68af"}]), 404, "input[0].id")


def test_input_items_come_in_pages(service: Service, user: Account) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(25)]
    body = create(service, user, input=items)
    page = get(service, user, body["id"], "/input_items").json()
    assert page["object"] == "list"
    assert [item["content"][0]["text"] for item in page["data"]] == [str(number) for number in range(24, 4, -1)]
    assert page["has_more"] is True
    assert page["first_id"] == page["data"][0]["id"]
    rest = get(service, user, body["id"], "/input_items", after=page["last_id"]).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["4", "3", "2", "1", "0"]
    assert rest["has_more"] is False
    ids = [item["id"] for item in read_by(service, user, body["id"])]
    some = get(service, user, body["id"], "/input_items", order="asc", after=ids[3], before=ids[6], limit=2).json()
    assert [item["id"] for item in some["data"]] == ids[4:6]
    assert some["has_more"] is False
    empty = get(service, user, body["id"], "/input_items", order="asc", after=ids[-1]).json()
    assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "9" * 500}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_1"}, "after"),
        ({"before": "msg_1"}, "before"),
        ({"page": "1"}, "query"),
    ],
)
def test_pages_are_bounded(service: Service, user: Account, params: dict[str, str], param: str) -> None:
    body = create(service, user, input="x")
    refused(get(service, user, body["id"], "/input_items", **params), 400, param)


def test_what_is_stored_is_not_streamed_again(service: Service, user: Account) -> None:
    body = create(service, user, input="x")
    for params in ({"stream": "true"}, {"starting_after": "3"}):
        refused(get(service, user, body["id"], **params), 400, "stream")
    refused(get(service, user, body["id"], color="red"), 400, "query")
    with service.client(user) as client:
        assert "background" in refused(client.post(f"{PATH}/{body['id']}/cancel"), 400, "response_id")


def test_a_long_conversation_loses_its_beginning_where_that_is_asked_for(serve: Serve) -> None:
    service = serve(model={"provider": "echo", "model": "echo", "context_tokens": 256, "max_tokens": 16})
    user = service.user()
    previous = None
    for turn in range(4):
        body = create(service, user, input=f"{turn} " * 40, previous_response_id=previous, truncation="auto")
        previous = body["id"]
    refused(ask(service, user, input="5 " * 100, previous_response_id=previous), 400, "input")
    body = create(service, user, input="5 " * 100, previous_response_id=previous, truncation="auto", instructions="be brief")
    assert body["truncation"] == "auto"
    read = [(item["role"], item["content"][0]["text"][0]) for item in read_by(service, user, body["id"])]
    assert read[-1] == ("user", "5")
    assert read[0][0] == "user"
    assert 1 < len(read) < 9
    again = create(service, user, input="6", previous_response_id=body["id"], truncation="auto")
    assert text(again) == "6"


def test_counting_tokens_counts_against_the_limit_of_calls(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "2/minute"})
    with service.client(service.user()) as client:
        answers = [client.post(f"{PATH}/input_tokens", json={"input": "a"}).status_code for _ in range(3)]
    assert answers == [200, 200, 429]
