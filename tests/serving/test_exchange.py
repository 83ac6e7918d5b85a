"""What the event loop and its processes say to each other comes whole, in order, or not at all."""

import asyncio
import pickle
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlm.prompt.render import Request
from tests.prompt.test_render import renderer

pytest.importorskip("uvicorn")

from embedlm.serving.exchange import EndedError, Exchange, Stacked  # isort: skip
from embedlm.serving.exchange import receive, send, written  # isort: skip


def echo(line, count=None):
    """Answer so many messages with themselves, or all."""
    try:
        while count is None or count > 0:
            send(line, receive(line, 1.0, lambda: None))
            count = None if count is None else count - 1
    except (EOFError, OSError):
        pass
    line.close()


def talk(call, count=None, answers=echo):
    """Run a coroutine function over an exchange with a thread at the other end."""

    async def run():
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=answers, args=(theirs, *([count] if count else [])))
        thread.start()
        exchange = await Exchange("process 7").over(ours)
        try:
            async with asyncio.timeout(30):
                return await call(exchange)
        finally:
            exchange.close()
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    return asyncio.run(run())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1 << 21), min_size=1, max_size=6))
def test_messages_of_any_size_are_answered_in_order(sizes):
    began = []

    async def ask(exchange):
        sent = [bytes([at]) * size for at, size in enumerate(sizes)]
        asked = [
            exchange.ask(written(one), lambda at=at: began.append(at))
            for at, one in enumerate(sent)
        ]
        assert await asyncio.gather(*asked) == sent

    talk(ask)
    assert began == list(range(len(sizes)))


def test_one_that_no_longer_waits_shifts_nobody_elses_answer():
    async def ask(exchange):
        tasks = [asyncio.ensure_future(exchange.ask(written(at), lambda: None)) for at in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one for at, one in enumerate(found) if at != 1] == [0, 2, 3]

    talk(ask)


def test_all_who_wait_are_told_that_the_other_end_has_gone():
    async def ask(exchange):
        asked = [exchange.ask(written(at), lambda: None) for at in range(4)]
        assert await asyncio.gather(*asked[:2]) == [0, 1]
        found = await asyncio.gather(*asked[2:], return_exceptions=True)
        assert [str(one) for one in found] == ["process 7 has ended"] * 2
        with pytest.raises(EndedError):
            await exchange.ask(written(5), lambda: None)

    talk(ask, 2)


def test_half_an_answer_is_none():
    def half(line):
        receive(line, 1.0, lambda: None)
        line.sendall((1000).to_bytes(8, "big") + b"x" * 999)
        line.close()

    async def ask(exchange):
        with pytest.raises(EndedError):
            await exchange.ask(written(1), lambda: None)

    talk(ask, answers=half)


def test_who_waits_for_a_message_rests_once():
    ours, theirs = socket.socketpair()
    rested = []
    threading.Timer(0.3, lambda: send(theirs, "late")).start()
    assert receive(ours, 0.05, lambda: rested.append(1)) == "late"
    assert rested == [1]
    ours.close()
    theirs.close()


def test_outputs_of_like_arrays_are_sent_as_one_and_come_back_as_they_were():
    rng = np.random.default_rng(0)
    outputs = [
        {"dense": rng.random(3).astype(np.float32), "short": rng.integers(0, 9, 2)}
        for _ in range(4)
    ]
    sent = Stacked.of(outputs)
    assert isinstance(sent, Stacked)
    back = [*pickle.loads(pickle.dumps(sent))]
    assert [list(one) for one in back] == [list(one) for one in outputs]
    for one, other in zip(back, outputs, strict=True):
        for head in other:
            np.testing.assert_array_equal(one[head], other[head], strict=True)


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [{"multi_vector": np.zeros((2, 3))}, {"multi_vector": np.zeros((3, 3))}],
        [{"dense": np.zeros(3, np.int8)}, {"dense": np.zeros(3)}],
        [{"sparse": (np.arange(2), np.ones(2))}, {"sparse": (np.arange(3), np.ones(3))}],
        [{"dense": np.zeros(3)}, {"sparse": np.zeros(3)}],
    ],
)
def test_unlike_outputs_are_sent_as_they_are(outputs):
    assert Stacked.of(outputs) is outputs


@pytest.mark.parametrize("segments", [False, True])
def test_rendered_rows_come_back_as_they_were(segments):
    (batch,) = renderer().render(["food", "", "light and air"], Request(), segments=segments)
    back = pickle.loads(pickle.dumps(batch))
    assert (back.ids, back.text, back.truncated) == (batch.ids, batch.text, batch.truncated)
    assert len(back.segments) == 3
    for one, other in zip(back.segments, batch.segments, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
