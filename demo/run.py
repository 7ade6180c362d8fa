"""``make demo``: backfill and sync as a person would start them, watched, and judged by somebody else.

Starts Postgres, a fake Stripe with a few thousand objects, Kinto with contacts, Airflow, and the receiver of webhooks.
Three rounds: all is copied; then others write in both APIs while all is copied again, and the fake Stripe tells of it
by webhooks; then records are changed and removed so that the APIs have nothing to tell of it, and a sweep finds them.
After each, every record is compared and a table printed; after the second and third every event too, and after the
third what the sweep reports, and what became of each webhook. At last Airflow's own REST API is copied, and compared
with its metadata. Ends with 0 only if all are equal.
Whatever happens, no process is left behind. With KEEP=1 all stays up until Ctrl-C.
"""

import argparse
import contextlib
import fcntl
import functools
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from airflow_extract_provider.testing.postgres import PostgresStartError
from demo import kinto_contacts
from demo.airflow_api import AirflowApiError
from demo.own_api import own_round
from demo.processes import ChildFailedError
from demo.progress import Progress
from demo.rounds import first_round, second_round, third_round
from demo.seed import KEY
from demo.services import FOLDER, Services, start_all
from demo.subscription import judge_webhooks, subscribe

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(BaseException):
    """Somebody asked the demo to end: Ctrl-C, ``kill``, a closed terminal.

    Like KeyboardInterrupt not an Exception: nothing on its way may take it for a failure of its own.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def main() -> int:
    """Run the demo and return its exit code: 0 equal, 1 not equal or failed, 128 + n ended by signal n."""
    options = argparse.ArgumentParser(prog="make demo", description=__doc__)
    options.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    options.add_argument("--small", action="store_true", help="a few hundred objects instead of thousands")
    given = options.parse_args()
    for number in SIGNALS:
        signal.signal(number, _stop)
    progress = Progress()
    try:
        with only_one_demo(), contextlib.ExitStack() as running:
            try:
                services = start_all(running, given.small, progress)
                equal = rounds(services, progress)
                if given.keep:
                    keep_running(services, progress)
                return 0 if equal else 1
            finally:
                # From here on all is being ended, in a few seconds: a second Ctrl-C must not stop that.
                ignore_signals()
                progress.say("stopping")
    except StoppedError as stopped:
        progress.say(f"ended by {stopped}")
        return stopped.exit_code
    except (AirflowApiError, ChildFailedError, PostgresStartError, DemoBusyError) as error:
        progress.say(f"failed: {error}")
        return 1


def rounds(services: Services, progress: Progress) -> bool:
    """Go through the rounds, up to the first in which something is not as it must be; return whether there is none."""
    there, equal = first_round(services, progress)
    if not equal:
        return False
    subscription = subscribe(services, progress)
    there, equal = second_round(services, progress, there, subscription)
    equal = equal and third_round(services, progress, there)
    return equal and judge_webhooks(services, subscription, progress) and own_round(services, progress)


def keep_running(services: Services, progress: Progress) -> None:
    """Tell a person where everything is, and stay until asked to end."""
    progress.say("everything stays up until Ctrl-C")
    print(f"  Airflow   {services.airflow.url}   user {services.airflow.username}", end="")
    print(f"   password {services.airflow.password}")
    print(f"  Postgres  {services.store}")
    print(f"  Stripe    {services.stripe.url}/v1/customers   key {KEY}")
    print(f"  Webhooks  {services.receiver.address}   (log: {services.receiver.log})")
    print(f"  Kinto     {services.kinto.url}/v1{kinto_contacts.RECORDS}", end="")
    print(f"   user {kinto_contacts.USER}   password {kinto_contacts.PASSWORD}", flush=True)
    with contextlib.suppress(StoppedError):
        while True:
            services.airflow.check()
            time.sleep(1)


class DemoBusyError(RuntimeError):
    """Another demo runs in this checkout."""


@contextlib.contextmanager
def only_one_demo() -> Iterator[None]:
    """Hold a lock that ends with the process: two demos would drop each other's databases."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoBusyError("another demo is running in this checkout; end that one first") from None
        yield


def ignore_signals() -> None:
    """Let nothing interrupt what follows."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # An exception raised in a destructor or in a library's callback is lost: raised again each second, it arrives.
    signal.signal(signal.SIGALRM, functools.partial(_raise_stopped, number))
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    raise StoppedError(number)


def _raise_stopped(number: int, alarm: int, frame: FrameType | None) -> NoReturn:
    raise StoppedError(number)


if __name__ == "__main__":
    sys.exit(main())
