"""How an API signs its webhooks: one small spec, and the schemes of vendors in its words. To add one, add it here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from airflow_extract_provider.extract.paging import Duration, Frozen

__all__ = ["SCHEMES", "Scheme", "Verify"]


class Scheme(Frozen):
    """How a signature is made and where it stands."""

    header: str = Field(min_length=1, description="the header that holds the signature")
    algorithm: Literal["sha256", "sha1", "sha512", "ed25519", "token", "basic"] = Field(
        default="sha256", description="HMAC with this hash, ed25519, or a token or login that is sent as it is"
    )
    tolerance: Duration = Field(default=timedelta(minutes=5), description="how old a signature may be")


SCHEMES: Mapping[str, Scheme] = {
    "github": Scheme(header="X-Hub-Signature-256"),
}
"""What vendors document, by name."""


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in SCHEMES:
        raise ValueError(f"{value!r} is no scheme: known are {', '.join(sorted(SCHEMES))}; or write its parts")
    return SCHEMES[value]


Verify: TypeAlias = Annotated[Scheme, BeforeValidator(_named, json_schema_input_type=str | Scheme)]
