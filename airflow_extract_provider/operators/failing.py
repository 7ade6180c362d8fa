"""How an error of the engine ends a task: a few lines in the log, and a retry only where one can help."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_extract_provider.extract.errors import ConnectionMissingError, ExtractError, FixConfig, StopAndLook

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

__all__ = ["RetryWhatMayPass", "TaskFailed", "told_in_few_lines"]


_log = logging.getLogger(__name__)


class TaskFailed(SystemExit):
    """An error of the engine that has been told in the log already.

    Airflow writes a traceback under every exception but this kind, which it takes for an ordinary failure: retries,
    callbacks and listeners get it as the exception, with the engine's own error in ``error``.
    """

    def __init__(self, error: ExtractError) -> None:
        super().__init__(type(error).__name__)
        self.error = error

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[ExtractError]]:
        # Listeners may move it to another process; the default would make it anew from the exit code.
        return TaskFailed, (self.error,)


class RetryWhatMayPass(RetryPolicy):
    """Fails at once where a person has to act first; everything else is retried as the task says.

    A missing connection is retried: Airflow says the same when its API server does not answer.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - Airflow's signature
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Fail on FixConfig and StopAndLook errors (FencedError is one of these)."""
        error = exception.error if isinstance(exception, TaskFailed) else exception
        if isinstance(error, ConnectionMissingError):
            return RetryDecision.default()
        if isinstance(error, FixConfig):
            return RetryDecision.fail("no retry: something has to be corrected first")
        if isinstance(error, StopAndLook):
            return RetryDecision.fail("no retry: somebody has to look first")
        return RetryDecision.default()


@contextmanager
def told_in_few_lines(operator: BaseOperator | None = None) -> Iterator[None]:
    """Log an error of the engine as its own lines and raise TaskFailed; with debug logging the error itself goes on,
    and Airflow shows its traceback. The operator's link finds the error in its attribute ``failed_with``."""
    try:
        yield
    except ExtractError as exc:
        if operator is not None:
            operator.failed_with = exc.anchor
        if _log.isEnabledFor(logging.DEBUG):
            raise
        _log.error("%s: %s", type(exc).__name__, exc)
        raise TaskFailed(exc) from None
