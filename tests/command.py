"""Runs the command line, or code: as a user would, or in forks of a process that has imported all.

Importing torch and transformers takes seconds; a fork of a process that has done so is a process of
its own (it can be killed, its files and memory be limited) and starts in milliseconds.
"""

import atexit
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
WORDS = """river mountain the a of and water bridge quick brown fox jumps over lazy dog winter
summer engine repairs music theory paints blue red seven eight cities trade grain iron"""


def sentences(count, seed=0, longest=24):
    """Return sentences of random words; some are equal."""
    rng, words = random.Random(seed), WORDS.split()
    return [
        " ".join(rng.choice(words) for _ in range(rng.randint(1, longest))).capitalize() + "."
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    """Exit status; -9 where it was killed."""
    out: str
    err: str

    def one_line(self):
        """Return the one line of a refusal: all there is, but for the choice of a recipe."""
        assert self.code == 2, self
        assert self.out == "", self
        lines = self.err.splitlines(keepends=True)
        told = "".join(line for line in lines if "has no recipe of its own" not in line)
        assert told.endswith("\n"), self
        assert told.count("\n") == 1, self.err
        assert "Traceback" not in told
        return told


def real(*arguments, stdin=None, **environment):
    """Run the command line in a process of its own, from the start."""
    done = subprocess.run(
        [sys.executable, "-m", "embedlm.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


class Server:
    """A process that has imported all of the command line and forks for every command.

    Args:
        environment: variables that are read at an import.
    """

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.command"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    def __call__(self, *arguments, folder, kill_at=None, largest_file=None, stdin=""):
        """Run a command.

        Args:
            arguments: of the command line.
            folder: where its output is caught.
            kill_at: (glob, count, delay): kill -9 it so long after so many files are there.
            largest_file: bytes that a file of it may have.
            stdin: its standard input.
        """
        return self._ask(
            arguments=[str(one) for one in arguments],
            folder=str(folder),
            kill_at=kill_at,
            largest_file=largest_file,
            stdin=stdin,
        )

    def run_code(self, code, *, folder, stdin="", **environment):
        """Run code as a main module, with more variables of the environment.

        Args:
            code: what is not caught in it is told and ends with 1.
            folder: in which it runs, and where its output is caught.
            stdin: its standard input.
            environment: read when the code runs, not at an import.
        """
        return self._ask(code=code, folder=str(folder), stdin=stdin, environment=environment)

    def _ask(self, **order):
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return Ran(**json.loads(self.process.stdout.readline()))

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@cache
def server():
    """Return the one server of this test run."""
    started = Server()
    atexit.register(started.close)
    return started


def _child(order, folder):
    """Run one command, or code, in this process, which ends with it."""
    (folder / "stdin").write_bytes(order["stdin"].encode("utf-8", "surrogateescape"))
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(folder / name, flags), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
    sys.stdin = os.fdopen(0, encoding="utf-8")
    if order.get("largest_file"):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], hard))
    os.environ.update(order.get("environment", {}))
    code = 1
    try:
        if "code" in order:
            _run_code(order["code"], order["folder"])
            code = 0
        else:
            from embedlm.cli import main

            main(order["arguments"])
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_code(code, folder):
    os.chdir(folder)
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(compile(code, "<code>", "exec"), main.__dict__)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _wait(child, kill_at):
    """Wait for a child and return its status, killing it when that is due."""
    while kill_at is not None:
        pattern, count, delay = kill_at
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if len(glob(pattern)) >= count:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return os.waitpid(child, 0)[1]


def _serve():
    import openai.resources.chat  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import embedlm.bulk.files
    import embedlm.cli._app
    import embedlm.loader
    import embedlm.search
    import embedlm.synthesis  # noqa: F401

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("llama")  # made once a process, of a thousand patterns
    gc.collect()
    gc.freeze()  # else each fork's first collection copies all of the memory
    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["folder"]) / ".command"
        folder.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            _child(order, folder)
        status = _wait(child, order.get("kill_at"))
        texts = {
            "out": (folder / "stdout").read_text() if (folder / "stdout").exists() else "",
            "err": (folder / "stderr").read_text() if (folder / "stderr").exists() else "",
        }
        answer = {"code": os.waitstatus_to_exitcode(status), **texts}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
