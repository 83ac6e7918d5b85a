"""The command line as a process: refusals, faults, interrupts, terminals."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

import embedlm
from embedlm.cli import demonstrations, encode, parity, recipes, render, search, similarity
from tests.command import ROOT, real, sentences

COMMANDS = {
    module.NAME: module for module in (demonstrations, encode, parity, render, search, similarity)
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["simlarity", "a", "b"],
            "'simlarity' is not a command; allowed: encode, .*recipes, .* Did you",
        ),
        (["encode", "in.txt"], "--output was not given. See: embedlm encode --help"),
        (["encode", "-o", "x.npy"], "FILE_OR_DIR was not given. See: embedlm encode --help"),
        (["encode", "in.txt", "-o", "x.npy", "--modle", "x"], "Unknown option: --modle"),
        (["encode", "--modle", "in.txt", "-o", "x.npy"], "'in.txt' is one argument too many"),
        (["encode", "--modle", "-o", "x.npy"], "unknown option '--modle'"),
        (["encode", "in.txt", "-o", "x.npy", "--dim", "many"], "--dim"),
        (["similarity", "one"], "1 text was given; give two or more"),
        (["render"], "no text was given"),
        (["recipes", "show", "promteol"], "'promteol' is no recipe.* Did you mean 'prompteol'"),
        (["recipes", "show"], "NAME was not given. See: embedlm recipes show --help"),
        (["recipes", "shwo", "x"], "'shwo' is not a command of recipes; allowed: .* mean 'show'"),
        (["recipes", "a", "b"], "'a' 'b' are 2 arguments too many"),
        (["encode", "in.txt", "-o"], "-o needs a value. See"),
        (["encode", "in.txt", "-o", "x.npy", "--dims", "4"], "Did you mean --dim[?] See: embedlm"),
        (["compare", "builtin"], "embedlm: B was not given"),
        (["rerank", "a.md", "q", "-m", "builtin"], "is not there|'builtin' comes with EmbedLM and"),
        (["similarity", "a", "b", "--device", "gpu"], "allowed: cpu, .* Did you mean 'cuda'"),
        (["similarity", "a", "b", "--dtype", "fp16"], "Did you mean 'float16'"),
        (["synthesize", "inprs", "a.md"], "Did you mean 'inpars'"),
        (["data", "inspect", "x", "--seed", "-1"], "See: embedlm data inspect --help"),
        (["index", "-o"], "See: embedlm index --help"),
        (["search", "."], "QUERY was not given"),
        (["similarity", "a", "b", "--set", "pooling"], "--set 'pooling': write field=value"),
        (["similarity", "a", "b", "--set", "x=[1"], "the value is not valid YAML"),
        (["similarity", "a", "b", "--set", "x=1"], "say which recipe"),
        (["similarity", "a", "b", "-r", "echo", "--set", "pooling.knd=mean"], "pooling.knd"),
        (
            ["demonstrations", "x", "--dev", "y", "--limit", "0"],
            "--limit: '0' is not allowed; give a whole number above 0",
        ),
        (["demonstrations", "x", "--dev", "none.jsonl"], "none.jsonl is not there"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(run, arguments, told):
    assert re.search(told, run(*arguments).one_line())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("[{broken", "is not valid JSON"),
        ('"text"', "entry 1 is not an object of strings"),
        ('[{"query": 5}]', "entry 1 is not an object of strings"),
        (None, "cannot read the demonstrations"),
    ],
)
def test_bad_demonstrations_are_told(run, with_model, tmp_path, data, told):
    if data is not None:
        (tmp_path / "shots.json").write_text(data)
    done = run("render", "light", *with_model, "--demonstrations", tmp_path / "shots.json")
    assert told in done.one_line()


def test_an_unexpected_fault_is_one_line_too():
    code = (
        "import sys, embedlm.cli._app as a\n"
        "def broken(*_): raise ZeroDivisionError('by zero')\n"
        "a.app = broken\n"
        "a.main(['recipes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    told = done.stderr.decode()
    assert told.startswith("embedlm: ZeroDivisionError: by zero. This is a fault in embedlm")
    assert "EMBEDLM_DEBUG=1" in told
    assert told.count("\n") == 1
    debug = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "EMBEDLM_DEBUG": "1"},
    )
    assert "Traceback" in debug.stderr.decode()


def test_debug_shows_where_a_refusal_came_from():
    done = real("recipes", "show", "none", EMBEDLM_DEBUG="1")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("embedlm: 'none' is no recipe")


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m embedlm.cli recipes schema | head -c 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == b"{0\n"
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_an_interrupt_is_told_and_costs_nothing(tiny_llama, tmp_path, number, code, word):
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in sentences(3000)))
    out, part = tmp_path / "out.npy", tmp_path / "out.npy.part"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "embedlm.cli", "encode", tmp_path / "in.txt", "-o", out),
            *("-m", tiny_llama, "-r", "plain-mean", "--block", "10"),
        ],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        # What a shell starts in the background ignores interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(part.glob("blocks/*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code
    kept = "what was finished is kept; to go on, give the same command again"
    assert told == f"embedlm: {word}; {kept}\n"
    assert list(part.glob("blocks/*.npz"))


def test_a_terminal_shows_a_bar(tiny_llama, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in sentences(50)))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "embedlm.cli", "encode", tmp_path / "in.txt"),
            *("-o", tmp_path / "out.npy", "-m", tiny_llama, "-r", "plain-mean", "--block", "10"),
        ],
        stderr=theirs,
        cwd=ROOT,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait() == 0
    assert b"encode: 100%" in shown
    assert b"50.0/50.0" in shown


def test_help_pages_and_modules_are_one_to_one():
    for name, module in COMMANDS.items():
        assert module.__name__ == f"embedlm.cli.{name}"
    assert recipes.app.name == ("recipes",)


def test_an_interrupt_while_the_command_line_is_imported(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "embedlm.cli._app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "embedlm.cli._app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        embedlm.cli.main(["recipes"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "embedlm: interrupted; nothing was begun\n"
