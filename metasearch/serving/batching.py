"""Dynamic batches: what arrives while the replicas are busy goes to the next free one together.

A batch costs Ray milliseconds, however small it is. So the busier the replicas are, the larger the batches must be;
yet whoever asks alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from metasearch.serving.answers import Answer

Predict = Callable[[list[bytes]], Awaitable[list[Answer]]]
"""The answers to the bodies of a batch. Raises NoAnswerError where there is none to be had."""

MOST_BATCH_BYTES = 16 * 10**6
"""A batch goes without its next body if both are more than that: it is copied, and kept until it is answered."""
BATCHES_A_REPLICA = 2
"""One runs, the next is on its way."""
ANSWER_S = 60.0
MOST_WAIT_S = 0.1
"""The longest that anybody waits for others, whatever the last batch took."""
FRESH_S = 1.0
"""A replica that has answered within that is not probed."""


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
    again, or once one has waited for wait_s, or for half of what the last batch took if that is more (MOST_WAIT_S at
    most): a fixed wait ends before a busy process has read what has come. A busy replica gets one batch ahead, half
    full or more. on_batch: is told each batch's size.
    """

    def __init__(
        self, predict: Predict, *, most: int, replicas: int, wait_s: float, on_batch: Callable[[int], object]
    ) -> None:
        self._predict, self._most, self._wait_s, self._on_batch = predict, most, wait_s, on_batch
        self._replicas = replicas
        self._last, self._took_s = 1, 0.0
        self._waiting: deque[_Asked] = deque()
        self._running: set[asyncio.Future[list[Answer]]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Future[list[Answer]] | None = None
        self._answered_at = -math.inf
        self._unanswered = 0

    async def answers(self, bodies: Sequence[bytes]) -> list[Answer]:
        """Return the answers to bodies, which may go in one batch or several.

        Raises as `predict` does, and NoAnswerError after ANSWER_S; a replica that has them then gets no other batch in
        their place until it has ended with them.
        """
        loop = asyncio.get_running_loop()
        asked = [_Asked(body, loop.time(), loop.create_future()) for body in bodies]
        self._waiting.extend(asked)
        loop.call_soon(self._send)  # not at once: what the event loop already has in hand comes along
        self._unanswered += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.gather(*(one.answer for one in asked))
        except TimeoutError as error:
            self._waiting = deque(one for one in self._waiting if not one.answer.done())  # theirs are cancelled
            raise NoAnswerError(f"no answer came within {ANSWER_S:g} s") from error
        finally:
            self._unanswered -= 1

    async def probe(self) -> None:
        """Return if a replica answers, past those that wait. Raises as `predict` does.

        Anyone may ask: all who do meanwhile share a call.
        """
        if asyncio.get_running_loop().time() - self._answered_at < FRESH_S:
            return
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(self._predict([]))
            self._probing.add_done_callback(self._probed)
        await asyncio.shield(self._probing)

    async def drained(self) -> None:
        """Return once nobody waits for an answer."""
        while self._unanswered:
            await asyncio.sleep(0.01)

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._running) < self._replicas * BATCHES_A_REPLICA:
            if len(self._running) >= self._replicas:
                if len(self._waiting) < self._most // 2:
                    return
            elif len(self._waiting) < self._last:
                due = self._waiting[0].since + max(self._wait_s, min(self._took_s / 2, MOST_WAIT_S))
                if loop.time() < due:
                    self._timer = self._timer or loop.call_at(due, self._waited)
                    return
            batch = self._next_batch()
            self._last = len(batch)
            self._on_batch(len(batch))
            running = asyncio.ensure_future(self._predict([asked.body for asked in batch]))
            self._running.add(running)
            running.add_done_callback(partial(self._ended, batch, loop.time()))

    def _waited(self) -> None:
        self._timer = None
        self._send()

    def _ended(self, batch: list[_Asked], started: float, ended: asyncio.Future[list[Answer]]) -> None:
        self._running.discard(ended)
        error = NoAnswerError("the service ends") if ended.cancelled() else ended.exception()
        if error is None:
            self._answered_at = asyncio.get_running_loop().time()
            self._took_s = self._answered_at - started
            for asked, answer in zip(batch, ended.result(), strict=True):
                if not asked.answer.done():  # nobody waits for it any more
                    asked.answer.set_result(answer)
        else:  # whatever it is, it belongs to those who wait
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
        self._send()

    def _probed(self, probing: asyncio.Future[list[Answer]]) -> None:
        if not probing.cancelled() and probing.exception() is None:
            self._answered_at = asyncio.get_running_loop().time()

    def _next_batch(self) -> list[_Asked]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].body)
        while self._waiting and len(batch) < self._most:
            size += len(self._waiting[0].body)
            if size > MOST_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch
