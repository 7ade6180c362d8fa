"""Walks an object as a run of the backfill DAG asks for: by its form, or over the run's data interval."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowSkipException

from airflow_extract_provider.extract.errors import SourceError, WindowInvalidError
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.operators.arguments import count, flag
from airflow_extract_provider.operators.failing import told_in_few_lines
from airflow_extract_provider.operators.walk import WalkOperator, anew, cleared

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.pipeline import WalkName
    from airflow_extract_provider.extract.walks.window import Window

__all__ = ["FORM_WALKS", "AskedOperator", "check_fields"]

_log = logging.getLogger(__name__)

FORM_WALKS: Mapping[str, str] = {
    "backfill": "from the beginning to the end",
    "incremental": "what has changed since the last time",
    "window": "what changed between two instants",
    "rebackfill": "a sweep: everything again, deletes too",
    "by_key": "what was noted to be read by key",
}
"""What a person may choose in the form."""
_WINDOWED = ("scheduled", "backfill")
"""The types of run whose data interval is a window to read. That of a manual run means nothing."""
_FOREIGN = ("openlineage",)
"""What Airflow's own operators put beside the form's values when they trigger a run."""


class AskedOperator(WalkOperator):
    """Walks one object as the run asks for.

    A run of Airflow's *Run Backfill*, and one by the DAG's schedule, reads the window of its data interval; a run that
    somebody has triggered does what the form says. No window moves another walk's cursor. What the copy is known to be
    complete for costs nothing in a backfill, unless ``reset`` or the run is cleared, or reprocessed; a scheduled run
    reads its window in any case, as an audit, once the object's backfill has come to its end.

    An object that cannot be asked so is skipped. Parameters as
    :class:`~airflow_extract_provider.operators.walk.WalkOperator`, and

    :param chosen: which walk: `backfill`, `incremental`, `window`, `rebackfill`, `by_key`. All may be templates.
    :param window_from: where the window begins, with its zone; for `window` only.
    :param window_to: where it ends: the first instant that is not read.
    :param page_size: the most records of a page; None or nothing: as the source file says. It is never raised.
    :param max_deletes: for `rebackfill`: how many records the sweep may delete; None or nothing: as `sweep` says.
    :param trial: send the first request only, store nothing, and say what the whole would take. A boolean or its
        text.
    :param fields: what a run's `conf` may hold; None: anything. Airflow takes names that no form has, so that a
        misspelt `dry_run` would be a backfill.

    Raises SourceError: the run's `conf` holds something else, or there is no such walk.
    Raises WindowInvalidError: the window has no zone, no length, lies in the future, or is not asked for.
    """

    walk: WalkName = "backfill"
    template_fields: Sequence[str] = (
        *WalkOperator.template_fields,
        "chosen",
        "window_from",
        "window_to",
        "page_size",
        "max_deletes",
        "trial",
    )

    def __init__(
        self,
        *,
        chosen: str = "backfill",
        window_from: datetime | str | None = None,
        window_to: datetime | str | None = None,
        page_size: int | str | None = None,
        max_deletes: int | str | None = None,
        trial: bool | str = False,
        fields: Collection[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.chosen = chosen
        self.window_from = window_from
        self.window_to = window_to
        self.page_size = page_size
        self.max_deletes = max_deletes
        self.trial = trial
        self.fields = fields
        self._window: Window | None = None
        self._audits = self._again = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one slice of what is asked for, as the base class; or, as a ``trial``, say what it would take."""
        run, interval = context["dag_run"], _interval(context)
        with told_in_few_lines(self):
            check_fields(run.conf or {}, self.fields)
            if interval is None:
                self.walk = _walk(self.chosen)
                self._window = self._chosen_window()
            else:
                self.walk, self._window = "window", _window(*interval)
                self._audits = run.run_type == "scheduled"
                self._again = self._audits or cleared(context) > 0
            if flag("trial", self.trial):
                return {"dry_run": self._tried()}
        return super().execute(context)

    def runner(self, context: Context) -> tuple[str, str]:
        """A window that is cleared, or reprocessed, is read again by the same run: Airflow keeps its name."""
        (instance, label), times = super().runner(context), cleared(context)
        return (anew(instance, times) if self._window is not None and times else instance), label

    @property
    def starts_over(self) -> bool:
        """Whether it was asked to; an audit reads again what it has read, and a sweep that is asked for begins now."""
        return self._again or self.walk == "rebackfill" or super().starts_over

    def nothing_to_do(self, source: Source) -> str | None:
        """Why the API cannot be asked so for this object, or is not yet."""
        found, name = source.object(self.object), f"{source.source}/{self.object}"
        if self._audits and not self._is_filled(source):
            return f"{name} is not audited before its backfill has come to its end"
        return _impossible(self.walk, found, name)

    def given(self) -> dict[str, Any]:
        """What the chosen walk is given."""
        sweeps = self.walk == "rebackfill"
        return {"window": self._window, "max_deletes": count("max_deletes", self.max_deletes) if sweeps else None}

    def read_source(self) -> Source:
        """The source, with pages no larger than asked for."""
        source, most = super().read_source(), count("page_size", self.page_size)
        if most is None:
            return source
        smaller = source.with_page_size(self.object, max(most, 2))
        if smaller.object(self.object) == source.object(self.object):
            _log.info("%s/%s asks for no larger page: `page_size` changes nothing", source.source, self.object)
        return smaller

    def _chosen_window(self) -> Window | None:
        given = [_text(each) for each in (self.window_from, self.window_to)]
        if self.walk != "window":
            if any(given):
                raise WindowInvalidError(
                    f"the form asks for the walk `{self.walk}`, and for a window of time, which it does not read.",
                    todo="Choose the walk `window`, or empty `window_from` and `window_to`.",
                )
            return None
        if not all(given):
            raise WindowInvalidError(
                "the walk `window` needs both of its ends.", todo="Give `window_from` and `window_to`, with their zone."
            )
        window = _window(*(_instant(each) for each in given))
        window.check_past(datetime.now(timezone.utc))
        return window

    def _is_filled(self, source: Source) -> bool:
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.ledger import Ledger
        from airflow_extract_provider.hooks.store import StoreHook

        with named_errors(), StoreHook(self.store_conn_id).connect() as conn:
            head = Ledger(Settings().schema, source.source, self.object, "backfill").head(conn)
        return head is not None and head.position.complete

    def _tried(self) -> list[str]:
        """What the first request shows of the whole, said in the log too."""
        from airflow_extract_provider.extract.planning import dry_run_lines

        if not flag("selected", self.selected):
            raise AirflowSkipException(f"{self.object} is not among the objects that were selected")
        source = self.read_source()
        if why := self.nothing_to_do(source):
            raise AirflowSkipException(why)
        if self.walk == "by_key":
            raise AirflowSkipException(
                "the walk by_key asks for what was noted in the store: there is no dry run of it"
            )
        window = self._window
        with self.client(source) as client:
            since, until = (None, None) if window is None else (window.start, window.until)
            lines = dry_run_lines(source, self.object, client, self.walk, since=since, until=until)
        for line in lines:
            _log.info("%s", line)
        return lines


