"""Every error of the engine, cut by what to do next.

::

    ExtractError
    ├── TryAgain                     nothing is wrong with the config; the same run may succeed later
    │   ├── ApiUnavailableError      no answer, or 408 / 429 / 5xx, after the retries
    │   ├── QuotaSpentError          the API grants no request for longer than a task waits
    │   ├── StoreUnavailableError    Postgres cannot be reached, or went away
    │   ├── CursorUnreadableError    the cursor cannot be read now; that is not the same as "there is none"
    │   ├── BackfillFirstError       the incremental walk begins where the backfill has ended
    │   ├── EventsUnreadError        consumers have not handled what was told under a name that is to be changed
    │   ├── SinkUnavailableError     where events are published does not acknowledge them
    │   └── WalkBusyError            another run holds the walk
    ├── FixConfig                    a person has to change a file, a connection or a right
    │   ├── SourceError              the source file
    │   ├── ConnectionMissingError   the Airflow connection
    │   ├── LoginError               401, 403
    │   ├── TokenLostError           a refresh token was spent, and what was given for it is lost
    │   ├── CertificateError         the API's certificate is not trusted
    │   ├── AnswerTooLargeError      an answer above the connection's bound
    │   ├── RequestRefusedError      404 and every other refusal of the request itself
    │   ├── RecordsPathError         `records` selects no list
    │   ├── SchemaMissingError       `airflow extract migrate` has not been run, or not by this version
    │   ├── StoreRightsError         the role may not do what is needed
    │   ├── InboxFilteredError       something on the inbox keeps webhooks out of it, without a word
    │   ├── CursorInvalidError       the cursor was edited into something that is no cursor
    │   ├── CursorAheadError         the cursor was edited to a place that was never reached
    │   ├── CursorShadowedError      something hides the cursor Variable: it would never move
    │   ├── WindowInvalidError       a window of time that says nothing, or reaches into the future
    │   ├── PositionMismatchError    the position in the ledger was made under another `pages`
    │   ├── LeftBehindError          an object, its table or its source was renamed: the old copy would stay behind
    │   ├── FoldError                the table that fields are folded into lacks a row or column, or refuses a value
    │   └── SinkRefusedError         where events are published must be set up, or allow it, first
    └── StopAndLook                  the API or another run did something that cannot be passed without losing records
        ├── WrongAnswerError         status 200, but no answer: HTML, an empty body, an error object
        ├── BadRecordError           a record without its key, or one Postgres cannot hold
        ├── DoubledKeyError          two different records with one key on one page
        ├── RepeatedPageError        the same page or token again
        ├── TiedPageError            more records of one instant than a page holds, and nothing to tell them apart by
        ├── MovingListError          a list without order keeps changing while it is read
        ├── ShortOfTotalError        the list ends before the total that the API gives
        ├── TooManyDeletesError      a sweep has not seen more records than it may delete
        ├── AnchorLostError          the records the walk stood at keep disappearing
        ├── TokenExpiredError        the API no longer knows the page token
        ├── UnorderedStreamError     the API broke the order it promises
        ├── DetectorError            a detector of the user's failed on a change
        ├── EventRefusedError        an event that will never be taken where it is published
        ├── EventRepeatedError       an event with this id is in the outbox already
        └── FencedError              another run has taken the walk over; never retried

A message says what happened, where, what was kept, what to do. It never holds a secret or a field of a record that was
read; keys it does, and the API's own words where it sends no page: neither if `private`. Attributes are for programs.
"""

from __future__ import annotations

from airflow_extract_provider.extract.error import ExtractError, FixConfig, StopAndLook, TryAgain

__all__ = [
    "AnchorLostError",
    "AnswerTooLargeError",
    "ApiUnavailableError",
    "BackfillFirstError",
    "BadRecordError",
    "CertificateError",
    "ConnectionMissingError",
    "CursorAheadError",
    "CursorInvalidError",
    "CursorShadowedError",
    "CursorUnreadableError",
    "DetectorError",
    "DoubledKeyError",
    "EventRefusedError",
    "EventRepeatedError",
    "EventsUnreadError",
    "ExtractError",
    "FencedError",
    "FixConfig",
    "FoldError",
    "InboxFilteredError",
    "LeftBehindError",
    "LoginError",
    "MovingListError",
    "PositionMismatchError",
    "QuotaSpentError",
    "RecordsPathError",
    "RepeatedPageError",
    "RequestRefusedError",
    "SchemaMissingError",
    "ShortOfTotalError",
    "SinkRefusedError",
    "SinkUnavailableError",
    "SourceError",
    "StopAndLook",
    "StoreRightsError",
    "StoreUnavailableError",
    "TiedPageError",
    "TokenExpiredError",
    "TokenLostError",
    "TooManyDeletesError",
    "TryAgain",
    "UnorderedStreamError",
    "WalkBusyError",
    "WindowInvalidError",
    "WrongAnswerError",
]


class ApiUnavailableError(TryAgain):
    """The API gave no usable answer after the retries: no connection, a timeout, 408, 429 or 5xx."""

    anchor = "api-unavailable"


class QuotaSpentError(TryAgain):
    """The API, or the declared limit, grants no request before ``until``, which is longer than a task waits."""

    anchor = "quota-spent"


class StoreUnavailableError(TryAgain):
    """Postgres cannot be reached, or the connection was lost; what was not committed will be done again."""

    anchor = "store-unavailable"


