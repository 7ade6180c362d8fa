"""Gives events to a function, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.operators.outbox import OutboxOperator

if TYPE_CHECKING:
    from airflow_extract_provider.extract.relay import Handler

__all__ = ["ConsumeEventsOperator"]


class ConsumeEventsOperator(OutboxOperator):
    """Calls a function with each :class:`~airflow_extract_provider.extract.events.event.Event`.

    :param handler: ``handler(event)``. A crash calls it again with the same events, whose ids are the same, so at least
        once. Whatever it raises counts as a try of that event. A call must be over within five minutes.
    :param in_transaction: call it as ``handler(event, conn)``, inside the transaction that moves the consumer's place:
        what it writes with that psycopg connection happens exactly once. It must not commit: that stops the run.

    Other parameters as :class:`~airflow_extract_provider.operators.outbox.OutboxOperator`.
    """

    shallow_copy_attrs: Sequence[str] = ("handler",)

    def __init__(self, *, handler: Callable[..., object], in_transaction: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.handler = handler
        self.in_transaction = in_transaction

    @contextmanager
    def _handler(self) -> Iterator[Handler]:
        from airflow_extract_provider.extract.relay import EachEvent, InTransaction

        yield InTransaction(self._function()) if self.in_transaction else EachEvent(self._function())

    def _function(self) -> Callable[..., object]:
        return self.handler
