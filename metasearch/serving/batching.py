"""Dynamic batches: what arrives while the replicas are busy goes to the next free one together.

Nobody waits while a replica is idle, unless asked to, and the busier the replicas are, the larger the batches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from metasearch.serving.answers import Answer

Predict = Callable[[list[bytes]], Awaitable[list[Answer]]]
"""The answers to the bodies of a batch. Raises NoAnswerError where there is none to be had."""

MOST_BATCH_BYTES = 16 * 10**6
"""A batch goes without its next body if both are more than that: it is copied, and kept until it is answered."""


BATCHES_A_REPLICA = 2
"""One runs, the next is on its way."""


class NoAnswerError(Exception):
    """The replica that had the batch died or took too long."""


class Batcher:
    """Sends bodies in batches of at most `most` to `predict`, behind which so many replicas are.

    wait_s: how long a body that finds a free replica waits for others to go with. on_batch: is told each batch's size.
    A busy replica gets one batch ahead, so that it need not wait for it, but only one that is half full or more: a
    batch costs Ray milliseconds, however small it is.
    """

    def __init__(
        self, predict: Predict, *, most: int, replicas: int, wait_s: float, on_batch: Callable[[int], object]
    ) -> None:
        self._predict, self._most, self._wait_s, self._on_batch = predict, most, wait_s, on_batch
        self._replicas = replicas
        self._waiting: deque[tuple[bytes, asyncio.Future[Answer]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """Return the answers to bodies, which may go in one batch or several. Raises as `predict` does."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in bodies]
        self._waiting.extend(zip(bodies, futures, strict=True))
        if len(self._waiting) >= self._most:
            self._send()
        elif self._timer is None:
            # even without a wait: what the event loop already has in hand goes with this one
            self._timer = loop.call_later(self._wait_s, self._send)
        return await asyncio.gather(*futures)

    async def probe(self) -> None:
        """Return if a replica answers, past those that wait. Raises as `predict` does."""
        await self._predict([])

    async def drained(self) -> None:
        """Return once every body that was here has its answer."""
        while self._running or self._waiting:
            await asyncio.sleep(0.01)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._may_send():
            task = asyncio.get_running_loop().create_task(self._run(self._next_batch()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _may_send(self) -> bool:
        if len(self._running) >= self._replicas * BATCHES_A_REPLICA:
            return False
        fewest = 1 if len(self._running) < self._replicas else max(1, self._most // 2)
        return len(self._waiting) >= fewest

    def _next_batch(self) -> list[tuple[bytes, asyncio.Future[Answer]]]:
        batch = [self._waiting.popleft()]
        size = len(batch[0][0])
        while self._waiting and len(batch) < self._most:
            size += len(self._waiting[0][0])
            if size > MOST_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: list[tuple[bytes, asyncio.Future[Answer]]]) -> None:
        self._on_batch(len(batch))
        try:
            answers = await self._predict([body for body, _ in batch])
        except Exception as error:  # whatever it is, it belongs to those who wait for it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._send()
