"""How the routes of the Responses API are described in ``/openapi.json``. Words only."""

from __future__ import annotations

from typing import Any, Final

from app.api.v1.describe import Operation
from app.api.v1.responses import PATH, DeletedOut, ItemsOut, TokensOut
from app.api.v1.responses_body import InputBody, ResponsesBody
from app.api.v1.responses_output import ResponseOut

_ONE: Final = f"{PATH}/{{response_id}}"
_ID: Final[dict[str, Any]] = {"name": "response_id", "in": "path", "required": True, "schema": {"type": "string"}}
_PAGE: Final[tuple[dict[str, Any], ...]] = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}},
    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"}},
    {"name": "after", "in": "query", "schema": {"type": "string"}, "description": "An item's id; the list begins behind it."},
    {"name": "before", "in": "query", "schema": {"type": "string"}, "description": "An item's id; the list ends before it."},
)

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="post",
        path=PATH,
        operation_id="create_response",
        summary="Ask, in the format of OpenAI's Responses API",
        description="One response, whole or with `stream: true` as the documented events. The `id` is the prediction's and can "
        "be rated at once. `previous_response_id` goes on from an earlier one of yours, without its instructions. With "
        "`store: false` the response can be neither read nor continued afterwards; the prediction is kept all the same, so "
        "that it can be rated. Functions are the only tools; `background`, `conversation` and `prompt` are refused.",
        body=ResponsesBody,
        answer=(ResponseOut,),
        stream='event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Paris",…}\n\n'
        'event: response.completed\ndata: {"type":"response.completed","response":{…}}\n\n',
        examples={
            "text": {"model": "default", "input": "What is the capital of France?"},
            "items": {
                "model": "default",
                "instructions": "Answer in one word.",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is the capital of France?"}]}],
                "stream": True,
            },
        },
    ),
    Operation(
        method="post",
        path=f"{PATH}/input_tokens",
        operation_id="count_response_input_tokens",
        summary="Count the tokens of a response's input",
        description="What the model would read, by its own tokenizer.",
        body=InputBody,
        answer=(TokensOut,),
        examples={"text": {"model": "default", "input": "How long is this?"}},
    ),
    Operation(
        method="get",
        path=_ONE,
        operation_id="get_response",
        summary="Show a response",
        description="A stored response of yours, also one that failed or was cut short. It is not streamed again.",
        answer=(ResponseOut,),
        parameters=(_ID,),
    ),
    Operation(
        method="delete",
        path=_ONE,
        operation_id="delete_response",
        summary="Delete a response",
        description="Deletes a stored response of yours, with the prediction and the feedback on it. Responses that went on "
        "from it keep what they read.",
        answer=(DeletedOut,),
        parameters=(_ID,),
    ),
    Operation(
        method="get",
        path=f"{_ONE}/input_items",
        operation_id="list_response_input_items",
        summary="List what a response answered",
        description="All items that the model read, those of earlier responses too, without instructions.",
        answer=(ItemsOut,),
        parameters=(_ID, *_PAGE),
    ),
    Operation(
        method="post",
        path=f"{_ONE}/cancel",
        operation_id="cancel_response",
        summary="Cancel a response",
        description="Always refused: only background responses can be cancelled, and there are none. Close the "
        "connection instead.",
        answer=(ResponseOut,),
        parameters=(_ID,),
    ),
)
