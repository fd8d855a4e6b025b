"""Requests that wait while others are answered are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")


class Batcher(Generic[R, A]):
    """One thread that answers; what arrives in the meantime is its next batch.

    Parameters
    ----------
    answer: returns the answers of requests, in their order; called in one thread.
    size: returns how much of a batch a request takes.
    most: largest batch; a larger request is one by itself.
    """

    def __init__(self, answer: Callable[[Sequence[R]], Sequence[A]], size: Callable[[R], int], most: int):
        self._answer, self._size, self._most = answer, size, most
        self._waiting: list[tuple[R, asyncio.Future[A]]] = []
        self._thread = ThreadPoolExecutor(1, "answers")
        self._task: asyncio.Task[None] | None = None

    async def ask(self, request: R) -> A:
        """Return the answer of a request; raises what answering it alone raises."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            told = await loop.run_in_executor(self._thread, self._answers, [request for request, _ in batch])
            for (_, future), answer in zip(batch, told, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next_batch(self) -> list[tuple[R, asyncio.Future[A]]]:
        # Whoever asked may have gone in the meantime.
        self._waiting = [(request, future) for request, future in self._waiting if not future.done()]
        batch: list[tuple[R, asyncio.Future[A]]] = []
        size = 0
        while self._waiting and (not batch or size + self._size(self._waiting[0][0]) <= self._most):
            batch.append(self._waiting.pop(0))
            size += self._size(batch[-1][0])
        return batch

    def _answers(self, requests: Sequence[R]) -> Sequence[A | Exception]:
        try:
            return self._answer(requests)
        except Exception as error:
            # Nobody is told of a fault in somebody else's request.
            return [error] if len(requests) == 1 else [self._answers([request])[0] for request in requests]
