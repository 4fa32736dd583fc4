"""Dynamic batches: what arrives while the replicas are busy goes to the next free one together.

A batch costs Ray milliseconds, however small it is. So the busier the replicas are, the larger the batches must be;
yet whoever asks alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from metasearch.serving.answers import Answer

Predict = Callable[[list[bytes]], Awaitable[list[Answer]]]
"""The answers to the bodies of a batch. Raises NoAnswerError where there is none to be had."""

MOST_BATCH_BYTES = 16 * 10**6
"""A batch goes without its next body if both are more than that: it is copied, and kept until it is answered."""
BATCHES_A_REPLICA = 2
"""One runs, the next is on its way."""


class NoAnswerError(Exception):
    """The replica that had the batch died or took too long."""


@dataclass(frozen=True)
class _Asked:
    body: bytes
    since: float
    answer: asyncio.Future[Answer]


class Batcher:
    """Sends bodies in batches of at most `most` to `predict`, behind which so many replicas are.

    A free replica gets what is there once that is as much as the last batch had, whose clients are likely to ask
    again, or once one has waited for wait_s, or for half of what the last batch took if that is more: a fixed wait
    ends before a busy process has read what has come. A busy replica gets one batch ahead, half full or more.
    on_batch: is told each batch's size.
    """

    def __init__(
        self, predict: Predict, *, most: int, replicas: int, wait_s: float, on_batch: Callable[[int], object]
    ) -> None:
        self._predict, self._most, self._wait_s, self._on_batch = predict, most, wait_s, on_batch
        self._replicas = replicas
        self._last, self._took_s = 1, 0.0
        self._waiting: deque[_Asked] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """Return the answers to bodies, which may go in one batch or several. Raises as `predict` does."""
        loop = asyncio.get_running_loop()
        asked = [_Asked(body, loop.time(), loop.create_future()) for body in bodies]
        self._waiting.extend(asked)
        loop.call_soon(self._send)  # not at once: what the event loop already has in hand comes along
        return await asyncio.gather(*(one.answer for one in asked))

    async def probe(self) -> None:
        """Return if a replica answers, past those that wait. Raises as `predict` does."""
        await self._predict([])

    async def drained(self) -> None:
        """Return once every body that was here has its answer."""
        while self._running or self._waiting:
            await asyncio.sleep(0.01)

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._running) < self._replicas * BATCHES_A_REPLICA:
            if len(self._running) >= self._replicas:
                if len(self._waiting) < self._most // 2:
                    return
            elif len(self._waiting) < self._last:
                due = self._waiting[0].since + max(self._wait_s, self._took_s / 2)
                if loop.time() < due:
                    self._timer = self._timer or loop.call_at(due, self._waited)
                    return
            batch = self._next_batch()
            self._last = len(batch)
            task = loop.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _waited(self) -> None:
        self._timer = None
        self._send()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._send()

    def _next_batch(self) -> list[_Asked]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].body)
        while self._waiting and len(batch) < self._most:
            size += len(self._waiting[0].body)
            if size > MOST_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: list[_Asked]) -> None:
        self._on_batch(len(batch))
        started = time.monotonic()
        try:
            answers = await self._predict([asked.body for asked in batch])
        except Exception as error:  # whatever it is, it belongs to those who wait for it
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
        else:
            for asked, answer in zip(batch, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)
            self._took_s = time.monotonic() - started
