from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from metasearch.serving import batching
from metasearch.serving.answers import Answer
from metasearch.serving.batching import Batcher, NoAnswerError


class Replica:
    """Answers each body with itself, once it is let; keeps the batches that it got."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.released = asyncio.Event()

    async def predict(self, bodies: list[bytes]) -> list[Answer]:
        self.batches.append(bodies)
        await self.released.wait()
        return [body.decode() for body in bodies]


def batched(test: Callable[[Replica], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Replica())

    asyncio.run(run())


def make(replica: Replica, *, most: int = 4, replicas: int = 1, wait_s: float = 0.0) -> Batcher:
    return Batcher(replica.predict, most=most, replicas=replicas, wait_s=wait_s, on_batch=lambda size: None)


def letters(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


async def ask_each(batcher: Batcher, text: str) -> list[asyncio.Task[list[Answer]]]:
    tasks = [asyncio.create_task(batcher.answers([body])) for body in letters(text)]
    await asyncio.sleep(0.005)
    return tasks


def test_what_comes_while_the_replica_is_busy_goes_together() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica)
        tasks = await ask_each(batcher, "a")
        tasks += await ask_each(batcher, "b")
        assert replica.batches == [letters("a")]
        tasks += await ask_each(batcher, "cdefgh")
        assert replica.batches == [letters("a"), letters("bcde")]  # half full or more: the next is on its way
        replica.released.set()
        assert [await task for task in tasks] == [[letter] for letter in "abcdefgh"]
        assert replica.batches == [letters("a"), letters("bcde"), letters("fgh")]

    batched(test)


def test_one_alone_waits_for_nobody() -> None:
    async def test(replica: Replica) -> None:
        replica.released.set()
        batcher = make(replica, wait_s=3600)
        for letter in "abc":
            assert await asyncio.wait_for(batcher.answers(letters(letter)), 5) == [letter]

    batched(test)


def test_after_a_batch_a_free_replica_waits_for_as_many_again_but_not_for_ever() -> None:
    async def test(replica: Replica) -> None:
        replica.released.set()
        for wait_s, batches in ((0.0, ["a", "bc"]), (0.2, ["abc"])):
            batcher = make(replica, wait_s=wait_s)
            await batcher.answers(letters("xyz"))
            replica.batches.clear()
            tasks = await ask_each(batcher, "a")
            tasks += await ask_each(batcher, "bc")
            assert [await task for task in tasks] == [["a"], ["b"], ["c"]]
            assert replica.batches == [letters(text) for text in batches]
            assert await asyncio.wait_for(batcher.answers(letters("d")), 5) == ["d"]

    batched(test)


async def answer_after(seconds: float, batcher: Batcher, replica: Replica) -> None:
    """Let the first batch, of three bodies, take so long, and those that follow no time."""
    first = asyncio.create_task(batcher.answers(letters("xyz")))
    await asyncio.sleep(seconds)
    replica.released.set()
    await first


def test_a_free_replica_waits_half_as_long_as_its_last_batch_took() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica)
        await answer_after(0.4, batcher, replica)
        tasks = await ask_each(batcher, "a")
        tasks += await ask_each(batcher, "bc")
        await asyncio.gather(*tasks)
        assert replica.batches == [letters("xyz"), letters("abc")]

    batched(test)


def test_nobody_waits_long_for_others_after_a_batch_that_took_long() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica)
        await answer_after(1.0, batcher, replica)
        assert await asyncio.wait_for(batcher.answers(letters("a")), 0.4) == ["a"]

    batched(test)


def test_each_replica_has_one_batch_ahead_and_no_more() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica, most=1, replicas=2)
        tasks = await ask_each(batcher, "abcdefg")
        assert replica.batches == [letters("a"), letters("b"), letters("c"), letters("d")]
        replica.released.set()
        await asyncio.gather(*tasks)
        assert len(replica.batches) == 7

    batched(test)


def test_large_bodies_go_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MOST_BATCH_BYTES", 10)

    async def test(replica: Replica) -> None:
        replica.released.set()
        await make(replica).answers([b"x" * 50, b"y" * 6, b"z" * 4, b"w"])
        assert [len(batch) for batch in replica.batches] == [1, 2, 1]

    batched(test)


@pytest.mark.parametrize("failure", [NoAnswerError("died"), asyncio.CancelledError()])
def test_a_batch_that_fails_fails_for_its_own_bodies_alone(failure: BaseException) -> None:
    async def test(replica: Replica) -> None:
        async def predict(bodies: list[bytes]) -> list[Answer]:
            if b"b" in bodies:
                raise failure
            return [body.decode() for body in bodies]

        batcher = Batcher(predict, most=1, replicas=1, wait_s=0, on_batch=lambda size: None)
        first, second, third = await ask_each(batcher, "abc")
        assert (await first, await third) == (["a"], ["c"])
        with pytest.raises(NoAnswerError):
            await asyncio.wait_for(second, 5)

    batched(test)


def test_it_is_drained_when_the_last_answer_is_there() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica, most=1)
        tasks = await ask_each(batcher, "abc")
        drained = asyncio.create_task(batcher.drained())
        await asyncio.sleep(0.03)
        assert not drained.done()
        replica.released.set()
        await asyncio.wait_for(drained, 5)
        assert all(task.done() for task in tasks)

    batched(test)


def test_a_replica_that_does_not_answer_in_time_gets_no_more_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ANSWER_S", 0.02)

    async def test(replica: Replica) -> None:
        batcher = make(replica, most=1)
        for task in await ask_each(batcher, "abc"):
            with pytest.raises(NoAnswerError, match="within"):
                await task
        await asyncio.wait_for(batcher.drained(), 5)
        [last] = await ask_each(batcher, "d")
        assert replica.batches == [letters("a"), letters("b")]
        replica.released.set()
        assert await last == ["d"]
        assert replica.batches == [letters("a"), letters("b"), letters("d")]

    batched(test)


def test_those_who_probe_at_once_share_a_call_and_an_answer_just_now_is_enough() -> None:
    async def test(replica: Replica) -> None:
        batcher = make(replica)
        early = [asyncio.create_task(batcher.probe()) for _ in range(5)]
        await asyncio.sleep(0)
        early.pop().cancel()
        await asyncio.sleep(0.005)
        replica.released.set()
        await asyncio.gather(*early)
        await batcher.probe()
        assert replica.batches == [[]]

    batched(test)
