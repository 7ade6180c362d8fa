"""Waits for webhooks that are to be applied."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue, RetryPolicy, conf

from airflow_extract_provider import config
from airflow_extract_provider.links import ErrorLink
from airflow_extract_provider.operators.arguments import interval, named
from airflow_extract_provider.operators.failing import RetryWhatMayPass, told_in_few_lines
from airflow_extract_provider.operators.instance import TRIGGERER_MISSING

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["InboxSensor"]

_log = logging.getLogger(__name__)

_RETRY_WHAT_MAY_PASS = RetryWhatMayPass()


class InboxSensor(BaseSensorOperator):
    """Succeeds when webhooks of a source wait to be applied, at once if they do already; and after ``wait`` in any
    case, so that what stands behind it runs now and then, whether or not anything was heard of.

    The result in XCom tells whether something waits: ``{"source": "crm", "waiting": true}``.

    :param source: the source's name.
    :param endpoints: only webhooks that came to these addresses of it, those that its file describes; None: to any.
    :param wait: how long to wait at most, as a timedelta or in seconds.
    :param store_conn_id: the Postgres connection of the store; None: as Airflow's ``[extract] store_conn_id`` says.
    :param deferrable: wait in the triggerer, which takes no slot and knows of a webhook at once; else look every
        ``poke_interval``. By default as Airflow's ``[operators] default_deferrable`` says.
    :param mode: how to wait without the triggerer: `reschedule`, or `poke`, which keeps the slot.
    :param poke_interval: the time between two looks then.
    :param retry_policy: which errors are retried; by default none that a person has to act upon first.
    """

    template_fields: Sequence[str] = ("source", "wait", "store_conn_id")
    ui_color = "#f9f0e2"
    operator_extra_links = (ErrorLink(),)

    def __init__(
        self,
        *,
        source: str,
        endpoints: Sequence[str] | None = None,
        wait: timedelta | float | str = timedelta(minutes=5),
        store_conn_id: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        mode: str = "reschedule",
        poke_interval: timedelta | float = 30,
        retry_policy: RetryPolicy | None = _RETRY_WHAT_MAY_PASS,
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, poke_interval=poke_interval, retry_policy=retry_policy, **kwargs)
        self.source = source
        self.endpoints = endpoints
        self.wait = wait
        self.store_conn_id = store_conn_id or config.store_conn_id()
        self.deferrable = deferrable
        self._until: datetime | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Look, and wait if there is nothing.

        Raises TaskDeferred: it waits in the triggerer. Raises AirflowRescheduleException: it looks again later.
        """
        with told_in_few_lines(self):
            named("source", self.source)
            wait = interval("wait", self.wait, least=timedelta())
            began = context["ti"].get_first_reschedule_date(context) or datetime.now(timezone.utc)
            self._until = began + wait
            found: dict[str, Any] | None = super().execute(context) if not self.deferrable else self._looked()
            if found is None:
                self._defer(self._until)
            return found

    def poke(self, context: Context) -> PokeReturnValue:
        """Whether something waits, or the time is over. Airflow's own `timeout`, which fails the task, is far off."""
        del context
        found = self._looked()
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def execute_after_waiting(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """The trigger has fired."""
        del context
        return self._told(waiting=bool(event["waiting"]))

    def _looked(self) -> dict[str, Any] | None:
        """What there is to tell; None: nothing waits, and there is time left."""
        # Here, since a DAG file that only names the sensor should not load drivers.
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.claims import waiting
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.hooks.store import StoreHook

        over = self._until is not None and datetime.now(timezone.utc) >= self._until
        with named_errors(), StoreHook(self.store_conn_id).connect() as conn:
            found, _ = waiting(conn, Settings().schema, self.source, self.endpoints)
        return self._told(waiting=found) if found or over else None

    def _told(self, *, waiting: bool) -> dict[str, Any]:
        _log.info("%s webhooks   %s", self.source, "some wait" if waiting else "none waits; the time is over")
        return {"source": self.source, "waiting": waiting}

    def _defer(self, until: datetime) -> NoReturn:
        from airflow_extract_provider.triggers.inbox import InboxTrigger

        self.defer(
            trigger=InboxTrigger(
                source=self.source,
                endpoints=self.endpoints,
                store_conn_id=self.store_conn_id,
                until=until.isoformat(),
            ),
            method_name=self.execute_after_waiting.__name__,
            timeout=until - datetime.now(timezone.utc) + TRIGGERER_MISSING,
        )
