"""Stream one archive over HTTP into a file: raw bytes, bounded in size and time, resumed only if that is safe."""

from __future__ import annotations

import email.utils
import http
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from storage.runtime import cancellation
from tasks.sources import proxies
from tasks.sources.partial_file import PartialFile, Received, SourceFailed, too_large
from tasks.sources.reach import Reach, reach_of, reach_of_host

_TRUST = threading.Lock()
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)


@dataclass(frozen=True)
class DownloadPolicy:
    """Timeouts, lowest rate and retries of a download."""

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    """Read timeout."""
    deadline_seconds: float = 900.0
    """Time limit for one archive, over all tries at all its sources."""
    min_bytes_per_second: float = 4096.0
    rate_window_seconds: float = 15.0
    """Window over which the rate is measured, so that a fast start does not hide a stall."""
    tries: int = 4
    """Number of tries per source."""
    backoff_seconds: float = 1.0
    """Longest wait before the second try; doubles with each further try."""
    max_wait_seconds: float = 60.0
    """Longest wait before any try, even if a server asks for more (`Retry-After`)."""
    max_redirects: int = 5
    sleep: Callable[[float], None] = cancellation.sleep
    clock: Callable[[], float] = time.monotonic
    reach_of: Callable[[str], Reach] = reach_of


POLICY = DownloadPolicy()


def redacted(url: str) -> str:
    """Return `url` without its possibly secret parts: user, password, query and fragment.

    Returns no part of an ambiguous URL: a `/` in a password, for example, makes the rest of it look like a path.
    """
    try:
        parts = urlsplit(url)
        readable = (parts.hostname is not None and parts.port != 0) or parts.scheme == "file"
    except ValueError:
        readable = False
    if not readable:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def download(
    url: str, part: PartialFile, limit: int, check: Callable[[Received], None], policy: DownloadPolicy, deadline: float
) -> Received:
    """Download `url` into `part`, byte for byte as the server sends it, without decoding `Content-Encoding`.

    Retries temporary failures (lost connections, timeouts, 5xx, 429) with random exponential backoff. Follows
    redirects, but never from https to http, to another protocol, or from the internet into this machine's network.
    Never contacts a link-local address (RFC 3927, RFC 4291) or a cloud's metadata service, which hands out the
    credentials of the machine.

    Args:
        limit: maximum number of bytes to read.
        check: called with the received file; raises `SourceFailed` if that is not the archive.
        deadline: on the clock of `policy`.

    Raises:
        SourceFailed: the archive could not be downloaded from here.
        OSError: the file cannot be written.
        Cancelled: the run is being ended.
    """
    with _watching(deadline - policy.clock()) as watch, unlogged(), _client(policy) as client:
        return _Download(url, part, limit, policy, deadline, client, watch).run(check)


