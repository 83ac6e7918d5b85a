"""What long jobs share: atomic writes, the lock, the manifest, the folder, rejects and logs."""

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedlm.errors import JobError
from embedlm.jobs import Job, Reject, disk_errors, new_folder, replace_folder, set_aside, write_file
from embedlm.jobs.json_files import append_json, read_json, read_log, write_json
from embedlm.jobs.manifest import difference, json_values
from embedlm.jobs.rejects import check_counts, write_rejects

# -- atomic writes --------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for whatever stops a process."""


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"

    def half(handle):
        handle.write(b"half")
        raise StoppedError

    with pytest.raises(StoppedError):
        write_file(path, half)
    assert list(tmp_path.iterdir()) == []
    write_file(path, lambda handle: handle.write(b"old"))
    with pytest.raises(StoppedError):
        write_file(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_may_write_one_file(tmp_path):
    file, ready = tmp_path / "shared", threading.Barrier(4)

    def write(number):
        def slowly(handle):
            ready.wait()  # all have begun
            handle.write(str(number).encode() * 1000)

        write_file(file, slowly, shared=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(file.read_text())) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with contextlib.suppress(StoppedError), new_folder(target) as folder:
        (folder / "a").write_text("half")
        raise StoppedError
    assert list(tmp_path.iterdir()) == []
    for text in ("old", "new"):
        with new_folder(target) as folder:
            (folder / text).write_text(text)
            os.chmod(folder / text, 0o600)  # as safetensors makes its files
    assert (target / "new").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(StoppedError), new_folder(target) as folder:
        raise StoppedError
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


FOLDER_WRITER = """
    import sys, time
    from pathlib import Path
    from embedlm.jobs import new_folder
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "a").write_text("half")
        print(folder, flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no marks of folders in use")
def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    target = tmp_path / "to"
    for foreign in (".to.backup.tmp", ".to.12345678.tmp.d", ".too.12345678.tmp"):
        (tmp_path / foreign).mkdir()
    command = [sys.executable, "-c", textwrap.dedent(FOLDER_WRITER), str(target)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (tmp_path / one.stdout.readline().strip() for one in processes)
    processes[0].kill()
    processes[0].communicate()
    try:
        with new_folder(target) as folder:
            (folder / "a").write_text("whole")
        assert not killed.exists()
        assert (alive / "a").read_text() == "half"
        assert len(list(tmp_path.iterdir())) == 5
    finally:
        processes[1].kill()
        processes[1].communicate()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_old_folder_comes_back_where_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    finished, target = tmp_path / "finished", tmp_path / "target"
    for folder in (finished, target):
        folder.mkdir()
        (folder / folder.name).write_text("x")
    rename, calls = os.replace, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr("os.replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        replace_folder(finished, target)
    assert [path.name for path in target.iterdir()] == ["target"]


def test_disk_errors_say_what_is_kept(tmp_path):
    for number, told in (
        (errno.ENOSPC, "no space left while writing .*f.bin .*Blocks are kept"),
        (errno.EIO, "f.bin cannot be written: Input/output error.*Blocks are kept"),
        *(
            (number, f"f.bin cannot be written: {os.strerror(number)}. This user may not write to")
            for number in (errno.EROFS, errno.EACCES, errno.EPERM)
        ),
    ):
        with (
            pytest.raises(JobError, match=told),
            disk_errors(tmp_path, "Blocks are kept"),
        ):
            raise OSError(number, os.strerror(number), str(tmp_path / "f.bin"))
    with pytest.raises(JobError, match="another"), disk_errors(tmp_path, "x", also=(RuntimeError,)):
        raise JobError("another")
    with (
        pytest.raises(JobError, match="cannot be written: the writer"),
        disk_errors(tmp_path, "x", also=(RuntimeError,)),
    ):
        raise RuntimeError("the writer")


def test_damaged_files_are_set_aside_together(tmp_path):
    for count in (1, 2):
        for ending in ("", "-wal"):
            (tmp_path / f"db{ending}").write_text(f"{count}")
        aside = set_aside(tmp_path / "db", ("", "-wal", "-shm"))
        assert aside.name == f"db.damaged-{count}"
        assert (tmp_path / f"db.damaged-{count}-wal").read_text() == f"{count}"
    assert not (tmp_path / "db").exists()


WRITER = """
    import sys
    from pathlib import Path
    from embedlm.jobs import new_folder, write_file
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for text in [b"a" * 200_000, b"b" * 200_000] * 10_000:
        write_file(file, lambda handle: handle.write(text))
        with new_folder(folder) as new:
            (new / "one").write_bytes(text)
            (new / "two").write_bytes(text)
        print("x", flush=True)
"""


def test_a_kill_at_a_random_moment_leaves_whole_content(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    rng = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(file), str(folder)],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert file.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
        if folder.exists():  # two renames replace a folder; between them it has its old content
            contents = {(folder / name).read_bytes() for name in ("one", "two")}
        else:
            (old,) = [p for p in tmp_path.glob(".folder.*.tmp") if (p / "two").exists()][:1]
            contents = {(old / name).read_bytes() for name in ("one", "two")}
        assert len(contents) == 1


# -- manifests ------------------------------------------------------------------------------------


def test_a_difference_is_told_in_words():
    before = json_values({"model": {"name": "a", "dim": 8}, "path": os, "seed": 1})
    assert difference(before, {"model": {"name": "a", "dim": 8}, "path": os, "seed": 1}) == ""
    assert difference(before, {"model": {"name": "b", "dim": 8}, "path": os}) == (
        'model.name was "a", is "b"; seed was 1, is null'
    )
    many = difference({}, {str(i): i for i in range(9)})
    assert many.endswith("and 6 more")


# -- the folder of a job --------------------------------------------------------------------------


def begin(tmp_path, manifest=None, *, restart=False):
    return Job.open(tmp_path / "out", manifest or {"a": 1}, restart=restart, suffix=".bin")


def stopped(tmp_path, blocks=3):
    """Leave an unfinished job."""
    with contextlib.suppress(StoppedError), begin(tmp_path) as job:
        job.fix("ranges", np.arange(4))
        job.fix("kernels", "plain")
        for index in range(blocks):
            job.write_block(index, lambda handle: handle.write(b"block"))
        raise StoppedError
    return tmp_path / "out.part"


def test_a_job_goes_on_where_it_was_and_leaves_nothing(tmp_path):
    stopped(tmp_path)
    with begin(tmp_path) as job:
        assert (job.resumed, job.count()) == (3, 3)
        assert job.block_path(1).read_bytes() == b"block"
        np.testing.assert_array_equal(job.fixed_array("ranges"), np.arange(4))
        assert (job.fixed_text("kernels"), job.fixed_text("none")) == ("plain", None)
        assert job.fixed_array("none") is None
        job.finish({"rows": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_did_nothing_leaves_nothing(tmp_path):
    stopped(tmp_path, blocks=0)
    assert list(tmp_path.iterdir()) == []


def test_another_manifest_is_refused_unless_the_job_restarts(tmp_path):
    folder = stopped(tmp_path)
    with pytest.raises(JobError, match="differs from this one: a was 1, is 2"):
        begin(tmp_path, {"a": 2}).__enter__()
    assert len(list((folder / "blocks").iterdir())) == 3
    with begin(tmp_path, {"a": 2}, restart=True) as job:
        assert job.resumed == 0
        assert job.fixed_text("kernels") is None


@pytest.mark.parametrize("damage", ["cut", "binary", "gone", "list"])
def test_a_damaged_manifest_never_costs_blocks(tmp_path, damage):
    folder = stopped(tmp_path)
    file = folder / "manifest.json"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": b'{"a": ', "binary": b"\xff\x00", "list": b"[1]"}[damage])
    with pytest.raises(JobError, match="differs from this one"):
        begin(tmp_path).__enter__()
    assert len(list((folder / "blocks").iterdir())) == 3
    with begin(tmp_path, restart=True) as job:
        assert job.resumed == 0


def test_a_damaged_array_is_told(tmp_path):
    folder = stopped(tmp_path)
    (folder / "fixed" / "ranges.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with (
        begin(tmp_path) as job,
        pytest.raises(JobError, match=r"ranges\.npy is damaged.*--restart"),
    ):
        job.fixed_array("ranges")


def test_a_damaged_report_is_none(tmp_path):
    folder = stopped(tmp_path)
    with begin(tmp_path) as job:
        write_json(folder / "done", {"rows": 3})
        assert job.report() == {"rows": 3}
        (folder / "done").write_text('{"ro')
        assert job.report() is None


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    folder = stopped(tmp_path)
    for name in ("manifest.json.tmp", "blocks/00000003.bin.tmp", "fixed/ranges.npy.tmp"):
        (folder / name).write_text("half")
    with begin(tmp_path) as job:
        assert job.resumed == 3
        assert list(folder.rglob("*.tmp")) == []


HOLDER = """
    import sys, time
    from pathlib import Path
    from embedlm.jobs import Job
    with Job.open(Path(sys.argv[1]), {"a": 1}, restart=False, suffix=".bin") as job:
        job.write_block(0, lambda handle: handle.write(b"x"))
        print("held", flush=True)
        time.sleep(60)
"""


def test_two_processes_do_not_share_a_job_and_a_kill_frees_it(tmp_path):
    pytest.importorskip("fcntl")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"held\n"
        for restart in (False, True):
            with pytest.raises(JobError, match="another process is writing this output"):
                begin(tmp_path, restart=restart).__enter__()
    finally:
        process.kill()
        process.communicate()
    with begin(tmp_path) as job:
        assert job.resumed == 1


def test_no_room_for_a_block_is_told(tmp_path):
    stopped(tmp_path)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(JobError, match=r"no space left.*Finished blocks are kept in .*out\.part"),
        begin(tmp_path) as job,
    ):
        job.write_block(3, full)
    with begin(tmp_path) as job:
        assert job.count() == 3


# -- rejects, logs, JSON --------------------------------------------------------------------------


def test_rejects_are_json_lines_and_counted(tmp_path):
    reject = Reject("in.csv", 7, "bad é", "raw")
    write_rejects(tmp_path / "bad.jsonl", [f"{reject.to_json()}\n".encode()] * 2)
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert rows == [{"file": "in.csv", "line": 7, "error": "bad é", "record": "raw"}] * 2
    check_counts(5, 3, 2)
    with pytest.raises(JobError, match="5 records were read, but 3 are in the output and 1"):
        check_counts(5, 3, 1)


def test_a_log_goes_on_after_a_line_that_was_cut_off(tmp_path):
    log = tmp_path / "log.jsonl"
    append_json(log, {"n": 1})
    with log.open("a") as file:
        file.write('{"n": 2, "te')
    append_json(log, {"n": 3})
    append_json(log, {"n": 4})
    assert [entry["n"] for entry in read_log(log)] == [1, 3, 4]


def test_json_errors_name_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(JobError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json", JobError)
    with pytest.raises(JobError, match=r"none\.json' is not there; check its name"):
        read_json(tmp_path / "none.json", JobError)
    with contextlib.suppress(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text() == "{"
    write_json(tmp_path / "a.json", {"é": 1}, indent=2)
    assert (tmp_path / "a.json").read_text() == '{\n  "é": 1\n}\n'
