"""What is stored of a login, and what that means now."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

__all__ = ["TokenRow"]

_AFTER_A_REFUSAL = timedelta(hours=1)
"""After which a refresh token that was refused, and was certainly not spent, is tried again. Some refusals pass, that
of an account which was locked by mistake for one."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row of `oauth_token`, as it was at ``now``; all times are aware, of Postgres's clock.

    ``spending`` is the note of who spends the refresh token, ``since`` and ``until`` are its times. ``refusal`` is what
    the token endpoint, which is left alone until ``not_before``, has told somebody; with ``leaves_slot`` a task leaves
    its slot meanwhile.
    """

    salt: bytes
    seed: bytes
    former: list[bytes]
    access: bytes | None = field(repr=False)
    refresh: bytes = field(repr=False)
    expires_at: datetime | None
    renew_at: datetime | None
    number: int
    spending: str | None
    since: datetime | None
    until: datetime | None
    lost_at: datetime | None
    not_before: datetime | None
    refusal: str | None
    leaves_slot: bool | None
    now: datetime

    @property
    def is_over(self) -> bool:
        """Whether who has written the note has certainly ended."""
        return self.until is None or self.now >= self.until

    @property
    def is_lost(self) -> bool:
        """Whether the refresh token is useless. One that was spent stays so."""
        if self.lost_at is None:
            return False
        return self.spending is not None or self.now < self.lost_at + _AFTER_A_REFUSAL

    @property
    def is_put_off(self) -> bool:
        """Whether the token endpoint is left alone for now."""
        return self.not_before is not None and self.now < self.not_before

    @property
    def is_usable(self) -> bool:
        """Whether the access token may go out: it is not due, or, where it cannot be renewed now, not at its end."""
        if self.access is None or self.spending is not None or self.lost_at is not None:
            return False
        if self.renew_at is None or self.now < self.renew_at:
            return True
        return self.is_put_off and self.expires_at is not None and self.now < self.expires_at
