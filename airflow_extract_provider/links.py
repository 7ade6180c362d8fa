"""The buttons on a task: to its cursor, and to what the docs say about its error."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, conf

from airflow_extract_provider.config import docs_url
from airflow_extract_provider.extract.cursor import cursor_key

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["CursorLink", "ErrorLink"]


class CursorLink(BaseOperatorLink):
    """Leads to the Variable that shows where the walk stands."""

    name = "Cursor"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page of the Variables, filtered; empty where the walk has none. Airflow asks when the task ends."""
        del ti_key
        shown = getattr(operator, "shown_cursor", lambda: None)()
        if shown is None:
            return ""
        base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
        return f"{base}/variables?name_pattern={quote(cursor_key(*shown))}"


class ErrorLink(BaseOperatorLink):
    """Leads to what to do about the error that has stopped the task."""

    name = "What to do"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The error in the docs; empty if there was none, or nobody has said where the docs are."""
        del ti_key
        anchor, docs = getattr(operator, "failed_with", None), docs_url()
        return f"{docs}/errors.md#{anchor}" if anchor and docs else ""
