"""Jobs over files that are stopped: killed, out of space, damaged, or run twice."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import embedlm
from embedlm.bulk import encode_file
from embedlm.errors import JobError
from tests.command import real, sentences

pytest.importorskip("pyarrow")

SUFFIXES = ("npy", "npz", "jsonl", "parquet")


# -- resuming -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return an input of 2,000 lines, in which some lines are equal."""
    path = tmp_path_factory.mktemp("large") / "in.jsonl"
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(sentences(2000, longest=12))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ARGUMENTS = {
    "npy": ("--precision", "int8", "--calibration", "sample.txt"),
    "npz": ("--heads", "dense,{sparse: {top_k: 5}},multi_vector"),
    "jsonl": ("--normalize", "--keep", "text"),
    "parquet": ("--dim", "16"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_job_killed_at_random_moments_gives_the_same_bytes(
    command, tiny_llama, large, tmp_path, suffix
):
    whole, killed = tmp_path / f"whole.{suffix}", tmp_path / f"killed.{suffix}"
    lines = large.read_text().splitlines()[:100]
    (tmp_path / "sample.txt").write_text("\n".join(json.loads(line)["text"] for line in lines))
    more = [tmp_path / one if one == "sample.txt" else one for one in ARGUMENTS[suffix]]
    options = ("-m", tiny_llama, "-r", "plain-mean", "--block", 64, *more)
    done = command("encode", large, "-o", whole, *options, folder=tmp_path)
    assert done.code == 0, done.err
    rng = random.Random(suffix)
    blocks = f"{killed}.part/blocks/*.npz"
    # Before the first block, among them, and (32 are all) while the output is put together.
    for count in sorted([0, 32, 32, *rng.sample(range(1, 31), 3)]):
        moment = (blocks, count, rng.uniform(0, 0.03))
        found = command("encode", large, "-o", killed, *options, folder=tmp_path, kill_at=moment)
        assert found.code == -9 or (count == 32 and found.code == 0), found.err
        assert not killed.exists() or killed.read_bytes() == whole.read_bytes()
    last = command("encode", large, "-o", killed, *options, folder=tmp_path)
    assert last.code == 0, last.err
    assert killed.read_bytes() == whole.read_bytes()
    assert not killed.with_name(killed.name + ".part").exists()
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--compile",)])
def test_a_real_process_killed_and_started_again(command, tiny_llama, large, tmp_path, more):
    options = ["-m", str(tiny_llama), "-r", "plain-mean", "--block", "32", *more]
    whole = command("encode", large, "-o", tmp_path / "whole.npy", *options, folder=tmp_path)
    assert whole.code == 0, whole.err
    out = tmp_path / "killed.npy"
    blocks = tmp_path / "killed.npy.part" / "blocks"
    process = subprocess.Popen(
        [sys.executable, "-m", "embedlm.cli", "encode", str(large), "-o", str(out), *options]
    )
    deadline = time.monotonic() + 120
    while len(list(blocks.glob("*.npz"))) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    kept = len(list(blocks.glob("*.npz")))
    again = real("encode", large, "-o", out, *options, "--json")
    assert json.loads(again.out)["resumed"] == kept
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


class StoppedError(Exception):
    """Stands for whatever stops a process."""


def stop_after(model, count, monkeypatch):
    """Let the model fail when it has encoded `count` blocks."""
    encode, left = type(model).encode, [count + 1]  # a job first encodes nothing, as a check

    def counted(self, *arguments, **options):
        if left[0] == 0:
            raise StoppedError
        left[0] -= 1
        return encode(self, *arguments, **options)

    monkeypatch.setattr(type(model), "encode", counted)


@pytest.fixture
def unfinished(model, source, tmp_path, monkeypatch):
    """Return the output of a job that stopped after 3 of its 5 blocks."""
    with monkeypatch.context() as patch:
        stop_after(model, 3, patch)
        with pytest.raises(StoppedError):
            encode_file(model, source, tmp_path / "out.npy", block=64)
    assert len(list((tmp_path / "out.npy.part" / "blocks").iterdir())) == 3
    return tmp_path / "out.npy"


def test_finished_blocks_are_kept(model, source, unfinished, tmp_path):
    report = encode_file(model, source, unfinished, block=64)
    assert (report.blocks, report.resumed) == (5, 3)
    encode_file(model, source, tmp_path / "whole.npy", block=64)
    assert unfinished.read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_block_is_encoded_anew(model, source, unfinished, tmp_path, damage):
    block = tmp_path / "out.npy.part" / "blocks" / "00000001.npz"
    data = bytearray(block.read_bytes())
    data[len(data) // 2] ^= 255
    if damage == "gone":
        block.unlink()
    else:
        block.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    encode_file(model, source, unfinished, block=64)
    encode_file(model, source, tmp_path / "whole.npy", block=64)
    assert unfinished.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_another_job_is_not_mixed_in(model, source, unfinished, model_folder):
    for options, told in (
        ({"dim": 8}, "options.dim was null, is 8"),
        ({"role": "query"}, 'options.role was null, is "query"'),
        ({"block": 32}, "options.block was 64, is 32"),
    ):
        with pytest.raises(JobError, match="differs from this one") as caught:
            encode_file(model, source, unfinished, **{"block": 64, **options})
        assert told in str(caught.value)
        assert "--restart" in str(caught.value)
    last = embedlm.load(model_folder("llama"), "plain-last", device="cpu")
    with pytest.raises(JobError, match=r'recipe.pooling.kind was "mean", is "last"'):
        encode_file(last, source, unfinished, block=64)
    other = embedlm.load(model_folder("qwen2"), "plain-mean", device="cpu")
    with pytest.raises(JobError, match=r"model.weights was"):
        encode_file(other, source, unfinished, block=64)
    report = encode_file(last, source, unfinished, block=64, restart=True)
    assert report.resumed == 0


def test_a_changed_input_is_told(model, source, unfinished):
    text = source.read_text()
    source.write_text(text + "one more\n")
    with pytest.raises(JobError, match=r"input.size was"):
        encode_file(model, source, unfinished, block=64)
    source.write_text(text)
    os.utime(source, (1, 1))  # the same bytes at another time are the same input
    assert encode_file(model, source, unfinished, block=64).resumed == 3


def test_an_input_changed_out_of_sight_is_told(model, source, unfinished, monkeypatch):
    # Of a large file only head and tail are hashed; here nothing is, so that the blocks must tell.
    monkeypatch.setattr("embedlm.data.source._EDGE", 0)
    text = source.read_text().splitlines()
    with monkeypatch.context() as patch:
        stop_after(model, 2, patch)
        with pytest.raises(StoppedError):
            encode_file(model, source, unfinished, block=64, restart=True)
    text[70] = "x" * len(text[70])
    source.write_text("\n".join(text) + "\n")
    with pytest.raises(JobError, match="records at 65 to 128 are different"):
        encode_file(model, source, unfinished, block=64)


def test_integer_ranges_outlive_a_stop(model, source, tmp_path, monkeypatch):
    out, sample = tmp_path / "out.npy", tmp_path / "sample.txt"
    sample.write_text("\n".join(source.read_text().splitlines()[:100]))
    options = {"block": 64, "precision": "int8", "calibration": sample}
    with monkeypatch.context() as patch:
        stop_after(model, 4, patch)
        with pytest.raises(StoppedError):
            encode_file(model, source, out, **options)
    assert (tmp_path / "out.npy.part" / "fixed" / "ranges.npy").is_file()
    assert list((tmp_path / "out.npy.part" / "blocks").iterdir())
    encode_file(model, source, out, **options)
    encode_file(model, source, tmp_path / "whole.npy", **options)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_stop_before_the_folder_is_gone_is_no_loss(model, source, tmp_path, monkeypatch):
    out = tmp_path / "out.npy"

    def stopped(self):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("embedlm.jobs.folder.Job.remove", stopped)
        with pytest.raises(StoppedError):
            encode_file(model, source, out, block=64)
    before = out.stat().st_mtime_ns
    report = encode_file(model, source, out, block=64)
    assert (report.rows, out.stat().st_mtime_ns) == (300, before)
    assert not (tmp_path / "out.npy.part").exists()


def test_a_folder_that_is_not_a_jobs_is_left_alone(model, source, tmp_path):
    mine = tmp_path / "out.npy.part"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for restart in (False, True):
        with pytest.raises(JobError, match=r"holds other files \(letter.txt\)"):
            encode_file(model, source, tmp_path / "out.npy", restart=restart)
    assert (mine / "letter.txt").read_text() == "dear"


def test_an_old_output_stays_until_the_new_one_is_whole(model, source, unfinished):
    with unfinished.open("wb") as file:
        np.save(file, np.zeros((1, 2)))
    with pytest.raises(JobError):
        encode_file(model, source, unfinished, block=64, dim=8)
    assert np.load(unfinished).shape == (1, 2)
    encode_file(model, source, unfinished, block=64)
    assert np.load(unfinished).shape == (300, 32)


def test_two_processes_do_not_share_an_output(model, source, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    part = tmp_path / "out.npy.part"
    part.mkdir()
    with (part / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another process is writing this output"):
            encode_file(model, source, tmp_path / "out.npy")
    assert encode_file(model, source, tmp_path / "out.npy").rows == 300


# -- full disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [8_000, 60_000])
def test_no_room_is_told_and_costs_nothing(command, tiny_llama, large, tmp_path, limit):
    """A block of 64 takes about 11 kB, the output 256 kB: the limits stop one or the other."""
    options = ("-m", tiny_llama, "-r", "plain-mean", "--block", 64, "--json")
    out = tmp_path / "out.npy"
    full = command("encode", large, "-o", out, *options, folder=tmp_path, largest_file=limit)
    told = full.one_line()
    assert "no space left while writing" in told
    assert "run the same command again" in told
    assert not out.exists()
    kept = len(list(tmp_path.glob("out.npy.part/blocks/*.npz")))
    assert kept == (0 if limit == 8_000 else 32)
    assert (tmp_path / "out.npy.part").exists() == (kept > 0)
    again = command("encode", large, "-o", out, *options, folder=tmp_path)
    assert json.loads(again.out)["resumed"] == kept
    command("encode", large, "-o", tmp_path / "whole.npy", *options, folder=tmp_path)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of 250 kB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=250k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(command, tiny_llama, large, tmp_path, small_disk):
    options = ("-m", tiny_llama, "-r", "plain-mean", "--block", 64, "--json")
    out = small_disk / "out.npy"
    full = command("encode", large, "-o", out, *options, folder=tmp_path)
    assert "No space left on device" in full.one_line()
    kept = sorted((small_disk / "out.npy.part" / "blocks").iterdir())
    assert len(kept) > 5
    for path in kept:
        assert len(np.load(path)["dense"]) == 64
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    again = command("encode", large, "-o", out, *options, folder=tmp_path)
    assert json.loads(again.out)["resumed"] == len(kept)
    assert np.load(out).shape == (2000, 32)