class CursorUnreadableError(TryAgain):
    """The cursor Variable may exist but cannot be read now. Starting over on that would be a guess."""

    anchor = "cursor-unreadable"


class WalkBusyError(TryAgain):
    """Another live run holds the fence of this walk."""

    anchor = "walk-busy"


class BackfillFirstError(TryAgain):
    """The incremental walk begins at what the backfill has made complete, and that has not come to its end."""

    anchor = "backfill-first"


class EventsUnreadError(TryAgain):
    """Consumers have not handled all events that were told under a name which is to be changed."""

    anchor = "events-unread"


class SinkUnavailableError(TryAgain):
    """Where events are published did not acknowledge them in time; the records were rolled back."""

    anchor = "sink-unavailable"


class SourceError(FixConfig):
    """A source file says something that cannot be understood, or leaves out what must be declared."""

    anchor = "source"


class ConnectionMissingError(FixConfig):
    """The Airflow connection is missing or lacks what is needed."""

    anchor = "connection-missing"


class LoginError(FixConfig):
    """The API refused the credentials (401) or their rights (403)."""

    anchor = "login"


class TokenLostError(FixConfig):
    """The refresh token is spent and its successor is not known: a person has to log in again and seed a new one."""

    anchor = "token-lost"


class CertificateError(FixConfig):
    """The certificate that the API shows is not trusted here."""

    anchor = "certificate"


class AnswerTooLargeError(FixConfig):
    """The API's answer is larger than the connection allows."""

    anchor = "answer-too-large"


class RequestRefusedError(FixConfig):
    """The API refused the request itself: 404 and the other 4xx, or a redirect."""

    anchor = "request-refused"


class RecordsPathError(FixConfig):
    """`records` selects no list in the answer."""

    anchor = "records-path"


class SchemaMissingError(FixConfig):
    """The bookkeeping schema or a record table is missing or older than this version."""

    anchor = "schema-missing"


class StoreRightsError(FixConfig):
    """Postgres refused a statement for lack of rights."""

    anchor = "store-rights"


class InboxFilteredError(FixConfig):
    """Postgres did not store a webhook, and told no error: a trigger, a rule or a policy kept it out of the inbox."""

    anchor = "inbox-filtered"


class CursorInvalidError(FixConfig):
    """The cursor Variable holds something that is no cursor."""

    anchor = "cursor-invalid"


class CursorAheadError(FixConfig):
    """The cursor Variable names a place that this walk has not reached; following it would skip records."""

    anchor = "cursor-ahead"


class CursorShadowedError(FixConfig):
    """Another definition (an environment variable, a secrets backend) hides the cursor Variable."""

    anchor = "cursor-shadowed"


class WindowInvalidError(FixConfig):
    """A window of time to be read that has no zone, no length, or reaches into the future."""

    anchor = "window-invalid"


class PositionMismatchError(FixConfig):
    """The ledger's position was made under another way of paging."""

    anchor = "position-mismatch"


class LeftBehindError(FixConfig):
    """What the source files say now would leave stored records behind, under a name that they say no more."""

    anchor = "left-behind"


class FoldError(FixConfig):
    """The table that fields are folded into has no such row or column, or refuses a value."""

    anchor = "fold"


class SinkRefusedError(FixConfig):
    """Where events are published, something must be set up or allowed first: a topic, a login, a right."""

    anchor = "sink-refused"


class WrongAnswerError(StopAndLook):
    """The status says success, the body does not."""

    anchor = "wrong-answer"


class BadRecordError(StopAndLook):
    """A record has no usable key, an unreadable version, or a value that `jsonb` cannot hold."""

    anchor = "bad-record"


class DoubledKeyError(StopAndLook):
    """One page holds two different records under one key, and no version tells which is newer."""

    anchor = "doubled-key"


class RepeatedPageError(StopAndLook):
    """The API sent a page or token again, or a page without anything new though it says there is more."""

    anchor = "repeated-page"


class TiedPageError(StopAndLook):
    """More records share one instant than a page holds, and the API offers nothing to read past the first of them."""

    anchor = "tied-page"


class MovingListError(StopAndLook):
    """A list without order or overlap changed in every reading: no two agreed."""

    anchor = "moving-list"


class ShortOfTotalError(StopAndLook):
    """The list came to its end before as many records as the API says there are."""

    anchor = "short-of-total"


class TooManyDeletesError(StopAndLook):
    """A sweep came to the end of the list without more of the stored records than `max_deletes` lets it delete."""

    anchor = "too-many-deletes"


class AnchorLostError(StopAndLook):
    """Each record the walk could go on from has disappeared, again and again."""

    anchor = "anchor-lost"


class TokenExpiredError(StopAndLook):
    """The API refuses the page token, and nothing else says where the walk stood."""

    anchor = "token-expired"


class UnorderedStreamError(StopAndLook):
    """The records do not come in the order that `order` declares."""

    anchor = "unordered-stream"


class DetectorError(StopAndLook):
    """A detector written in Python, or a rule's expression, failed on a change, or returned no event."""

    anchor = "detector"


class EventRefusedError(StopAndLook):
    """Where events are published, this one will never be taken: it is too large, or not allowed."""

    anchor = "event-refused"


class EventRepeatedError(StopAndLook):
    """The outbox holds an event with this id: rows of the record table were deleted or changed by hand."""

    anchor = "event-repeated"


class FencedError(StopAndLook):
    """This run has lost its walk to another one and must not write. Retrying would fight the new holder."""

    anchor = "fenced"
