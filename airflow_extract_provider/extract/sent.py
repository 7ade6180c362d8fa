"""What a source file may send with its requests: headers and parameters, but no login.

A source file is read by everyone who reads the DAGs, and what it sends may be shown; the Airflow connection is where
secrets are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field

from airflow_extract_provider.extract.paging import Text

__all__ = ["PathWithoutLogin", "Sent"]

_LOGIN = re.compile(
    r"(?i)(proxy-)?authorization|cookie|([\w-]*[-_])?(api[-_]?key|(access|auth|private|refresh)[-_]?token|"
    r"(client[-_]?)?secret|passw(or)?d|x-token)"
)
"""Names that carry logins, as vendors call them: `X-Api-Key`, `X-Shopify-Access-Token`, GitLab's `PRIVATE-TOKEN`."""


def _no_login(sent: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in sent.items():
        # A template's value is the walk's, such as a page token.
        if _LOGIN.fullmatch(name.strip()) and "{{" not in value:
            raise ValueError(f"`{name}` is a login: enter it in the connection, where it is kept secret")
    return sent


def _path_without_login(path: str) -> str:
    _no_login(dict(parse_qsl(urlsplit(path).query)))
    return path


Sent: TypeAlias = Annotated[Mapping[str, Text], AfterValidator(_no_login)]
"""Headers or parameters by name."""

PathWithoutLogin: TypeAlias = Annotated[str, Field(pattern=r"^/\S.*$|^/$"), AfterValidator(_path_without_login)]
