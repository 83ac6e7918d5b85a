"""What the allocator is told, whichever one it is."""

import pytest

from embedlm.backbone import memory


@pytest.fixture
def told(monkeypatch):
    """Return what mallopt was told, and by which sizes it is satisfied."""
    for name in memory._ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    calls, most = [], [1 << 40]

    def mallopt(what, size):
        calls.append((what, size >> 20))
        return int(size <= most[0])

    monkeypatch.setattr(memory, "_of_glibc", lambda name: mallopt)
    memory.keep_freed.cache_clear()
    yield calls, most
    memory.keep_freed.cache_clear()


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (1 << 40, [(-3, 64), (-1, 256)]),
        (32 << 20, [(-3, 64), (-3, 32), (-1, 256)]),  # glibc of old
        (0, [(-3, 64), (-3, 32)]),
    ],
)
def test_the_threshold_of_blocks_is_set_or_both_are_left(told, most, wanted):
    told[1][0] = most
    memory.keep_freed()
    assert told[0] == wanted


@pytest.mark.parametrize("name", memory._ALLOCATOR)
def test_what_the_user_has_set_stays(told, name, monkeypatch):
    monkeypatch.setenv(name, "1")
    memory.keep_freed()
    assert told[0] == []
