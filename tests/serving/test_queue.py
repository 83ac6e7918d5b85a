"""The queue and the batcher behind the server: in turn, within the budget, each fault alone."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlm.errors import InputError
from tests.serving.conftest import Limits

from embedlm.serving.batcher import Batcher  # isort: skip
from embedlm.serving.fair import FairQueue, Job  # isort: skip
from embedlm.serving.failures import OverloadedError  # isort: skip


class Doubles:
    """Doubles numbers, and refuses a batch that holds a negative one."""

    def __init__(self):
        self.batches = []

    def run(self, items):
        self.batches.append(list(items))
        if min(items) < 0:
            raise InputError(f"{min(items)} is negative")
        return [2 * item for item in items]


def job(loop, key, costs):
    return Job(key, Doubles(), list(costs), list(costs), loop.create_future(), 0.0)


COSTS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), COSTS), min_size=1, max_size=8), st.integers(1, 60)
)
def test_everything_is_taken_once_and_within_the_budget(jobs, budget):
    async def check():
        loop = asyncio.get_running_loop()
        queue, taken = FairQueue(quantum=8), {}
        for key, costs in jobs:
            queue.put(job(loop, key, costs))
        assert queue.tokens == sum(sum(costs) for _, costs in jobs)
        while pieces := queue.take(budget):
            assert sum(piece.tokens for piece in pieces) <= budget or (
                len(pieces) == 1 and pieces[0].stop - pieces[0].start == 1
            )
            for piece in pieces:
                assert taken.get(piece.job, 0) == piece.start
                taken[piece.job] = piece.stop
        assert sorted(taken.values()) == sorted(len(costs) for _, costs in jobs)
        assert (queue.tokens, queue.count) == (0, 0)

    asyncio.run(check())


def test_a_small_request_does_not_wait_for_a_large_one_of_another_key():
    async def check():
        loop = asyncio.get_running_loop()
        queue = FairQueue(quantum=100)
        queue.put(job(loop, "large", [50] * 1000))
        small = job(loop, "small", [50])
        queue.put(small)
        assert small in [piece.job for piece in queue.take(400)]

    asyncio.run(check())


def test_jobs_that_no_one_waits_for_are_dropped():
    async def check():
        loop = asyncio.get_running_loop()
        queue = FairQueue()
        left, stays = job(loop, "a", [5] * 10), job(loop, "a", [7])
        queue.put(left)
        queue.put(stays)
        left.future.cancel()
        queue.purge()
        assert (queue.count, queue.tokens) == (1, 7)
        assert [piece.job for piece in queue.take(100)] == [stays]

    asyncio.run(check())


def test_a_fault_hits_only_the_request_that_has_it():
    async def check():
        doubles = Doubles()
        batcher = Batcher(Limits(), 1000)
        asked = ([1, 2], [-3], [4])
        jobs = [batcher.submit("k", doubles, items, [1] * len(items)) for items in asked]
        await batcher.start()
        assert await jobs[0].future == [2, 4]
        assert await jobs[2].future == [8]
        with pytest.raises(InputError, match="-3 is negative"):
            await jobs[1].future
        assert doubles.batches[0] == [1, 2, -3, 4]  # all that waited ran at once
        await batcher.stop()

    asyncio.run(check())


def test_the_queue_has_an_end_and_one_request_always_fits():
    async def check():
        batcher = Batcher(Limits(queue_tokens=10, queue_requests=2), 4)
        batcher.submit("k", Doubles(), [1], [50])
        with pytest.raises(OverloadedError) as caught:
            batcher.submit("k", Doubles(), [1], [1])
        assert caught.value.retry_after >= 1
        await batcher.start()
        await batcher.stop()

    asyncio.run(check())


def test_batches_are_whole_packs_and_what_is_over_waits():
    batcher = Batcher(Limits(), 4000, pack=1000)
    sizes = {64: 64, 1000: 1000, 1001: 1000, 1999: 1000, 2000: 2000, 3999: 3000, 4000: 4000}
    assert {given: batcher._whole(given) for given in sizes} == sizes
    assert Batcher(Limits(), 500, pack=1000).pack == 500
