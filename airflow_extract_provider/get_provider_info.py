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
            {
                "integration-name": "Webhook",
                "external-doc-url": "https://www.standardwebhooks.com",
                "tags": ["protocol"],
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
            {
                "integration-name": "Webhook",
                "python-modules": ["airflow_extract_provider.hooks.webhook"],
            },
        ],
        "operators": [
            {
                "integration-name": "REST API",
                "python-modules": [
                    "airflow_extract_provider.operators.backfill",
                    "airflow_extract_provider.operators.by_key",
                    "airflow_extract_provider.operators.incremental",
                    "airflow_extract_provider.operators.rebackfill",
                ],
            },
            {
                "integration-name": "Outbox",
                "python-modules": [
                    "airflow_extract_provider.operators.consume",
                    "airflow_extract_provider.operators.relay",
                ],
            },
            {
                "integration-name": "Webhook",
                "python-modules": ["airflow_extract_provider.operators.apply_inbox"],
            },
        ],
        "sensors": [
            {
                "integration-name": "Webhook",
                "python-modules": ["airflow_extract_provider.sensors.inbox"],
            },
        ],
        "triggers": [
            {
                "integration-name": "Outbox",
                "python-modules": ["airflow_extract_provider.triggers.outbox"],
            },
            {
                "integration-name": "Webhook",
                "python-modules": ["airflow_extract_provider.triggers.inbox"],
            },
        ],
        "extra-links": [
            "airflow_extract_provider.links.CursorLink",
            "airflow_extract_provider.links.ErrorLink",
        ],
        "config": {
            "extract": {
                "description": "What holds for all sources.",
                "options": {
                    "sources": {
                        "description": "The folder with the sources' YAML files, from which `dags/extract.py` makes "
                        "its DAGs. A relative path counts from that file. The environment variable EXTRACT_SOURCES "
                        "comes first.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/opt/airflow/sources",
                        "default": "sources",
                    },
                    "store_conn_id": {
                        "description": "The Postgres connection of the copy and its bookkeeping, for operators and "
                        "commands that are given none. Read when a DAG is parsed.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": None,
                        "default": "extract_store",
                    },
                    "run_for": {
                        "description": "How many seconds a walk works at a time before its task leaves the slot to "
                        "others, for operators that are given no `run_for`. Read when a DAG is parsed.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "600",
                        "default": "1800",
                    },
                    "docs_url": {
                        "description": "Where docs/ of this package can be read: the button *What to do* of a failed "
                        "task leads to errors.md there. Without it there is no such button.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://git.example.com/airflow-extract-provider/docs",
                        "default": "",
                    },
                    "receiver_in_api_server": {
                        "description": "Whether Airflow's API server receives webhooks too, below /extract-webhooks. "
                        "The receiver as a process of its own is quicker, stands apart from the UI, and bears more. "
                        "Read when the API server starts.",
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": "True",
                        "default": "False",
                    },
                    "receiver_public_url": {
                        "description": "The address of the API server as those know it who send webhooks, such as "
                        "https://airflow.example.com. Only for APIs that sign the address, and with "
                        "`receiver_in_api_server`.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "https://airflow.example.com",
                        "default": "",
                    },
                },
            },
        },
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
                        "login": "User name or client id",
                        "password": "Token, password, key or client secret",
                    },
                    "placeholders": {
                        "host": "https://api.example.com",
                        "login": "for basic, client_credentials, refresh_token",
                        "extra": '{"cert": ["/path/to/client.pem", "/path/to/client.key"]}',
                    },
                },
                "conn-fields": {
                    "auth": {
                        "label": "Login by",
                        "description": "bearer: the token in the header Authorization; basic: user name and password; "
                        "header, parameter: a key in a header or query parameter of its own; client_credentials, "
                        "refresh_token: OAuth 2.0; none: no login.",
                        "schema": {
                            "type": "string",
                            "enum": [
                                "bearer",
                                "basic",
                                "header",
                                "parameter",
                                "client_credentials",
                                "refresh_token",
                                "none",
                            ],
                            "default": "bearer",
                        },
                    },
                    "header_name": {
                        "label": "Header name (for header)",
                        "description": "The header that carries the key, such as X-Api-Key.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "parameter_name": {
                        "label": "Parameter name (for parameter)",
                        "description": "The query parameter that carries the key, such as api_key.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "headers": {
                        "label": "Secret headers beside the login",
                        "description": 'As JSON: {"Ocp-Apim-Subscription-Key": "..."}. Headers that are no secret, '
                        "such as a version of the API, belong in the source file.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                    "token_url": {
                        "label": "Token URL (OAuth 2.0)",
                        "description": "The vendor's endpoint for tokens, such as https://login.example.com/token.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "refresh_token": {
                        "label": "Refresh token (for refresh_token)",
                        "description": "What the vendor shows when somebody logs in. It only begins: its successors "
                        "are kept, encrypted, in the store. Enter a new one to log in anew.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                    "scope": {
                        "label": "Scope (OAuth 2.0)",
                        "description": "What the token may be used for, as the vendor names it; mostly empty.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "token_parameters": {
                        "label": "Token parameters (OAuth 2.0)",
                        "description": "What else the token URL wants, such as audience=https://api.example.com.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "client_auth": {
                        "label": "Client id and secret go (OAuth 2.0)",
                        "description": "basic: in a header, as the standard wants; body: in the form.",
                        "schema": {"type": "string", "enum": ["basic", "body"], "default": "basic"},
                    },
                    "verify": {
                        "label": "Trusted authorities",
                        "description": "A file or folder of certificates; false trusts everybody. When empty, those "
                        "that come with Python's certifi.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "proxies": {
                        "label": "Proxy",
                        "description": "Its URL, such as http://proxy:3128, with a login if it wants one.",
                        "schema": {"type": ["string", "null"], "format": "password"},
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
                    "total_timeout": {
                        "label": "Seconds for a whole answer",
                        "description": "From the request to its last byte; 300 when empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "max_size": {
                        "label": "Largest answer, in MiB",
                        "description": "Unpacked; 100 when empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "test_path": {
                        "label": "Path to test with",
                        "description": "A cheap path below the base URL that needs the login, such as /v1/account.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            },
            {
                "connection-type": "webhook",
                "hook-class-name": "airflow_extract_provider.hooks.webhook.WebhookHook",
                "hook-name": "Webhook",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "port"],
                    "relabeling": {
                        "login": "User name",
                        "password": "Secret",
                    },
                    "placeholders": {
                        "login": "for basic only",
                        "password": "the one that signs now, as the API shows it",
                    },
                },
                "conn-fields": {
                    "previous": {
                        "label": "Secrets that are still accepted",
                        "description": "While a secret is changed: the one before, or several as a JSON list; of basic "
                        "each as user:password. Empty it when the API signs by the new one alone.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                },
            },
        ],
        "cli": ["airflow_extract_provider.cli.get_extract_cli_commands"],
    }
