"""What went wrong with object storage, in words that say where and what to do.

The errors of obstore quote requests and answers: addresses with signatures in them, keys, tokens.
So nothing of them is passed on but the status, the code and the reason that a server gives.

Source of the codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
"""

from __future__ import annotations

import re

from cas_zarr.errors import CasZarrError, InvalidArgumentError, RemoteError, StorageError

__all__ = ["failure", "gave_up_at_once", "is_conflict", "lacks_more", "status_of"]

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9_.]{1,80})\s*</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_TRIED = re.compile(
    r" in ([0-9.]+)([a-zµ]+), after (\d+) retries, max_retries: (\d+), retry_timeout: (\d+)s"
)
_REASON = re.compile(r'message: "([^"]{1,200})"')
_EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_ELSEWHERE = ("AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect")
_NO_BUCKET = ("ContainerNotFound", "NoSuchBucket")
_NO_OBJECT = ("BlobNotFound", "NoSuchKey")
_METADATA = ("169.254.169.254", "metadata.google", "/latest/api/token")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of obstore tells of."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def is_conflict(error: BaseException) -> bool:
    """Tell whether a put met another request for the same object: then it may not be there.

    S3 answers 409 where it asks for another try, and obstore takes it for an object that exists.
    """
    return status_of(error) == 409


def gave_up_at_once(error: BaseException) -> bool:
    """Tell whether a request broke off, and obstore did not try it again as often as it may.

    It does not know that a put under a condition can be repeated, nor does it go on with a body
    that breaks off.
    """
    text = str(error)
    return (
        not isinstance(error, (ValueError, FileNotFoundError))
        and status_of(error) is None
        and not _tried_all(text)
        and ("HTTP error" in text or "HttpError" in text or "reqwest" in text)
        and not any(mark in text for mark in ("builder error", *_METADATA))
    )


def _tried_all(text: str) -> bool:
    found = _TRIED.search(text)
    if found is None:
        return False
    seconds = float(found[1]) if found[2] == "s" else 0
    return int(found[3]) >= int(found[4]) or seconds >= int(found[5])


def lacks_more(error: FileNotFoundError) -> bool:
    """Tell whether more is missing than an object: its bucket, or who asks for it."""
    found = _CODE.search(str(error))
    return found is not None and found[1] not in _NO_OBJECT


def failure(error: BaseException, doing: str, where: str) -> CasZarrError:
    """Return what to raise for an error of obstore.

    Parameters
    ----------
    error : BaseException
    doing : str
        What was asked for, as ``write block bafk…``.
    where : str
        The bucket and the prefix.
    """
    text = str(error)
    status = status_of(error)
    if status is None and not any(mark in text for mark in ("HTTP error", "HttpError", *_METADATA)):
        return _no_server(error, text, f"cannot {doing} in {where}")
    return RemoteError(f"cannot {doing} in {where}: {_why(text, status)}", status=status)


def _no_server(error: BaseException, text: str, what: str) -> CasZarrError:
    """Return what to raise where no server was asked, or none answered in HTTP."""
    reason = _REASON.search(text)
    if reason is not None:
        return StorageError(f"{what}: {reason[1]}; check the place, its space and its permissions")
    if "incorrectly configured region" in text:
        return RemoteError(f"{what}: {_why(text, 301)}", status=301)
    kind = type(error).__name__
    if isinstance(error, ValueError) or kind in ("InvalidPathError", "NotSupportedError"):
        return InvalidArgumentError(f"{what}: object storage refuses the request ({kind})")
    return StorageError(f"{what}: {kind}; check the options, and try again")


def _why(text: str, status: int | None) -> str:
    found = _CODE.search(text)
    code = "" if found is None else found[1]
    if any(mark in text for mark in _METADATA):
        return (
            "no credentials were found; give them as options or in the environment, or "
            "anonymous=True for a public bucket"
        )
    if status is None:
        return _silence(text)
    said = _said(text, status, code)
    if code in _NO_BUCKET or (status == 404 and code in ("", *_NO_OBJECT)):
        return f"there is no such bucket ({said}); make it, or check its name and the endpoint"
    if code == "RequestTimeTooSkewed":
        return f"the clock of this machine is wrong ({said}); set it, and try again"
    if code in _EXPIRED:
        return f"the credentials have expired ({said}); get new ones"
    if code in _ELSEWHERE or status in (301, 307):
        return f"the bucket is in another region ({said}); give its region as an option"
    if code == "SlowDown" or status in (429, 503):
        return (
            f"the server asks to slow down, and still does after several tries ({said}); try again "
            "later, or with fewer requests at once"
        )
    if status in (401, 403) or code == "XAdminUserNotFound":
        return (
            f"access is denied ({said}); give credentials that allow it, or anonymous=True for a "
            "public bucket"
        )
    if status == 501:
        return (
            f"the server does not know such a request ({said}); it has to support puts under a "
            "condition (if-none-match, if-match)"
        )
    return f"the server refuses ({said}); try again, or check the endpoint"


def _silence(text: str) -> str:
    """Say why there was no answer."""
    if "BadScheme" in text or "URL scheme is not allowed" in text:
        return "the endpoint is no https; give allow_http in client_options if it shall be http"
    kind, reason = _KIND.search(text), _REASON.search(text)
    if (kind is not None and kind[1] == "Timeout") or "TimedOut" in text:
        return "no answer in time; check the network, or give a longer timeout in client_options"
    if kind is not None and kind[1] == "Connect":
        said = f" ({reason[1].lower()})" if reason is not None else ""
        return f"the server cannot be reached{said}; check the endpoint and the network"
    return "the connection broke off; check the network, and try again"


def _said(text: str, status: int, code: str) -> str:
    """Return the status, and the code and the words of the server where it gave some."""
    message = _MESSAGE.search(text)
    words = "" if message is None else ": " + " ".join(message[1].split()).rstrip(".")
    return f"status {status}{' ' + code if code else ''}{words}"