@dataclass
class _Download:
    """One archive from one address."""

    _url: str
    _part: PartialFile
    _limit: int
    _policy: DownloadPolicy
    _deadline: float
    _client: httpx.Client
    _watch: _Watch
    _hop: int = 0
    """Redirects followed in this try."""
    _proxied: bool = False
    """The current request goes through a proxy."""
    _resumed: bool = False
    """The current body continues an earlier download."""
    _public_seen: bool = False
    """A server on the public internet has answered."""

    def run(self, check: Callable[[Received], None]) -> Received:
        for attempt in range(self._policy.tries):
            try:
                return self._attempt(check)
            except SourceFailed as failure:
                if not failure.retryable or attempt + 1 == self._policy.tries:
                    raise
                self._pause(failure, attempt)
        raise ValueError("a policy needs at least one try")

    def _pause(self, failure: SourceFailed, attempt: int) -> None:
        bound = min(self._policy.backoff_seconds * 2**attempt, self._policy.max_wait_seconds)
        # Full jitter, so that clients that failed together do not retry together.
        seconds = random.uniform(0, bound) if failure.wait is None else failure.wait
        if self._policy.clock() + seconds >= self._deadline:
            raise SourceFailed(f"{failure}, and no time is left to retry", refused=failure.refused)
        _log.info(
            "%s: %s; try %d of %d in %.1f s", redacted(self._url), failure, attempt + 2, self._policy.tries, seconds
        )
        self._policy.sleep(seconds)

    def _attempt(self, check: Callable[[Received], None]) -> Received:
        try:
            received = self._receive()
            check(received)
            return received
        except SourceFailed as failure:
            if not (self._resumed and failure.refused):
                raise
        _log.info("%s: the resumed file is not the archive; downloading it again from the start", redacted(self._url))
        self._part.clear()
        received = self._receive()
        check(received)
        return received

    def _receive(self) -> Received:
        resume = self._part.resumable(self._url)
        with self._translated(), self._response(resume) as response:
            if resume and response.status_code in (206, 416):
                if _continues(response, *resume):
                    return self._body(response, resume[0])
            elif response.status_code == 200:
                self._part.clear()
                self._part.remember(self._url, response.headers.get("ETag", ""))
                return self._body(response, 0)
            else:
                raise _status_failure(response, self._policy)
        # The rest of the file does not match the part already here.
        self._part.clear()
        return self._receive()

    def _body(self, response: httpx.Response, start: int) -> Received:
        self._resumed = start > 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        if total is not None and total > self._limit:
            raise too_large(self._limit, total)
        received = self._part.fill(self._blocks(response), self._limit, total, resume=start > 0)
        # A body delimited by the end of the connection looks complete when the deadline cuts it off.
        self._check_time()
        framed = length is not None or "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        return replace(received, framed=framed, encoding=response.headers.get("Content-Encoding", ""))

    def _blocks(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the body as it arrives, enforcing the lowest rate and the deadline."""
        clock, policy = self._policy.clock, self._policy
        mark, amount = clock(), 0
        # No chunk size: httpx would buffer small pieces, and so delay the check of the clock.
        for block in response.iter_raw():
            yield block
            amount += len(block)
            self._check_time()
            now = clock()
            if now - mark >= policy.rate_window_seconds:
                if amount < policy.min_bytes_per_second * (now - mark):
                    raise SourceFailed(f"it sends fewer than {policy.min_bytes_per_second:,.0f} bytes per second")
                mark, amount = now, 0

    @contextmanager
    def _response(self, resume: tuple[int, str] | None) -> Iterator[httpx.Response]:
        headers = {"Range": f"bytes={resume[0]}-", "If-Range": resume[1]} if resume else {}
        request = self._client.build_request("GET", self._url, headers=headers)
        for hop in range(self._policy.max_redirects + 1):
            self._hop = hop
            response = self._send(request)
            try:
                if response.next_request is None:
                    yield response
                    return
                self._check_redirect(request.url, response.next_request.url)
                request = response.next_request
            finally:
                response.close()
        raise SourceFailed(f"it redirects more than {self._policy.max_redirects} times")

    def _send(self, request: httpx.Request) -> httpx.Response:
        self._check_time()
        if self._reach(request.url.host) == "forbidden":
            raise _forbidden()
        self._proxied = _proxy_of(request.url) is not None
        request.extensions = {**request.extensions, "trace": self._trace}
        return self._client.send(request, stream=True, follow_redirects=False)

    def _check_redirect(self, before: httpx.URL, after: httpx.URL) -> None:
        if after.scheme not in ("http", "https"):
            raise SourceFailed("it redirects to something other than HTTP, which is not followed")
        if before.scheme == "https" and after.scheme == "http":
            raise SourceFailed("it redirects from https to http, which is not followed")
        # Behind a proxy, only the proxy's address is visible, so go by the host's name.
        public = self._public_seen or (self._proxied and self._reach(before.host) == "public")
        if public and self._reach(after.host) != "public":
            raise _into_private_network()

    def _reach(self, host: str) -> Reach:
        return reach_of_host(host, self._policy.reach_of)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Check each connection once it is made and before anything is sent over it."""
        if not event.endswith("connect_tcp.complete"):
            return
        stream = info["return_value"]
        try:
            self._watch.add(stream.get_extra_info("socket"))
            self._check_time()
            self._check_peer(stream.get_extra_info("server_addr")[0])
        except BaseException:
            stream.close()
            raise

    def _check_peer(self, address: str) -> None:
        if self._proxied:
            return
        reach = self._policy.reach_of(address)
        if reach == "forbidden":
            raise _forbidden()
        # The address before any redirect is the user's own choice.
        if self._hop and self._public_seen and reach != "public":
            raise _into_private_network()
        self._public_seen |= reach == "public"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate httpx's errors, whose texts and attributes contain the full address, into clauses without it."""
        try:
            yield
        except httpx.HTTPError as error:
            self._check_time()
            raise self._failure(error) from None
        except (httpx.InvalidURL, UnicodeError):
            raise SourceFailed("its address, or the one it redirects to, is not valid") from None

    def _check_time(self) -> None:
        cancellation.check()
        if self._policy.clock() >= self._deadline:
            raise SourceFailed(f"not finished within {self._policy.deadline_seconds:g} s") from None

    def _failure(self, error: httpx.HTTPError) -> SourceFailed:
        certificate = cause_of(error, ssl.SSLCertVerificationError)
        if certificate:
            return SourceFailed(f"its certificate is not trusted ({certificate.verify_message})")
        if isinstance(error, httpx.ReadTimeout):
            return SourceFailed(f"nothing came for {self._policy.read_seconds:g} s", retryable=True)
        if isinstance(error, httpx.ConnectError | httpx.TimeoutException | httpx.ProxyError):
            retryable = not isinstance(error, httpx.ProxyError)
            return SourceFailed(f"no connection{reason_of(error)}{self._through()}", retryable=retryable)
        if isinstance(error, httpx.RemoteProtocolError) and "without sending" not in str(error):
            return SourceFailed("it does not answer in valid HTTP", retryable=True)
        return SourceFailed(f"the connection broke off after {self._part.size:,} bytes", retryable=True)

    def _through(self) -> str:
        proxy = _proxy_of(httpx.URL(self._url))
        return f" through the proxy {redacted(proxy)}" if proxy else ""


class _Watch:
    """The connections of a download, which another thread can end."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def add(self, connection: socket.socket) -> None:
        # A duplicate, because TLS takes over the original; shutting down either ends both.
        self._sockets.append(connection.dup())

    def cut(self) -> None:
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()


@contextmanager
def _watching(seconds: float) -> Iterator[_Watch]:
    """End all connections after `seconds`, or when the run is being ended, even while they wait for an answer."""
    watch = _Watch()
    timer = threading.Timer(max(seconds, 0), watch.cut)
    timer.daemon = True
    timer.start()
    try:
        with cancellation.calling(watch.cut):
            yield watch
    finally:
        timer.cancel()
        timer.join()
        watch.close()


_downloading: ContextVar[bool] = ContextVar("idxflow_downloading", default=False)


def _not_of_a_download(record: logging.LogRecord) -> bool:
    return not _downloading.get()


# These loggers write every address with its password and signature, httpx even at INFO. Their records about other
# requests, such as Prefect's, are kept.
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks"):
    logging.getLogger(_name).addFilter(_not_of_a_download)


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep the requests of the block out of the log: their addresses may be secret."""
    token = _downloading.set(True)
    try:
        yield
    finally:
        _downloading.reset(token)


@contextmanager
def _client(policy: DownloadPolicy) -> Iterator[httpx.Client]:
    """Make a client that takes proxies and certificates from the environment (httpx does not read netrc)."""
    if problem := proxies.unusable():
        raise SourceFailed(f"no connection, because {problem}; {proxies.REMEDY}")
    try:
        client = httpx.Client(
            verify=certificates(),
            timeout=httpx.Timeout(policy.read_seconds, connect=policy.connect_seconds),
            headers={"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "idxflow"},
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL):
        raise SourceFailed(
            "no connection, because the proxies (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) or certificates "
            "(SSL_CERT_FILE, SSL_CERT_DIR) that the environment names cannot be used"
        ) from None
    with client:
        yield client


def certificates(address: str = "https:") -> ssl.SSLContext:
    """Return what checks the certificates of servers, for `verify` of httpx's clients.

    It is the same until the environment names other authorities, or their file changes: to read some hundred of them
    takes longer than most requests. Nobody shows a certificate at an http address, so none are read for one.

    Raises:
        OSError: the authorities that the environment names cannot be read.
    """
    if urlsplit(address).scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file = os.environ.get("SSL_CERT_FILE")
    # The archives of a data set are fetched at the same time.
    with _TRUST:
        return _certificates(file, Path(file).stat().st_mtime_ns if file else 0, os.environ.get("SSL_CERT_DIR"))


@cache
def _certificates(*_: object) -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _continues(response: httpx.Response, size: int, etag: str) -> bool:
    """Tell whether the body of a response is the rest of the file whose first `size` bytes had this ETag."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not match or response.headers.get("ETag") != etag:
        return False
    first, last, total = map(int, match.groups())
    return first == size and last + 1 == total


def _status_failure(response: httpx.Response, policy: DownloadPolicy) -> SourceFailed:
    code = response.status_code
    try:
        clause = f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:
        clause = str(code)
    if code not in (408, 429) and code < 500:
        return SourceFailed(clause)
    wait = _retry_after(response.headers.get("Retry-After", ""))
    if wait is not None and wait > policy.max_wait_seconds:
        return SourceFailed(f"{clause}, and it asks to wait {wait:,.0f} s")
    return SourceFailed(clause, retryable=True, wait=wait)


def _retry_after(value: str) -> float | None:
    """Return the seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3), or None if it is unusable."""
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _into_private_network() -> SourceFailed:
    return SourceFailed("it redirects to an address of this machine's own network, which is not followed")


def _forbidden() -> SourceFailed:
    return SourceFailed(
        "its address is link-local or that of a cloud's metadata service, and nothing is fetched from such a one"
    )


def _proxy_of(url: httpx.URL) -> str | None:
    proxies_by_scheme = urllib.request.getproxies()
    proxy = proxies_by_scheme.get(url.scheme) or proxies_by_scheme.get("all")
    return proxy if proxy and not urllib.request.proxy_bypass(url.host) else None


def reason_of(error: BaseException) -> str:
    """Return the operating system's reason for a failed connection, which contains no address."""
    cause = cause_of(error, OSError)
    if isinstance(error, httpx.TimeoutException) or isinstance(cause, TimeoutError):
        return " (no answer in time)"
    reason = cause.reason if isinstance(cause, ssl.SSLError) else cause.strerror if cause else None
    return f" ({reason})" if reason else ""


def cause_of(error: BaseException, kind: type[E]) -> E | None:
    """Return the first error of a kind among `error` and what led to it; None if there is none."""
    step: BaseException | None = error
    while step is not None and not isinstance(step, kind):
        step = step.__cause__ or step.__context__
    return step
