"""What Airflow learns about this package. It reads this in each of its processes: nothing is imported here."""

from __future__ import annotations

from typing import Any

__all__ = ["get_provider_info"]


def get_provider_info() -> dict[str, Any]:
    """The provider's description: one literal, so that what Airflow shows can be read here."""
    return {
        "package-name": "airflow-extract-provider",
        "name": "Extract",
        "description": "Copies REST APIs into Postgres, without ever losing a record, and turns changes into events.",
        "integrations": [
            {
                "integration-name": "REST API",
                "external-doc-url": "https://www.rfc-editor.org/rfc/rfc9110",
                "tags": ["protocol"],
            },
            {
                "integration-name": "Outbox",
                "external-doc-url": "https://cloudevents.io",
                "tags": ["software"],
            },
        ],
        "hooks": [
            {
                "integration-name": "REST API",
                "python-modules": [
                    "airflow_extract_provider.hooks.api",
                    "airflow_extract_provider.hooks.store",
                ],
            },
            {
                "integration-name": "Outbox",
                "python-modules": [
                    "airflow_extract_provider.hooks.kafka",
                    "airflow_extract_provider.hooks.store_async",
                ],
            },
        ],
        "operators": [
            {
                "integration-name": "REST API",
                "python-modules": [
                    "airflow_extract_provider.operators.backfill",
                    "airflow_extract_provider.operators.by_key",
                    "airflow_extract_provider.operators.incremental",
                ],
            },
            {
                "integration-name": "Outbox",
                "python-modules": [
                    "airflow_extract_provider.operators.consume",
                    "airflow_extract_provider.operators.relay",
                ],
            },
        ],
        "triggers": [
            {
                "integration-name": "Outbox",
                "python-modules": ["airflow_extract_provider.triggers.outbox"],
            },
        ],
        "task-decorators": [
            {
                "name": "consume_events",
                "class-name": "airflow_extract_provider.decorators.consume_events.consume_events_task",
            },
        ],
        "asset-uris": [
            {
                "schemes": ["extract"],
                "handler": "airflow_extract_provider.assets.checked_uri",
                "factory": "airflow_extract_provider.assets.asset_of",
            },
        ],
        "connection-types": [
            {
                "connection-type": "rest_api",
                "hook-class-name": "airflow_extract_provider.hooks.api.RestApiHook",
                "hook-name": "REST API",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "port"],
                    "relabeling": {
                        "host": "Base URL",
                        "login": "User name (for basic)",
                        "password": "Token, password or header value",
                    },
                    "placeholders": {
                        "host": "https://api.example.com",
                        "extra": '{"verify": "/path/to/ca.pem", "proxies": {"https": "http://proxy:3128"}}',
                    },
                },
                "conn-fields": {
                    "auth": {
                        "label": "Login by",
                        "description": "bearer: the token in the header Authorization; basic: user name and password; "
                        "header: a header of its own; none: no login.",
                        "schema": {
                            "type": "string",
                            "enum": ["bearer", "basic", "header", "none"],
                            "default": "bearer",
                        },
                    },
                    "header_name": {
                        "label": "Header name (for header)",
                        "description": "The header that carries the secret, such as X-Api-Key.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "connect_timeout": {
                        "label": "Seconds to connect",
                        "description": "10 when empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "timeout": {
                        "label": "Seconds without an answer",
                        "description": "The longest silence of the API during a request; 60 when empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "test_path": {
                        "label": "Path to test with",
                        "description": "A cheap path below the base URL that needs the login, such as /v1/account.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            },
        ],
        "cli": ["airflow_extract_provider.cli.get_extract_cli_commands"],
    }
