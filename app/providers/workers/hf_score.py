"""Log-probabilities of given tokens: forward passes in a thread of their own, one answer at a time, in bounded pieces."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers.cache_utils import DynamicCache


class Scorer:
    """Scores answers on ``model``.

    Args:
        threads: for torch.
        chunk: most tokens in one pass; whoever leaves is heard between two.
    """

    def __init__(self, model: Any, device: Any, *, threads: int, chunk: int) -> None:
        self._model = model
        self._device = device
        self._chunk = chunk
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="score", initializer=torch.set_num_threads, initargs=(threads,)
        )

    async def score(self, prompt: list[int], answer: list[int]) -> list[float]:
        """Natural logarithms of the probabilities of the tokens of ``answer`` behind ``prompt``, which must not be empty.

        Raises:
            MemoryError: there is too little for it.
        """
        left = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._score, prompt, answer, left)
        finally:
            left.set()

    def stop(self) -> None:
        """Takes no more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _score(self, prompt: list[int], answer: list[int], left: threading.Event) -> list[float]:
        if not answer:
            return []
        tokens = torch.tensor([prompt + answer], device=self._device)
        first = len(prompt) - 1  # the pass over a token tells of the one behind it
        cache = DynamicCache()
        found: list[float] = []
        try:
            with torch.inference_mode():
                for start in range(0, tokens.shape[1] - 1, self._chunk):
                    if left.is_set():
                        return []
                    end = min(start + self._chunk, tokens.shape[1] - 1)
                    keep = end - max(start, first)
                    more = {"logits_to_keep": max(keep, 1)} if self._keeps else {}
                    result = self._model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, **more)
                    if keep > 0:
                        logprobs = torch.log_softmax(result.logits[0, -keep:].float(), dim=-1)
                        wanted = tokens[0, end - keep + 1 : end + 1, None]
                        found += logprobs.gather(1, wanted)[:, 0].tolist()
        except torch.OutOfMemoryError:
            raise MemoryError from None
        return found
