"""The kinds of APIs that the hazards are tried on: how HostileApi serves them, and how a source file describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_extract_provider.testing.hostile import Listing

__all__ = ["KINDS", "Kind"]

_SINCE = {"send": "since", "until": "until", "inclusive": True, "precision": "1us"}
_LIMIT = {"send": "limit", "max": 10}
_COMMON: Mapping[str, Any] = {
    "path": "/things",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "late": "0s",
    "lookback": "0s",
}


@dataclass(frozen=True)
class Kind:
    """An API and its description. ``spec`` is the object as in a source file."""

    listing: Mapping[str, Any]
    spec: Mapping[str, Any] = field(default_factory=dict)

    def served(self, **over: Any) -> Listing:
        """The listing, with changes."""
        return Listing(**{"page_max": 10, **self.listing, **over})

    def described(self, **over: Any) -> dict[str, Any]:
        """The object, with changes."""
        return {**_COMMON, **self.spec, **over}


def _ordered(paging: str, *order: str, pages: Mapping[str, Any], since: bool = True, **spec: Any) -> Kind:
    own = paging in ("key_filter", "keyset")  # these have an order of their own
    listing: dict[str, Any] = {
        "paging": paging,
        "order": () if own else order,
        "filter": "inclusive" if since else None,
    }
    described = {"pages": pages, **({"order": list(order)} if order else {}), **({"since": _SINCE} if since else {})}
    if paging == "search":
        described["since"] = {"inclusive": True, "precision": "1us"}
    return Kind({**listing, **spec.pop("listing", {})}, {**described, **spec})


_PAGE = {"by": "page", "send": "page", "size": {"send": "per_page", "max": 10}}
_OFFSET = {"by": "offset", "send": "offset", "size": _LIMIT}
_TOKEN = {"by": "token", "take": "next", "send": "cursor", "size": _LIMIT}

KINDS: Mapping[str, Kind] = {
    "page updated": _ordered("page", "updated_at", pages=_PAGE),
    "page id": _ordered("page", "id", pages=_PAGE, since=False),
    "page newest": _ordered("page", "-updated_at", pages=_PAGE, since=False),
    "page unordered": _ordered("page", pages=_PAGE),
    "offset updated": _ordered("offset", "updated_at", pages=_OFFSET),
    "offset id": _ordered("offset", "id", pages=_OFFSET, since=False),
    "offset created falling": _ordered("offset", "-created_at", pages=_OFFSET, since=False),
    "token updated": _ordered("token", "updated_at", pages=_TOKEN),
    "token unordered": _ordered("token", pages=_TOKEN),
    "token in disguise": _ordered(
        "token", "updated_at", pages={**_TOKEN, "stable": False}, listing={"token_kind": "offset"}
    ),
    "header token": _ordered(
        "header_token", "updated_at", pages={"by": "token", "header": "Next-Page", "send": "cursor", "size": _LIMIT}
    ),
    "next link": _ordered("next_link", "updated_at", pages={"by": "next_link", "take": "next", "stable": True}),
    "next link by number": _ordered(
        "next_link", "updated_at", pages={"by": "next_link", "take": "next"}, listing={"token_kind": "offset"}
    ),
    "link header": _ordered(
        "link_header", "updated_at", pages={"by": "link_header", "size": {"send": "per_page", "max": 10}}
    ),
    "page without size": _ordered(
        "page", "updated_at", pages={"by": "page", "send": "page"}, listing={"page_default": 10}
    ),
    "page alone": _ordered("page", pages={"by": "page", "send": "page"}, since=False, listing={"page_default": 10}),
    "link newest": _ordered(
        "link_header", "-updated_at", since=False, pages={"by": "link_header", "size": {"send": "per_page", "max": 10}}
    ),
    "last key": _ordered(
        "last_key",
        "-created_at",
        since=False,
        pages={"by": "last_key", "send": "starting_after", "more": "has_more", "size": _LIMIT},
        listing={"size_param": "limit", "more": True},
    ),
    "key filter": _ordered("key_filter", "id", pages={"by": "key", "send": "id_gt", "size": _LIMIT}),
    "position": _ordered(
        "keyset",
        "updated_at",
        "id",
        since=False,
        pages={"by": "position", "size": _LIMIT},
        params={"after_updated": "{{ after.version }}", "after_id": "{{ after.key or 0 }}"},
    ),
    "search": _ordered(
        "search",
        pages={"by": "token", "take": "paging.next.after", "last": "absent", "size": {"max": 10}, "cap": 30},
        method="POST",
        body='{"since": "{{ since | iso }}", "until": "{{ until | iso }}", '
        '"limit": {{ size }}, "after": {{ token | json }}}',
        records="results",
        total="total",
        listing={"cap": 30},
    ),
    "since only": _ordered("since", "updated_at", pages={"by": "since", "size": _LIMIT}),
    "single": _ordered("single", pages={"by": "single"}, since=False),
}
