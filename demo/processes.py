"""Children that end: every process started here leads its own session and goes with all its descendants.

Airflow's components start processes in process groups of their own (each task has one), so ending a group
would leave some behind. None of them leaves its session: that is what ``stop_all`` empties. Should we be
killed with -9, the kernel ends the children themselves (Linux).
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types

from airflow_extract_provider.testing.postgres import ends_with_starter


class ChildFailedError(RuntimeError):
    """A process ended that should not have, or did not become ready; the message ends with its last words."""


@dataclass(frozen=True)
class Child:
    """A process started by us, leader of its own session, with its output in a file."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Raise if it has ended: something waits for it in vain."""
        if (code := self.process.poll()) is not None:
            raise ChildFailedError(f"{self.name} ended with code {code}: {self.last_words()}")

    def finish(self, seconds: float) -> None:
        """Wait for it to end by itself, and raise if it fails or takes longer."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop_all([self], patience=1)
            raise ChildFailedError(f"{self.name} took longer than {seconds:.0f} s: {self.last_words()}") from None
        if code != 0:
            raise ChildFailedError(f"{self.name} ended with code {code}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its output, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"(all of it: {self.log})", *lines])


def start(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path) -> Child:
    """Start a command in ``folder`` with exactly this environment, its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            # Ctrl-C in the terminal must reach us only: we decide in which order things end.
            start_new_session=True,
            preexec_fn=ends_with_starter(signal.SIGTERM),  # noqa: PLW1509 - one system call, takes no lock
        )
    return Child(name, process, log)


def stop_all(children: Iterable[Child], patience: float) -> None:
    """End these children and everything they started: asked first, killed after ``patience`` seconds."""
    sessions = {child.process.pid: child.process for child in children}
    for process in sessions.values():
        process.send_signal(signal.SIGTERM)  # does nothing to one that has ended and was waited for
    until = time.monotonic() + patience
    while members(sessions) and time.monotonic() < until:
        time.sleep(0.05)
    # Again and again: a process may start another one between being listed and being killed.
    while left := members(sessions):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for process in sessions.values():
        process.wait()  # a zombie does not count above, and must be collected all the same


def members(sessions: Mapping[int, "subprocess.Popen[bytes]"]) -> list[int]:
    """Return the processes that still run in the sessions led by these children."""
    for process in sessions.values():
        process.poll()  # collects those that ended
    found = []
    for candidate in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(candidate.pid) in sessions and candidate.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(candidate.pid)
    return found