def check_fields(conf: Mapping[str, Any], fields: Collection[str] | None) -> None:
    """See that a run is asked for nothing that its form does not have. Raises SourceError: it is."""
    if fields is None:
        return
    if unknown := [name for name in conf if name not in (*fields, *_FOREIGN)]:
        raise SourceError(
            f"the run was asked for what its form does not have: {', '.join(map(repr, unknown))}.",
            todo=f"Trigger it again with these names only: {', '.join(fields)}.",
        )


def _impossible(walk: str, found: ApiObject, name: str) -> str | None:
    if walk == "window" and not found.windowed:
        return f"{name} cannot be asked for a time: no `since`, nor newest first"
    if walk == "incremental" and not found.incremental:
        return f"{name} cannot be asked for what has changed"
    if walk == "by_key" and found.by_key is None:
        return f"{name} has no `by_key`"
    return None


def _walk(text: str) -> WalkName:
    if text in FORM_WALKS:
        return cast("WalkName", text)
    raise SourceError(f"{text!r} is no walk.", todo=f"Choose one of: {', '.join(FORM_WALKS)}.")


def _interval(context: Context) -> tuple[datetime, datetime] | None:
    """The data interval of a run that reads a window; None: somebody has triggered it."""
    run = context["dag_run"]
    start, end = run.data_interval_start, run.data_interval_end
    if run.run_type not in _WINDOWED or start is None or end is None or start >= end:
        return None
    return start, end


def _window(start: datetime, until: datetime) -> Window:
    # Here, since a DAG file that only names the operator should not load the walks.
    from airflow_extract_provider.extract.walks.window import Window

    return Window(start, until)


def _text(value: datetime | str | None) -> str:
    """What a template has found; nothing where that is none."""
    text = value.isoformat() if isinstance(value, datetime) else str(value or "").strip()
    return "" if text == "None" else text


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        raise WindowInvalidError(
            f"{text!r} is no instant.", todo="Write it with its zone, such as 2026-03-01T00:00:00Z."
        ) from None
