"""Objects under a prefix of a bucket: the requests that blocks and refs in object storage make.

obstore (https://developmentseed.org/obstore) speaks with S3, GCS, Azure and what is like them. This
adds what it leaves open: which requests may be repeated, what an answer means for an object that
is written once, and errors that say what to do.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from cas_zarr.blocks.objecterrors import (
    failure,
    gave_up_at_once,
    is_conflict,
    lacks_more,
    status_of,
)
from cas_zarr.errors import (
    CasZarrError,
    InvalidArgumentError,
    LimitError,
    MissingDependencyError,
    ReadOnlyError,
    RemoteError,
    StorageError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "Place", "Token", "open_object_store"]

Place: TypeAlias = "str | os.PathLike[str] | ObjectStore"
"""The URL of a bucket and a prefix in it, or a store of obstore."""

Token: TypeAlias = "dict[str, str]"
"""What tells a version of an object from every other one of it."""

_T = TypeVar("_T")

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "file", "memory")
_TRIES = 5  # of a request that broke off, or met another one
_PAUSE = 0.1
_MOST_SWAPPED = 1 << 20
_PAGE = 1000  # what S3 lists, and deletes, in one request
_CLIENT = (  # options that obstore takes among those of a client only
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type"),
    *("default_headers", "http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout"),
    *("http2_keep_alive_while_idle", "http2_only", "pool_idle_timeout", "pool_max_idle_per_host"),
    *("proxy_ca_certificate", "proxy_excludes", "proxy_url", "randomize_addresses", "read_timeout"),
    *("root_certificate", "timeout", "user_agent"),
)
_TIMEOUTS = {"connect_timeout": "10s", "timeout": "60s"}  # 32 MiB at 5 Mbit/s


class Objects:
    """Objects by their names, below a prefix.

    Parameters
    ----------
    store : obstore store
    prefix : str
        Of all names; it ends where a ``/`` is.

    Attributes
    ----------
    store : obstore store
    prefix : str
        Empty, or with a ``/`` at its end.
    url : str
        The bucket and the prefix, without credentials.
    server : str
        The endpoint, where one was given.
    location : str
        The bucket and the endpoint, for messages.
    """

    def __init__(self, store: ObjectStore, prefix: str = "") -> None:
        self._obstore = _obstore()
        if not isinstance(store, self._obstore.store.ObjectStoreMethods):
            raise InvalidArgumentError(
                f"a {type(store).__name__} is no store of obstore; give a url or such a store"
            )
        self.store = store
        self.prefix = _checked_prefix(prefix)
        self.url = _url(store, self.prefix)
        self.server = _server(store)
        self.location = f"{self.url} at {self.server}" if self.server else self.url
        self._seen = False  # whether the bucket has shown that it is there

    def __repr__(self) -> str:
        return f"Objects({self.location!r})"

    def __reduce__(self) -> tuple[type[Objects], tuple[ObjectStore, str]]:
        return Objects, (self.store, self.prefix)

    # -- one object -----------------------------------------------------------------------------

    def get(self, name: str, *, limit: int) -> memoryview | None:
        """Return what an object holds, or None.

        Raises
        ------
        LimitError
            If it has more than `limit` bytes: nothing of it is read.
        """

        def read() -> memoryview:
            result = self._obstore.get(self.store, self.prefix + name)
            size = result.meta["size"]
            if size > limit:
                raise LimitError(
                    f"object {self.prefix + name} in {self.location} has {size} bytes; at most "
                    f"{limit} are expected there"
                )
            return memoryview(result.bytes())

        return self._look(f"read {name}", read)

    def read(self, name: str, *, limit: int) -> tuple[bytes, Token] | None:
        """Return what an object holds and the token of that version, or None.

        Of more than `limit` bytes just the beginning is returned, and one byte more at least.
        """

        def read() -> tuple[bytes, Token]:
            result = self._obstore.get(self.store, self.prefix + name)
            meta = result.meta
            token = {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}
            if meta["size"] <= limit:
                return bytes(result.bytes()), token
            data = bytearray()
            for part in result.stream():
                data += part
                if len(data) > limit:
                    break
            return bytes(data), token

        return self._look(f"read {name}", read)

    def size(self, name: str) -> int | None:
        """Return the number of bytes of an object, or None."""
        path = self.prefix + name

        def look() -> int:
            try:
                size: int = self._obstore.head(self.store, path)["size"]
            except self._errors as error:
                status = status_of(error)
                if status not in (400, 403) and (status != 404 or self._seen):
                    raise
                # An answer to a HEAD does not say why, nor whether there is such a bucket.
                size = self._obstore.get(self.store, path).meta["size"]
            return size

        return self._look(f"look for {name}", look)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there yet; False if it was there, and stays as it is.

        Also where the answer was lost: the next try finds what the last one wrote.
        """
        path, put = self.prefix + name, self._obstore.put

        def write() -> bool | None:
            try:
                put(self.store, path, data, mode="create", use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError as error:
                if is_conflict(error) and self.size(name) is None:
                    return None
                return False
            return True

        for attempt in range(_TRIES):
            made = self._must(f"write {name}", write)
            if made is not None:
                return made
            _pause(attempt)
        raise RemoteError(
            f"cannot write {name} in {self.location}: other requests for it are in the way, and "
            "still are after several tries; try again",
            status=409,
        )

    def swap(
        self,
        name: str,
        token: Token | None,
        data: bytes,
        *,
        ours: Callable[[bytes], bool] | None = None,
    ) -> bool:
        """Write an object if it is the version that was read; False if it is another by now.

        Parameters
        ----------
        name : str
        token : Token or None
            Of the version that is replaced; None if nothing must be there.
        data : bytes
            They should be like no others, for where the answer is lost the object is read, and if
            it holds them, it was written.
        ours : callable, optional
            Tells this instead from what the object holds then, up to 1 MiB: others may have
            replaced it by that time.

        Raises
        ------
        InvalidArgumentError, ReadOnlyError
            If there are no such conditions, as in a folder.
        """
        self.check_swaps()
        path, put = self.prefix + name, self._obstore.put
        errors = self._obstore.exceptions
        mode = "create" if token is None else token

        def write() -> bool | None:
            try:
                put(self.store, path, data, mode=mode, use_multipart=False)
            except (errors.AlreadyExistsError, errors.PreconditionError) as error:
                return None if is_conflict(error) else False
            except FileNotFoundError as error:
                self._check_absent(error, f"write {name}")
                return False
            return True

        for attempt in range(_TRIES):
            written = self._do(f"write {name}", write)
            if written:
                return True
            now = self.read(name, limit=_MOST_SWAPPED)
            if now is not None and (now[0] == data if ours is None else ours(now[0])):
                return True
            if written is False:
                return False
            _pause(attempt)
        return False

    def check_swaps(self) -> None:
        """Raise if `swap` cannot be done here."""
        if isinstance(self.store, self._obstore.store.LocalStore):
            raise InvalidArgumentError(
                f"{self.location} is a folder, in which no object can be replaced under a "
                "condition; give its path, without obstore"
            )
        if isinstance(self.store, self._obstore.store.HTTPStore):
            raise ReadOnlyError(
                f"{self.location} is for reading only; give the url of the bucket to write"
            )

    def replace(self, name: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        put = self._obstore.put
        self._must(
            f"write {name}",
            lambda: put(self.store, self.prefix + name, data, use_multipart=False),
        )

    # -- many objects ---------------------------------------------------------------------------

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the name and the size of each object in a folder, as pages of them come.

        Where an answer breaks off, it goes on behind what came, if that came in order, as it does
        from most servers.
        """
        where = (self.prefix + folder).rstrip("/") or None
        doing, last, ascending = f"list {folder}", "", True
        pages: Iterator[Any] | None = None

        def page() -> Any:
            nonlocal pages
            if pages is None:
                rest = self._obstore.list(self.store, where, offset=last or None, chunk_size=_PAGE)
                pages = iter(rest)
            try:
                return next(pages, None)
            except self._errors as error:
                if not ascending:
                    raise failure(error, doing, self.location) from None
                pages = None
                raise

        skip = len(self.prefix)
        while found := self._must(doing, page):
            for meta in found:
                ascending = ascending and meta["path"] > last
                last = meta["path"]
                yield last[skip:], meta["size"]

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, many by one request where the server can; none need be there."""
        for start in range(0, len(names), _PAGE):
            paths = [self.prefix + name for name in names[start : start + _PAGE]]
            try:
                self._delete(paths)
            except FileNotFoundError:  # some servers say so, and stop at it
                for path in paths:
                    try:
                        self._delete([path])
                    except FileNotFoundError as error:
                        self._check_absent(error, f"delete {path}")

    def _delete(self, paths: Sequence[str]) -> None:
        self._do("delete objects", lambda: self._obstore.delete(self.store, paths))

    # -- requests -------------------------------------------------------------------------------

    def _look(self, doing: str, call: Callable[[], _T]) -> _T | None:
        """Return what a call gives; None where the object is not there."""
        found: _T | None = None
        try:
            found = self._do(doing, call)
        except FileNotFoundError as error:
            self._check_absent(error, doing)
        self._seen = True
        return found

    def _check_absent(self, error: FileNotFoundError, doing: str) -> None:
        """Raise if it is not the object that is missing, but its bucket."""
        if lacks_more(error):
            raise failure(error, doing, self.location) from None

    def _must(self, doing: str, call: Callable[[], _T]) -> _T:
        """Return what a call gives that asks for no object: if something is missing, the bucket."""
        try:
            return self._do(doing, call)
        except FileNotFoundError as error:
            raise failure(error, doing, self.location) from None

    def _do(self, doing: str, call: Callable[[], _T]) -> _T:
        """Return what a call gives, made again where it broke off.

        Raises
        ------
        FileNotFoundError
            If something is not there; all else as an error of this package.
        """
        _check_process()
        for attempt in range(_TRIES):
            try:
                return call()
            except (FileNotFoundError, CasZarrError):
                raise
            except self._errors as error:
                if attempt + 1 == _TRIES or not gave_up_at_once(error):
                    raise failure(error, doing, self.location) from None
            _pause(attempt)
        raise AssertionError("unreachable")

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._obstore.exceptions.BaseError, OSError, ValueError


def open_object_store(place: Place, prefix: str = "", **options: Any) -> Objects:
    """Return the objects of a bucket, or of a part of it.

    Parameters
    ----------
    place : str, path or obstore store
        ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///folder``
        or ``memory://`` (a new one each time); or a store of obstore, which is taken as it is.
    prefix : str
        Below that of `place`.
    **options
        For obstore, as ``endpoint``, ``region``, ``access_key_id``, ``client_options``,
        ``retry_config`` or ``credential_provider``. ``anonymous=True`` signs no request. What is
        not given obstore takes from the environment, as ``AWS_REGION``.

    Raises
    ------
    InvalidArgumentError
        If the place or an option is not known.
    MissingDependencyError
        If obstore is not installed.

    Notes
    -----
    No request is made here. An endpoint that begins with ``http://`` is spoken to without
    encryption. Nothing is synced in a folder of ``file://``: that is for tests and shared folders.

    Examples
    --------
    >>> open_object_store("s3://data/weather", region="eu-west-1")  # doctest: +SKIP
    Objects('s3://data/weather')
    """
    if not isinstance(place, (str, os.PathLike)):
        if options:
            raise InvalidArgumentError(
                f"options ({', '.join(sorted(options))}) are for a url; a store of obstore has its "
                "own"
            )
        return Objects(place, prefix)
    obstore = _obstore()
    url = os.fspath(place)
    scheme = url.partition("://")[0].lower()
    if "://" not in url or scheme not in _SCHEMES:
        raise InvalidArgumentError(
            f"{_without_user(url)} is no url of object storage; give one like s3://bucket/prefix"
        )
    if scheme == "memory":
        if options or url.lower() not in ("memory://", "memory:///"):
            raise InvalidArgumentError(
                "memory:// is a place of its own, with no path and no options"
            )
        return Objects(obstore.store.MemoryStore(), prefix)
    if scheme != "file":
        options = _with_defaults(options)
    try:
        store = obstore.store.from_url(url, **options)
    except (obstore.exceptions.BaseError, OSError, TypeError, ValueError) as error:
        raise _refused(error, url, options) from None
    return Objects(store, prefix)


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError:
        raise MissingDependencyError(
            "object storage needs obstore; install it with: pip install 'cas-zarr[s3]'"
        ) from None
    return obstore


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as obstore knows them, with time-outs that fit blocks."""
    out = dict(options)
    if out.pop("anonymous", False):
        out["skip_signature"] = True
    client = {**_TIMEOUTS, **(out.get("client_options") or {})}
    client |= {name: out.pop(name) for name in _CLIENT if name in out}
    # An endpoint may come from the environment, of which obstore takes AWS_ALLOW_HTTP only where
    # it is given no options of a client.
    if not str(out.get("endpoint", "")).startswith("https://"):
        client.setdefault("allow_http", True)
    out["client_options"] = client
    if out.get("retry_config") is None:
        from datetime import timedelta

        backoff = {"base": 3, "max_backoff": timedelta(seconds=5)}  # some 15 seconds in all
        limit = timedelta(seconds=60)
        out["retry_config"] = {"max_retries": 10, "backoff": backoff, "retry_timeout": limit}
    return out


def _refused(error: Exception, url: str, options: dict[str, Any]) -> CasZarrError:
    """Return what to raise where obstore refuses a URL or an option."""
    where = _without_user(url)
    if type(error).__name__ == "UnknownConfigurationKeyError":
        known = [name for name in options if repr(name) in str(error)]
        return InvalidArgumentError(
            f"{', '.join(map(repr, known)) or 'an option'} is no option for {where}; see the "
            "options of obstore for such a store"
        )
    if "UnableToCanonicalize" in str(error):
        return StorageError(f"there is no folder {where}; make it, or give mkdir=True")
    if "Account must be specified" in str(error):
        return InvalidArgumentError(f"{where} needs the option account_name")
    return InvalidArgumentError(
        f"{where} cannot be opened with these options ({', '.join(sorted(options)) or 'none'}): "
        f"{type(error).__name__}; check the url and the options"
    )


def _checked_prefix(prefix: str) -> str:
    """Return a prefix with a slash at its end, or the empty one."""
    inner = prefix.strip("/")
    if not inner:
        return ""
    if any(part in ("", ".", "..") for part in inner.split("/")) or not inner.isprintable():
        raise InvalidArgumentError(
            f"{prefix!r} is no prefix of objects; give names with a slash between them"
        )
    return inner + "/"


def _url(store: ObjectStore, prefix: str) -> str:
    """Return where the objects are, as a URL without credentials."""
    config: dict[str, Any] = getattr(store, "config", None) or {}
    kind = type(store).__name__
    if kind == "MemoryStore":
        return f"memory://obstore-{id(store):x}/{prefix}".rstrip("/")
    if kind == "LocalStore":
        root = os.path.abspath(str(getattr(store, "prefix", None) or "/"))
        return f"file://{root.rstrip('/')}/{prefix}".rstrip("/")
    if kind == "HTTPStore":
        return f"{_without_user(str(getattr(store, 'url', 'http')))}/{prefix}".rstrip("/")
    scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}.get(kind, kind)
    bucket = config.get("bucket") or config.get("container_name") or ""
    parts = (bucket, str(getattr(store, "prefix", None) or "").strip("/"), prefix.strip("/"))
    return f"{scheme}://" + "/".join(part for part in parts if part)


def _server(store: ObjectStore) -> str:
    config: dict[str, Any] = getattr(store, "config", None) or {}
    endpoint = config.get("endpoint") or config.get("aws_endpoint_url_s3")
    return _without_user(str(endpoint)) if endpoint else ""


def _without_user(url: str) -> str:
    """Return a URL without user, password and query: there may be secrets in them."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/")[:300] if parts.scheme else url[:100]


def _pause(attempt: int) -> None:
    time.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1.5))


# obstore's threads do not survive a fork, and it would wait for them for ever.
_used = _lost = False


def _check_process() -> None:
    global _used
    _used = True
    if _lost:
        raise StorageError(
            "object storage was used before this process was forked, and its threads are gone; "
            "start processes by spawn or forkserver, or use object storage only after the fork"
        )


def _after_fork() -> None:
    global _lost
    _lost = _lost or _used


os.register_at_fork(after_in_child=_after_fork)
