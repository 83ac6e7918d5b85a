"""The library of kernels: compiled by the machine's own compiler, and kept in the user's cache.

A machine has it where its processor has what the kernels are written for and GCC is installed, and
nothing else changes where it has not. It is compiled before the first pass, which takes half a
second, and never later: a process runs all its passes by the same kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path

from embedlm.errors import InputError
from embedlm.jobs.atomic import write_file
from embedlm.jobs.user_cache import user_cache

__all__ = ["SWITCH", "library"]

log = logging.getLogger(__name__)

SWITCH = "EMBEDLM_KERNELS"
"""The variable that says whether kernels are compiled: `on` (as without it) or `off`."""
_NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
_OTHERWISE = {"amx_bf16"}
"""What makes PyTorch's own products the faster way, as far as is known."""
_OPTIONS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp")
_PATIENCE = 60
"""Seconds that a compiler may take."""
_SOURCES = ("attention.c", "norms.c")

_lock = threading.Lock()


def library() -> ctypes.CDLL | None:
    """Return the kernels; None where the machine cannot have them, or the user wants none.

    Raises:
        InputError: the variable `EMBEDLM_KERNELS` is neither on nor off.
    """
    chosen = os.environ.get(SWITCH, "on")
    if chosen not in ("on", "off"):
        raise InputError(f"{SWITCH} is {chosen!r}; set it to on or off, or leave it out")
    if chosen == "off":
        return None
    with _lock:  # all threads wait for the one that compiles
        return _library()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    flags = _processor()
    if not flags >= _NEEDED or flags & _OTHERWISE:
        return None
    for compiler in _compilers():
        try:
            return _from(compiler, flags)
        except (OSError, subprocess.SubprocessError, AttributeError, InputError) as error:
            log.info("%s gives no kernels here: %s", compiler[0], error)
    return None


def _compilers() -> Iterator[tuple[str, ...]]:
    """Yield the commands that may compile C: what the variable CC names, and GCC."""
    seen = []
    for command in (os.environ.get("CC", ""), "gcc"):
        try:
            program, *options = shlex.split(command) or [""]
        except ValueError as error:  # a quotation that does not end
            log.info("the variable CC is no command (%s): %r", error, command)
            continue
        if (path := shutil.which(program)) and (path, *options) not in seen:
            seen.append((path, *options))
            yield path, *options


def _processor() -> set[str]:
    """Return what the processor can do, as Linux names it."""
    if not sys.platform.startswith("linux"):
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _from(compiler: tuple[str, ...], flags: set[str]) -> ctypes.CDLL:
    """Return the library that is kept; one that is damaged, or may be another's, is made anew.

    Raises:
        PermissionError: another user may write into its folder.
        OSError: it cannot be made or opened.
        InputError: there is no cache.
    """
    sources = [(resources.files(__package__) / name).read_bytes() for name in _SOURCES]
    options = " ".join((*compiler, *_OPTIONS, *sorted(flags)))
    digest = hashlib.sha256(b"\0".join([*sources, os.fsencode(options)])).hexdigest()[:20]
    path = user_cache() / f"kernels-{os.getuid()}" / f"{digest}.so"  # a cache may be a team's
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(path.parent)
    with suppress(OSError, AttributeError):
        _check_owner(path)
        return _opened(path)
    binary = _compiled(compiler, sources)
    write_file(path, lambda handle: handle.write(binary), shared=True)
    path.chmod(0o600)  # the umask of many lets their group write
    _check_owner(path)
    return _opened(path)


def _check_owner(path: Path) -> None:
    facts = path.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} is not this user's alone")


def _compiled(compiler: tuple[str, ...], sources: list[bytes]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="embedlm-") as folder:
        names = [Path(folder, name) for name in _SOURCES]
        for name, source in zip(names, sources, strict=True):
            name.write_bytes(source)
        out = Path(folder, "kernels.so")
        objects = [str(name.with_suffix(".o")) for name in names]
        for name, made in zip(names, objects, strict=True):
            _run(*compiler, *_OPTIONS, "-c", str(name), "-o", made)
        # Without -fopenmp: the threads are those that PyTorch has, of the OpenMP that it brings.
        _run(*compiler, "-shared", "-o", str(out), *objects, "-lm")
        return out.read_bytes()


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,  # what is piped into this process is not the compiler's
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _opened(path: Path) -> ctypes.CDLL:
    """Return the library, which is tried first.

    Raises:
        OSError: it cannot be opened, or gives wrong numbers.
    """
    opened = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL | os.RTLD_NOW)
    opened.embedlm_attend.restype = ctypes.c_int
    opened.embedlm_norm.restype = None
    return opened
