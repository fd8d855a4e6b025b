"""The Hugging Face hub: what its errors mean and what to do about them, and patience while it is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import httpx, parse_ratelimit_headers

from workflow_scripts.core.progress import one_line, say

Kind = Literal["model", "dataset"]
Value = TypeVar("Value")

# Seconds before each further try, where the hub names none; who asks for more than the most is not waited for.
WAITS = (1, 2, 4, 8, 16)
LONGEST_WAIT = 600
# With an answer's status; the hub's own are the first.
REFUSALS = (HfHubHTTPError, httpx.HTTPStatusError)
BUSY = {408, 429, 500, 502, 503, 504}
# Not among them: a request that couldn't be written at all, e.g. because of a token with a line end in it.
BROKEN_CONNECTIONS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
# What a call of the hub's client may raise; `hub_trouble` tells which of them are the hub's.
HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError, XetDownloadError)

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token"
_LONGEST_REASON = 300


def patiently(call: Callable[[], Value]) -> Value:
    """Return what `call()` returns; where the hub is busy or a connection breaks, it is called again.

    Between the calls is the time that the hub asks for (`Retry-After`, or its rate limit's reset), else one that
    doubles. The error of the last try is passed on.
    """
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            cause = _hub_error(error)
            if cause is None or not _is_passing(cause):
                raise
            seconds = _asked_wait(cause)
            seconds = wait if seconds is None else seconds
            if seconds > LONGEST_WAIT:
                raise
            say(f"the hub: {_reason(cause)}; trying again in {seconds:.0f} s")
        time.sleep(seconds)
    return call()


def hub_trouble(error: BaseException, repository: str, kind: Kind, not_local: str = "") -> str | None:
    """Return why the hub didn't do what was asked for, and what to do; None where the error is none of the hub's.

    `not_local` says what would have been taken for a local file or folder; it is told where the hub has none either.
    """
    cause = _hub_error(error)
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    if cause is None:
        return None
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, and the hub's cache (HF_HOME) doesn't hold this {kind}. Unset it, or run once "
            f"with the same cache where the hub can be reached. {not_local}"
        ).rstrip()
    if isinstance(cause, httpx.LocalProtocolError | UnicodeEncodeError):
        return f"the token of {_source()} holds a line end or another character that none has. Set it again."
    if not isinstance(cause, REFUSALS):
        return (
            f"the hub ({constants.ENDPOINT}) can't be reached: {_reason(cause)}. Check the network, the proxy and "
            "HF_ENDPOINT, and run the same command again: what was downloaded is kept."
        )
    status = cause.response.status_code
    if isinstance(cause, GatedRepoError):
        account = "your account has no access" if status == 403 else "you aren't logged in"
        return (
            f"it is gated, and {account}. Accept its licence on {page} (some owners answer after days), then {_LOGIN} "
            "of that account."
        )
    if status == 401 and "authorization" in cause.response.request.headers:
        return (
            f"the hub rejects the token of {_source()} ({_said(cause)}): it is expired, revoked or cut short. Make a "
            f"new one (huggingface.co/settings/tokens), then {_LOGIN} that is valid; a public {kind} needs none."
        )
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"the hub has no {kind} of that name, or it is private. Check the name; if it is private, {_LOGIN} that "
            f"may read it. {not_local}"
        ).rstrip()
    if isinstance(cause, RevisionNotFoundError):
        return f"it has no such `revision`. Name a branch, a tag or a commit of {page}/commits/main."
    if status in (401, 403):
        return f"the hub forbids it ({_said(cause)}): {_LOGIN} that may."
    if status in BUSY:
        return f"the hub is busy ({_reason(cause)}). Run the same command again later: what was downloaded is kept."
    return f"the hub refuses ({_reason(cause)}: {_said(cause)})."


def is_out_of_reach(error: BaseException) -> bool:
    """Return whether `error` says that the hub wasn't there or was busy, so that its cache may do instead."""
    cause = _hub_error(error)
    return isinstance(cause, OfflineModeIsEnabled) or (cause is not None and _is_passing(cause))


def short_reason(error: BaseException) -> str:
    """Return what an error of others says as one line that ends in a full stop; its class, if it says nothing."""
    said = one_line(str(error), _LONGEST_REASON) or type(error).__name__
    return said if said.endswith((".", "!", "?", "…")) else f"{said}."


def _hub_error(error: BaseException) -> BaseException | None:
    """Return the error of the hub's client that `error` follows from, or None."""
    for one in _causes(error):
        # Libraries ask for files that needn't be there, and fail of something else then.
        if isinstance(one, RemoteEntryNotFoundError):
            return None
        if isinstance(one, httpx.HTTPError | OfflineModeIsEnabled):
            return one
        # Of a header with a token in it.
        if isinstance(one, UnicodeEncodeError) and one.encoding == "ascii":
            return one
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it was raised from; `from None` hides them on the screen alone."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_passing(cause: BaseException) -> bool:
    if isinstance(cause, REFUSALS):
        return cause.response.status_code in BUSY
    return isinstance(cause, BROKEN_CONNECTIONS)


def _asked_wait(cause: BaseException) -> float | None:
    """Return the seconds that the hub asks to wait for, or None."""
    if not isinstance(cause, REFUSALS):
        return None
    headers = cause.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _reason(cause: BaseException) -> str:
    if isinstance(cause, REFUSALS):
        return f"{cause.response.status_code} {cause.response.reason_phrase}"
    return f"{type(cause).__name__}: {one_line(str(cause), _LONGEST_REASON)}".removesuffix(": ")


def _said(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return one_line(said, _LONGEST_REASON).removesuffix(".")


def _source() -> str:
    """Return where the token comes from."""
    return "HF_TOKEN" if os.environ.get("HF_TOKEN", "").strip() else "`hf auth login`"
