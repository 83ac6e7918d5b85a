"""Generated texts on disk: kills, several processes, damage."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from embedlm.errors import GenerationError
from embedlm.generation import Cache
from embedlm.generation.cache import default_path
from tests.command import server


def test_a_killed_writer_loses_nothing_that_was_saved(tmp_path):
    code = (
        "import sys; from pathlib import Path; from embedlm.generation.cache import Cache\n"
        "store = Cache(Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    store.put([(str(i), 'text')]); print(i, flush=True)\n"
    )
    path = tmp_path / "generations.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        last = [int(process.stdout.readline()) for _ in range(20)][-1]
        os.kill(process.pid, signal.SIGKILL)
    with closing(Cache(path)) as store:
        assert len(store.get([str(i) for i in range(last + 1)])) == last + 1


def test_processes_share_a_cache(tmp_path):
    path = tmp_path / "generations.sqlite"
    code = f"""
import os
from pathlib import Path
from embedlm.generation.cache import Cache

running = []
for n in range(3):
    running.append(os.fork())
    if running[-1] == 0:
        store = Cache(Path({str(path)!r}))
        for i in range(30):
            store.put([(f"{{n}}-{{i}}", "text")])
        os._exit(7)
print([os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in running])
"""
    done = server().run_code(code, folder=tmp_path)
    assert (done.out, done.err) == ("[7, 7, 7]\n", "")
    with closing(Cache(path)) as store:
        assert len(store.get([f"{n}-{i}" for n in range(3) for i in range(30)])) == 90


def test_reading_does_not_wait_for_writing(tmp_path):
    with closing(Cache(tmp_path / "generations.sqlite")) as store:
        store.put([("a", "b")])
        begun, go_on = threading.Event(), threading.Event()

        def slowly():
            begun.set()
            go_on.wait(10)
            yield "c", "d"

        writing = threading.Thread(target=store.put, args=(slowly(),))
        writing.start()
        begun.wait(10)
        assert store.get(["a", "c"]) == {"a": "b"}
        go_on.set()
        writing.join()
        assert store.get(["a", "c"]) == {"a": "b", "c": "d"}


def test_a_damaged_cache_is_set_aside(tmp_path, caplog):
    path = tmp_path / "generations.sqlite"
    for count in (1, 2):
        path.write_bytes(b"no database, but long enough to be taken for one" * 100)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        with closing(Cache(path)) as store:
            store.put([("a", "b")])
            assert store.get(["a"]) == {"a": "b"}
        assert (tmp_path / f"generations.sqlite.damaged-{count}").is_file()
    assert "damaged" in caplog.text


def test_damage_that_shows_later_is_told(tmp_path):
    path = tmp_path / "generations.sqlite"
    with closing(Cache(path)) as store:
        store.put([(f"{i:040}", "text " * 200) for i in range(200)])
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    with closing(Cache(path)) as store, pytest.raises(GenerationError, match="EMBEDLM_CACHE"):
        store.get([f"{i:040}" for i in range(200)])


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GenerationError, match="EMBEDLM_CACHE"):
        Cache(tmp_path / "file" / "generations.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(GenerationError, match=r"folder\.sqlite"):
        Cache(tmp_path / "folder.sqlite")
    assert not list(tmp_path.glob("*.damaged*"))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "generations.sqlite"
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "own.sqlite"))
    assert default_path() == tmp_path / "own.sqlite"
    monkeypatch.delenv("EMBEDLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "embedlm" / "generations.sqlite"
