"""``@task.consume_events``: the decorated function is given the events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import get_unique_task_id, task_decorator_factory

from airflow_extract_provider.operators.consume import ConsumeEventsOperator

if TYPE_CHECKING:
    from airflow.sdk.bases.decorator import TaskDecorator

__all__ = ["consume_events_task"]


class DecoratedConsumeEventsOperator(ConsumeEventsOperator):
    """A function as the handler. What the function is called with in the DAG is given to it after the event, and after
    the connection where there is one; it may hold templates and results of other tasks."""

    template_fields: Sequence[str] = (*ConsumeEventsOperator.template_fields, "op_args", "op_kwargs")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    shallow_copy_attrs: Sequence[str] = ("handler", "python_callable")
    custom_operator_name = "@task.consume_events"

    def __init__(
        self,
        *,
        task_id: str,
        python_callable: Callable[..., object],
        op_args: Sequence[Any] = (),
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        task_id = get_unique_task_id(task_id, kwargs.get("dag"), kwargs.get("task_group"))
        super().__init__(task_id=task_id, handler=python_callable, **kwargs)
        self.python_callable = python_callable
        self.op_args = op_args
        self.op_kwargs = op_kwargs

    def _function(self) -> Callable[..., object]:
        return lambda *given: self.handler(*given, *self.op_args, **(self.op_kwargs or {}))


def consume_events_task(
    python_callable: Callable[..., object] | None = None, *, multiple_outputs: bool = False, **kwargs: Any
) -> TaskDecorator:
    """Make a function the handler of a consumer's events::

        @task.consume_events(consumer="mail", source="crm", types=["contacts.created"])
        def send(event): ...

        send()

    Parameters as :class:`~airflow_extract_provider.operators.consume.ConsumeEventsOperator`, but for ``handler``.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=DecoratedConsumeEventsOperator,
        **kwargs,
    )
