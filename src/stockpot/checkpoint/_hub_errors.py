"""What a model hub's library raises, told in our own errors: one line each, without addresses, headers or tokens."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stockpot import errors

WAITS_SECONDS = (0.5, 1.0)
"""Before the second and the third try, the last, of a request that may go better then."""
_PASSING = (408, 500, 502, 503, 504)
_CUT_SHORT = ("RemoteProtocolError", "ReadError", "ChunkedEncodingError", "IncompleteRead")
_OFFLINE = "unset HF_HUB_OFFLINE to download it"
_LOG_IN = "log in (hf auth login, or HF_TOKEN)"
Answer = TypeVar("Answer")


class CutShortError(Exception):
    """An answer ended before all the bytes that were asked for had come."""


def asked(call: Callable[[], Answer], what: str, *, is_id: bool = False) -> Answer:
    """What a request gives, tried up to three times where its fault may pass; its failure as an error of ours.

    ``what``: the file that messages name, or the reference itself where the question is whether there is one.
    """
    for number in itertools.count():
        try:
            return call()
        except errors.StockpotError:
            raise
        except Exception as error:  # the library's own tree mixes its HTTP client's, its own and the system's
            if number == len(WAITS_SECONDS) or not _may_pass(error):
                raise told(error, what, is_id=is_id) from None
        time.sleep(WAITS_SECONDS[number])
    raise AssertionError("there is always another number")


def told(error: BaseException, what: str, *, is_id: bool = False) -> errors.InputError:
    """The error as one of ours."""
    from huggingface_hub import errors as theirs

    path = "no such path, and " if is_id else ""
    if isinstance(error, errors.InputError):
        return error
    if isinstance(error, theirs.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return told(error.__cause__, what, is_id=is_id)  # a download that found no way to the hub
    if isinstance(error, theirs.OfflineModeIsEnabled | theirs.LocalEntryNotFoundError):
        found = f"{path}no such Hub id in the cache" if is_id else "not in the hub's cache"
        return errors.HubError(found, file=what, remedy=_OFFLINE)
    if isinstance(error, theirs.GatedRepoError):
        return errors.UnreadableError(
            "the model is gated", file=what, got=_status(error),
            remedy=f"accept its licence on the model's page, then {_LOG_IN}",
        )  # fmt: skip
    if isinstance(error, theirs.RevisionNotFoundError):
        return errors.NotFoundError(
            f"{path}the model has no such revision", file=what, remedy="check what follows the @"
        )
    if isinstance(error, theirs.RepositoryNotFoundError | theirs.HFValidationError):
        return errors.NotFoundError(
            f"{path}no model of this Hub id" if is_id else "no such model on the hub", file=what,
            remedy=f"check the path or the id; for a private or gated model {_LOG_IN}",
        )  # fmt: skip
    if isinstance(error, theirs.EntryNotFoundError):
        return errors.NotFoundError("the hub does not have this file", file=what)
    if isinstance(error, theirs.HfHubHTTPError):
        return _by_status(error, what, path)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoSpaceError(
            "the disk of the hub's cache is full", file=what, remedy="free some, or move HF_HOME"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return errors.HubError(
            "the hub's cache cannot be written", file=what, remedy="check its rights, or move HF_HOME"
        )
    if isinstance(error, CutShortError) or type(error).__name__ in _CUT_SHORT or "Consistency check" in str(error):
        return errors.HubError(
            "the hub's answer ended before it was whole", file=what,
            remedy="try again; what was downloaded whole is kept",
        )  # fmt: skip
    asked_for = " for a Hub id" if is_id else ""
    return errors.HubError(
        f"{path}the hub cannot be reached{asked_for} ({type(error).__name__})", file=what,
        got=f"no answer from {_host()}", remedy="check the path, the network, HF_ENDPOINT or HF_HUB_OFFLINE",
    )  # fmt: skip


def _by_status(error: Any, what: str, path: str) -> errors.CheckpointError:
    status = _status(error)
    if status == 401:
        return errors.UnreadableError(f"{path}the hub refused the login", file=what, got=status, remedy=_LOG_IN)
    if status == 403:
        return errors.UnreadableError(
            f"{path}the hub refused access", file=what, got=status,
            remedy=f"accept the licence on the model's page, and {_LOG_IN} as who may read it",
        )  # fmt: skip
    if status == 404:
        return errors.NotFoundError(
            f"{path}no such model or file on the hub", file=what, got=status, remedy="check the path or the id"
        )
    remedy = "wait some minutes; a login is allowed more" if status == 429 else "try again later"
    return errors.HubError(f"{path}the hub failed to answer", file=what, got=status, remedy=remedy)


def _status(error: Any) -> int | None:
    response = error.response
    return None if response is None else int(response.status_code)


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING
    return isinstance(error, CutShortError) or type(error).__name__ in _CUT_SHORT


def _host() -> str:
    """Where the hub is looked for, without what an address may say of a login."""
    from huggingface_hub import constants

    found = urlsplit(constants.ENDPOINT)
    return f"{found.hostname}:{found.port}" if found.port else str(found.hostname)
