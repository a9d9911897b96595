"""How probable a given answer is, from llama.cpp's server, which tells probabilities of what it generates only.

So it is made to generate the answer: a grammar of token numbers allows one token at each place, and the probabilities that come
with them are those before the grammar. Tokens that end within a character come without; they are looked up one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.core.errors import ContextOverflow, InvalidRequest, UpstreamError
from app.providers.base import Scores
from app.providers.wire import WireClient

_LOWEST: Final = -104.0
"""The engine computes with 32-bit probabilities: what is less likely is nought to it."""
_GROWING: Final = (64, 4096, 1 << 20)
"""How many alternatives are asked for until the wanted one is among them."""


@dataclass(frozen=True, slots=True)
class _Token:
    number: int
    whole: bool
    """The text up to here ends with a whole character."""


async def score(
    client: WireClient,
    prompt: str,
    completion: str,
    lora: Sequence[dict[str, float]],
    *,
    context_tokens: int,
    grammars: bool,
) -> Scores:
    """See `LoadedModel.score`.

    Args:
        prompt: the templated prompt.
        lora: the scales of all adapters.
        grammars: llguidance is built in, without which characters that are split over tokens cannot be forced.

    Raises:
        ContextOverflow: both together do not fit. UpstreamError: the engine does not tell.
    """
    try:
        tokens = await _tokens(client, completion)
        if not tokens:
            return Scores(0.0, ())
        if len(tokens) >= context_tokens:
            raise _overflow()
        if not grammars and not all(token.whole for token in tokens):
            raise InvalidRequest("This engine cannot tell how probable an answer with such characters is.")
        found = await _forced(client, prompt, tokens, lora)
        for place, token in enumerate(tokens):
            if not token.whole:
                before = [each.number for each in tokens[:place]]
                found[place] = await _looked_up(client, [prompt, *before], token.number, lora)
        logprobs = tuple(max(_LOWEST, float(found[place])) for place in range(len(tokens)))
    except (LookupError, TypeError, ValueError) as error:
        raise UpstreamError("The engine does not say how probable the answer is.") from error
    return Scores(sum(logprobs), logprobs)


async def _tokens(client: WireClient, text: str) -> list[_Token]:
    body = {"content": text, "add_special": False, "parse_special": False, "with_pieces": True}
    said, tokens = b"", []
    for token in (await client.json("POST", "/tokenize", body))["tokens"]:
        piece = token["piece"]
        said += piece.encode() if isinstance(piece, str) else bytes(piece)
        tokens.append(_Token(int(token["id"]), _is_whole(said)))
        said = said[-4:]
    return tokens


def _is_whole(said: bytes) -> bool:
    """Whether UTF-8 ends with a whole character: the last four bytes decide."""
    for size in range(1, min(4, len(said)) + 1):
        lead = said[-size]
        if lead & 0xC0 != 0x80:
            return size >= (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
    return True


async def _forced(
    client: WireClient, prompt: str, tokens: Sequence[_Token], lora: Sequence[dict[str, float]]
) -> dict[int, float]:
    """Log-probabilities by place, of the tokens that end with a whole character."""
    answer = await _generate(client, prompt, tokens, lora, alternatives=1)
    if answer["tokens"] != [token.number for token in tokens]:
        raise _overflow() if answer["truncated"] else ValueError("other tokens than asked for")
    places = [place for place, token in enumerate(tokens) if token.whole]
    entries = answer.get("completion_probabilities", [])
    if [entry["id"] for entry in entries] != [tokens[place].number for place in places]:
        raise ValueError("probabilities of other tokens than asked for")
    return {place: entry["logprob"] for place, entry in zip(places, entries, strict=True)}


async def _looked_up(client: WireClient, prompt: list[str | int], wanted: int, lora: Sequence[dict[str, float]]) -> float:
    """The log-probability of ``wanted`` after ``prompt``: among the alternatives to a token that the engine does tell of."""
    other = (await client.json("POST", "/tokenize", {"content": "a", "add_special": False}))["tokens"][0]
    for most in _GROWING:
        answer = await _generate(client, prompt, [_Token(int(other), True)], lora, alternatives=most)
        told = answer["completion_probabilities"][0]["top_logprobs"]
        for entry in told:
            if entry["id"] == wanted:
                return float(entry["logprob"])
        if len(told) < most:
            break
    raise ValueError("a token that the engine does not tell of")


async def _generate(
    client: WireClient,
    prompt: str | list[str | int],
    tokens: Sequence[_Token],
    lora: Sequence[dict[str, float]],
    *,
    alternatives: int,
) -> Any:
    path = " ".join(f"<[{token.number}]>" for token in tokens)
    # The engine's own grammars are ten times faster to begin with, and stumble over parts of characters.
    plain = all(token.whole for token in tokens)
    body = {
        "prompt": prompt,
        "n_predict": len(tokens),
        "temperature": 0,
        "grammar": f"root ::= {path}" if plain else f"%llguidance {{}}\nstart: {path}\n",
        "n_probs": alternatives,
        "post_sampling_probs": False,
        "return_tokens": True,
        "cache_prompt": True,
        "lora": lora,
    }
    return await client.json("POST", "/completion", body)


def _overflow() -> ContextOverflow:
    return ContextOverflow("The prompt and the answer do not fit into the model's context. Shorten them.", field="messages")
