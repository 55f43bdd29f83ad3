"""Runs a part of a job's life again and again, each time killed one system call later, and looks at what is left.

    python killed.py FOLDER LIFE

A process of its own, because it forks: in a test's process other threads may hold locks.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Loop, batch_of

MINUTE = 60_000_000
CALLS = ("open", "write", "pwrite", "fsync", "replace", "rename", "unlink", "ftruncate", "mkdir", "chmod", "close")
KILLED = 9


# --- lives: what stands before, what is done, and what must be found whenever it was cut short -----------------------------------


def committed(at: Path) -> Loop:
    """Slice 1 is committed; slice 2 was killed after it had appended to an old file, to a new one and to the second of a window."""
    loop = Loop(at).again()
    loop.do({0: [1, 2], MINUTE: [3], 2 * MINUTE: [9]})
    carry = loop.begin(due=[0, 2 * MINUTE])
    for window in (0, MINUTE, 4 * MINUTE):
        carry.append("research", window, batch_of([99]))
    loop.writer.flush_all()  # type: ignore[union-attr]
    return loop


def second_slice(loop: Loop) -> None:
    loop.do({0: [10], MINUTE: [4], 3 * MINUTE: [5]}, due=[0, 2 * MINUTE], withheld=[2 * MINUTE])


def look_at_slice(at: Path) -> None:
    loop = Loop(at).again()
    if loop.slice == 1:
        assert {"slice": 2} == loop.folder.intent()
        assert ([1, 2], [3], [9], [], []) == tuple(loop.rows(minute * MINUTE) for minute in range(5))
        files = ["carry/research/0-1.carry", "carry/research/120000000-1.carry", "carry/research/60000000-1.carry"]
        assert [*files, "checkpoint.json", "intent.json"] == loop.files()
        second_slice(loop)
    assert (2, None) == (loop.slice, loop.folder.intent())
    assert ([10], [3, 4], [], [5], []) == tuple(loop.rows(minute * MINUTE) for minute in range(5))
    files = ["carry/research/0-2.carry", "carry/research/180000000-2.carry", "carry/research/60000000-1.carry"]
    assert [*files, "checkpoint.json", "withheld/research/120000000-1.carry"] == loop.files()


def first_slice(at: Path) -> None:
    Loop(at).again().do({0: [1], MINUTE: [2]})


def look_at_first(at: Path) -> None:
    loop = Loop(at).again()
    if loop.slice == 0:
        assert loop.folder.intent() in (None, {"slice": 1})
        assert [] == [name for name in loop.files() if name != "intent.json"]
        loop.do({0: [1], MINUTE: [2]})
    assert ([1], [2], None) == (loop.rows(0), loop.rows(MINUTE), loop.folder.intent())
    assert ["carry/research/0-1.carry", "carry/research/60000000-1.carry", "checkpoint.json"] == loop.files()


def begin_anew(at: Path) -> None:
    Loop(at).again(from_now=True, stream=["another"])


def look_at_beginning(at: Path) -> None:
    loop = Loop(at).again()
    names = ["0-1.carry", "120000000-1.carry", "60000000-1.carry"]
    if loop.slice == 1:
        assert {"slice": 2} == loop.folder.intent()
        assert ([1, 2], [3], [9]) == tuple(loop.rows(minute * MINUTE) for minute in range(3))
        assert [*(f"carry/research/{name}" for name in names), "checkpoint.json", "intent.json"] == loop.files()
    else:
        assert loop.folder.intent() is None
        kept = [name for name in loop.files() if name.split("/")[-1] not in ("0-2.carry", "240000000-2.carry")]
        assert [f"set-aside-1/{name}" for name in [*(f"carry/research/{name}" for name in names), "checkpoint.json", "intent.json"]] == kept


LIVES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], Callable[[Path], None]]] = {
    "slice": (committed, lambda at: second_slice(Loop(at).again()), look_at_slice),
    "first": (lambda at: None, first_slice, look_at_first),
    "anew": (committed, begin_anew, look_at_beginning),
}


# --- killing ---------------------------------------------------------------------------------------------------------------------


def in_child(action: Callable[[], Any]) -> int:
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watch(step: int | None, in_the_middle: bool, names: list[str]) -> None:
    """Note this process's system calls, and end it at one of them: before it, or having written half of what it was to write."""

    def counted(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names.append(name)
            if len(names) == step:
                if in_the_middle:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))


def main(folder: str, life: str) -> None:
    before, act, look = LIVES[life]
    ready, at, trace = Path(folder, "ready"), Path(folder, "at"), Path(folder, "trace")
    # What a killed process has written stands, synced or not.
    os.fsync = lambda _: None
    assert 0 == in_child(lambda: before(ready))

    def lived(step: int | None, in_the_middle: bool) -> int:
        shutil.rmtree(at, ignore_errors=True)
        if ready.exists():
            shutil.copytree(ready, at)

        def live() -> None:
            names: list[str] = []
            watch(step, in_the_middle, names)
            act(at)
            trace.write_text(" ".join(names))

        return in_child(live)

    assert 0 == lived(None, False)
    names = trace.read_text().split()
    for step, name in enumerate(names, 1):
        for in_the_middle in (False, True) if name in ("write", "pwrite") else (False,):
            if lived(step, in_the_middle) != KILLED or in_child(lambda: look(at)):
                sys.exit(f"{life}: step {step}, {'half of ' if in_the_middle else ''}{name}")
    print(len(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
