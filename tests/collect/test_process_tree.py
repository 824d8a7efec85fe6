"""Workers are noticed at little cost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from sampling import bare

from leakhunt.collect.process import ProcessHandle
from leakhunt.collect.process_tree import ProcessTree
from leakhunt.errors import ProcessGone

pytestmark = pytest.mark.usefixtures("nothing_left")
CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")


def pids(tree: ProcessTree) -> set[int]:
    return {process.pid for process in tree.processes}


def refresh_until(tree: ProcessTree, expected: set[int]) -> None:
    deadline = time.monotonic() + 10
    while pids(tree) != expected:
        assert time.monotonic() < deadline, (pids(tree), expected)
        tree.refresh(afresh=False)


def test_workers_come_and_go():
    """Children and grandchildren are found and lost by the kernel's lists of children."""
    with bare() as server:
        tree = ProcessTree(ProcessHandle(server.pid))
        tree.refresh()
        assert pids(tree) == {server.pid}
        assert not tree.refresh(afresh=False)
        server.tell("c = os.fork(); c or (os.fork(), __import__('time').sleep(600))")
        deadline = time.monotonic() + 10
        while len(pids(tree)) < 3:
            assert time.monotonic() < deadline
            tree.refresh(afresh=False)
        child, grandchild = (process.pid for process in tree.processes[1:])
        assert not tree.refresh(afresh=False)
        os.kill(grandchild, signal.SIGKILL)
        # Its parent does not take notice: it stays in the kernel's list, and can be read no more.
        while tree.processes[-1].handle.alive:
            pass
        with pytest.raises(ProcessGone):
            tree.processes[-1].vitals()
        tree.refresh()
        assert pids(tree) == {server.pid, child}
        os.kill(child, signal.SIGKILL)
        server.tell("os.waitpid(c, 0)")
        refresh_until(tree, {server.pid})
        server.process.kill()
        server.process.wait()
        with pytest.raises(ProcessGone, match="exited"):
            tree.refresh(afresh=False)


@pytest.mark.skipif(not CHILDREN.exists(), reason="this kernel has no lists of children")
def test_where_nothing_changed_nothing_is_looked_at(monkeypatch):
    """The processes of the machine are not gone through, unless it is asked for."""
    with bare(workers=1) as server:
        tree = ProcessTree(ProcessHandle(server.pid))
        while tree.refresh() or len(tree.processes) < 2:
            pass

        def looked(self: ProcessHandle) -> list[ProcessHandle]:
            raise AssertionError("looked at all processes")

        monkeypatch.setattr(ProcessHandle, "tree", looked)
        assert not tree.refresh(afresh=False)
        with pytest.raises(AssertionError, match="looked at all"):
            tree.refresh()
