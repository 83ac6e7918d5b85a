import asyncio

from embedlm.serving.protocol import _HELD, _Joined


class Line:
    def __init__(self):
        self.sent = []

    def write(self, data):
        self.sent.append(data)

    def close(self):
        self.sent.append("closed")


def test_what_is_written_at_once_is_sent_at_once():
    async def check():
        line = Line()
        joined = _Joined(line, asyncio.get_running_loop())
        joined.write(b"head")
        joined.write(b"body")
        assert line.sent == []
        await asyncio.sleep(0)
        assert line.sent == [b"headbody"]
        joined.write(b"")
        joined.write(b"last")
        joined.close()
        assert line.sent[1:] == [b"last", "closed"]
        await asyncio.sleep(0)
        assert len(line.sent) == 3
        joined.write(b"a" * (_HELD + 1))  # so that a transport can say that it has enough
        assert len(line.sent) == 4

    asyncio.run(check())
