"""From messages to a prompt's tokens: the model's own chat template, rendered in transformers' sandbox, within bounded time.

Control tokens that stand in a message's text ("<|im_end|>") are encoded as the plain text they are, so that nobody can end a
turn or forge one from inside a message. A model without a template (gpt2) gets a plain one, which cannot carry tools or names:

    system: You are helpful.
    user: Hello!
    assistant:
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from app.providers.workers.hf_request import BadRequest
from app.providers.workers.hf_source import LoadRefused

_log = logging.getLogger(__name__)

_RENDER_S = 2.0
_PLAIN = "role: content"
"""What stands for the plain template where templates are hashed."""
_PLAIN_STOPS = ("\nuser:", "\nsystem:")
_PROBE = [{"role": "user", "content": "Hello"}]


class _TooSlow(Exception):
    """The template took too long."""


class ChatFormat:
    """Prompts for one tokenizer. To be used in the main thread only: the time limit is a signal.

    Raises:
        LoadRefused: the template cannot render the simplest chat there is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        self.template: str | None = template if isinstance(template, str) and template else None
        self.template_hash = hashlib.sha256((self.template or _PLAIN).encode()).hexdigest()
        self.stops = () if self.template else _PLAIN_STOPS
        """Strings that end an answer besides the caller's: with the plain template a model would go on for both sides."""
        try:
            self.encode(_PROBE)
        except BadRequest:
            raise LoadRefused("The model's chat template cannot be rendered.") from None

    def encode(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None = None, whole: bool = False
    ) -> list[int]:
        """The prompt's tokens, up to where the answer begins.

        Args:
            tools: what the template tells the model of functions.
            whole: the last message is the answer; its tokens are the last, and what ends the turn (for training).

        Raises:
            BadRequest: the template does not take these messages (roles out of turn, say), or not in time.
        """
        try:
            with _time_limit(_RENDER_S):
                tokens = self._templated(messages, tools, whole) if self.template else self._plain(messages, whole)
        except _TooSlow:
            raise BadRequest("The model's chat template takes too long for these messages.") from None
        except Exception as error:  # noqa: BLE001 (a stranger's program meets a stranger's messages: all it raises is an answer)
            _log.warning("the chat template failed: %r", error)
            raise BadRequest(
                "The model's chat template does not take these messages: check the roles and their order."
            ) from None
        if not tokens:
            raise BadRequest("The messages give an empty prompt.")
        return tokens

    def text(self, messages: list[dict[str, Any]]) -> str:
        """The prompt as text, control tokens and all. Raises as `encode`."""
        return str(self._tokenizer.decode(self.encode(messages), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def plain(self, text: str) -> list[int]:
        """The tokens of a text on its own, without any control token."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _templated(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, whole: bool) -> list[int]:
        encoded = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=not whole,
            sanitize_control_tokens=True,
            return_dict=True,
        )
        return list(encoded["input_ids"])

    def _plain(self, messages: list[dict[str, Any]], whole: bool) -> list[int]:
        lines = [f"{message['role']}: {message['content']}" for message in messages] + ["assistant:"] * (not whole)
        return list(self._tokenizer("\n".join(lines), split_special_tokens=True)["input_ids"])


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
