"""However the demo ends, no process of it is left: not a component of Airflow, not a task, not a database."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import pytest

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".run" / "demo"
PATIENCE = 120.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of a kill -9"),
]


@pytest.fixture
def demo() -> Iterator["subprocess.Popen[str]"]:
    """Start the demo with few records, to be ended by the test."""
    command = [sys.executable, "-u", "-m", "demo.run", "--small", "--keep"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()  # if the test failed; the demo then cleans up by itself
        process.communicate()


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    """Follow what the demo says until it says this."""
    assert process.stdout is not None
    heard = []
    for line in process.stdout:
        heard.append(line)
        if words in line:
            return
    pytest.fail(f"the demo ended without saying {words!r}: {''.join(heard)}")


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return all processes that came from the demo so far; each knows its own pid and birth."""
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


def left_of(known: list[psutil.Process]) -> list[str]:
    """Describe the live ones among these, and whatever was born after them and works in the demo's folder."""
    candidates = {*known, *(each for each in psutil.process_iter() if works_in_demo(each))}
    left = []
    for candidate in candidates:
        with contextlib.suppress(psutil.Error):
            if candidate.is_running() and candidate.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{candidate.pid} {' '.join(candidate.cmdline())}")
    return left


def works_in_demo(process: psutil.Process) -> bool:
    """Tell whether a process has its working directory in the demo's folder, as all but the two APIs have."""
    with contextlib.suppress(psutil.Error):
        return Path(process.cwd()).is_relative_to(FOLDER)
    return False


def is_among(processes: list[psutil.Process], module: str) -> bool:
    """Tell whether one of these runs a module."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if module in process.cmdline():
                return True
    return False


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ("filling it", signal.SIGTERM),  # a database, the API and its seeding; Airflow about to start
        ("localstripe holds", signal.SIGHUP),  # all components half up
        (" running", signal.SIGINT),  # tasks at work
        ("round 2", signal.SIGTERM),  # writers at work too, the sync on its schedule
    ],
)
def test_a_signal_leaves_no_process(demo: "subprocess.Popen[str]", words: str, how: signal.Signals) -> None:
    """Ctrl-C, ``kill`` or a closed terminal, early or late: all is gone, and the exit code says why."""
    read_until(demo, words)
    if words == "round 2":
        read_until(demo, "triggered")
    known = descendants(demo)
    assert len(known) > 2
    assert is_among(known, "demo.localstripe_server")
    assert is_among(known, "demo.kinto_server") == (words != "filling it")
    assert is_among(known, "airflow_extract_provider.receiver.main") == (words in (" running", "round 2"))
    demo.send_signal(how)
    time.sleep(0.3)
    demo.send_signal(how)  # an impatient person
    assert demo.wait(PATIENCE) == 128 + how
    assert left_of(known) == []


def test_a_killed_demo_takes_its_children_with_it(demo: "subprocess.Popen[str]") -> None:
    """Even ``kill -9``, after which the demo itself can do nothing any more, leaves no process."""
    read_until(demo, "Kinto is up")
    known = descendants(demo)
    assert is_among(known, "demo.kinto_server")
    demo.kill()
    until = time.monotonic() + PATIENCE
    while (left := left_of(known)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
