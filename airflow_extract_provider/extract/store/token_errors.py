"""What is said where a login's tokens cannot be had."""

from __future__ import annotations

from datetime import timezone

from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    ExtractError,
    QuotaSpentError,
    StoreUnavailableError,
    TokenLostError,
)
from airflow_extract_provider.extract.store.token_row import TokenRow

__all__ = ["lost", "outdated", "put_off", "undecipherable", "under_way"]

_KEPT = "everything that was committed."


def lost(connection: str, row: TokenRow | None) -> TokenLostError:
    """The refresh token is useless. ``row`` tells of a note that its writer did not clear away; without one the token
    was simply refused."""
    since = row.since if row and row.spending is not None else None
    if since is None:
        what = f"the API does not accept the refresh token of the connection {connection!r} any more."
    else:
        when = f"{since.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        what = (
            f"the refresh token of the connection {connection!r} was spent at {when} by a run that ended before it "
            "could store what it got for it."
        )
    return TokenLostError(what, kept=_KEPT, todo=f"Log in anew at the vendor, and put the new {_seed(connection)}")


def undecipherable(connection: str) -> TokenLostError:
    """The key to what is stored has changed."""
    return TokenLostError(
        f"the stored tokens of the connection {connection!r} cannot be decrypted: its client secret has changed.",
        kept=_KEPT,
        todo=f"Log in anew at the vendor, and put the new {_seed(connection)}",
    )


def outdated(connection: str) -> ApiUnavailableError:
    """Somebody has logged in anew while this run had the connection as it was before. The next try reads it anew."""
    return ApiUnavailableError(
        f"the refresh token that this run has from the connection {connection!r} was replaced by a newer one.",
        kept=_KEPT,
        todo="If the connection holds the newer one, only run again. If not, log in anew at the vendor, and put a new "
        + _seed(connection),
    )


def under_way(connection: str, row: TokenRow) -> StoreUnavailableError:
    """Somebody may have spent the refresh token, and may still come with what was given for it."""
    assert row.until is not None, "a note has a time"
    until = row.until.astimezone(timezone.utc)
    return StoreUnavailableError(
        f"a renewal of the tokens of the connection {connection!r} is under way, or its process has died.",
        kept=_KEPT,
        todo=f"Run again after {until:%H:%M:%S} UTC: from then on the refresh token is tried once more.",
        until=until,
    )


def put_off(row: TokenRow) -> ExtractError:
    """What the token endpoint, which is left alone for now, has said to somebody."""
    assert row.not_before is not None, "asked for only then"
    until = row.not_before.astimezone(timezone.utc)
    kind = QuotaSpentError if row.leaves_slot else ApiUnavailableError
    return kind(
        row.refusal or "the token endpoint gives no token.",
        kept=_KEPT,
        todo=f"Run again after {until:%H:%M:%S} UTC: until then no task asks it again.",
        until=until,
    )


def _seed(connection: str) -> str:
    return (
        f"refresh token into the field `refresh_token` of the connection {connection!r}; the next run starts from it."
    )
