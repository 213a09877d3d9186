"""What a failed request to object storage means, and what to do about it, in the project's words.

The library `obstore` has one class of error for most failures; the rest is in its text: the status and the body of the
answer, or how the connection failed. That text is never shown: it can hold signed URLs, and whatever a server sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from storage.errors import StoreError
from storage.objects.address import Address, server_of


class Cause(Enum):
    """Why a request failed."""

    MISSING = "no such object"
    EXISTS = "another writer at the same object, again and again"
    """For a creation: there is one already."""
    CHANGED = "the object has been replaced meanwhile"
    BEYOND = "the range begins past the end of the object"
    NO_CREDENTIALS = "no credentials"
    EXPIRED = "credentials that have expired"
    UNKNOWN_CREDENTIALS = "credentials that the server does not know"
    CLOCK = "a clock that differs from the server's"
    DENIED = "credentials that do not allow it"
    REGION = "a bucket of another region"
    NO_BUCKET = "no such bucket"
    FULL = "no room left, or a quota that is used up"
    BUSY = "a server that turned down every attempt"
    NAME = "no server of that name"
    REFUSED = "nothing that listens there"
    SILENT = "no answer in time"
    CUT = "a connection that broke off"
    OTHER_NAME = "a certificate for another name"
    OUTDATED = "a certificate that is no longer valid, or not yet"
    CERTIFICATE = "a certificate that this machine does not trust"
    NO_TLS = "a server that does not speak TLS"
    UNSUPPORTED = "a server without this operation"
    SETTINGS = "settings in the environment that the library refuses"
    FOREIGN = "an object whose key no store has, such as one with an empty part"
    STRANGE = "an answer that object storage does not give"


TRANSIENT = frozenset({Cause.EXISTS, Cause.BUSY, Cause.NAME, Cause.REFUSED, Cause.SILENT, Cause.CUT})
"""What may be over a moment later."""


@dataclass(frozen=True)
class Failure:
    """One failed request."""

    cause: Cause
    answer: str = ""
    """Status and code of the server's answer, such as `403 AccessDenied`."""
    region: str = ""
    """The region that the server names."""


_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_CODE = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9.]{1,60})(?:</Code>|\))")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
# Where the clouds give a program on their machines its credentials; Azure also needs to know of which account.
_INSTANCE = re.compile(
    r"/latest/(api/token|meta-data/iam)|169\.254\.170\.|/computeMetadata/|/metadata/identity/|MissingAccount"
)

_CODES: Mapping[str, Cause] = {
    **dict.fromkeys(("NoSuchKey", "BlobNotFound"), Cause.MISSING),
    **dict.fromkeys(("InvalidRange",), Cause.BEYOND),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"),
        Cause.EXPIRED,
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidSecurity", "InvalidTokenId"),
        Cause.UNKNOWN_CREDENTIALS,
    ),
    **dict.fromkeys(("RequestTimeTooSkewed",), Cause.CLOCK),
    **dict.fromkeys(("MissingSecurityHeader", "NoAuthenticationInformation"), Cause.NO_CREDENTIALS),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch"), Cause.DENIED),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), Cause.REGION
    ),
    **dict.fromkeys(
        ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ContainerBeingDeleted"), Cause.NO_BUCKET
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"), Cause.FULL
    ),
    **dict.fromkeys(
        ("SlowDown", "ServiceUnavailable", "ServerBusy", "InternalError", "OperationTimedOut", "RequestTimeout"),
        Cause.BUSY,
    ),
    # A multipart upload whose last answer was lost is gone when it is completed once more; a conflict landed nothing.
    **dict.fromkeys(("NoSuchUpload", "OperationAborted", "ConditionalRequestConflict"), Cause.BUSY),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed"), Cause.UNSUPPORTED),
}
_STATUSES: Mapping[int, Cause] = {
    301: Cause.REGION,
    307: Cause.REGION,
    401: Cause.UNKNOWN_CREDENTIALS,
    403: Cause.DENIED,
    404: Cause.MISSING,
    405: Cause.UNSUPPORTED,
    408: Cause.BUSY,
    409: Cause.BUSY,
    412: Cause.CHANGED,
    416: Cause.BEYOND,
    429: Cause.BUSY,
    500: Cause.BUSY,
    501: Cause.UNSUPPORTED,
    502: Cause.BUSY,
    503: Cause.BUSY,
    504: Cause.BUSY,
    507: Cause.FULL,
    509: Cause.BUSY,
}
# In this order: a certificate is also a failed connection.
_CONNECTIONS: tuple[tuple[re.Pattern[str], Cause], ...] = (
    (re.compile(r"incorrectly configured region"), Cause.REGION),
    (re.compile(r"StartTooLarge"), Cause.BEYOND),
    (re.compile(r"NotValidForName"), Cause.OTHER_NAME),
    (re.compile(r"InvalidCertificate\(\s*(Expired|NotValidYet)"), Cause.OUTDATED),
    (re.compile(r"InvalidCertificate|invalid peer certificate|UnknownIssuer"), Cause.CERTIFICATE),
    (re.compile(r"InvalidContentType|InvalidMessage|CorruptMessage"), Cause.NO_TLS),
    (re.compile(r"dns error|failed to lookup address"), Cause.NAME),
    (re.compile(r"ConnectionRefused|HostUnreachable|NetworkUnreachable"), Cause.REFUSED),
    (re.compile(r"TimedOut|kind: Timeout"), Cause.SILENT),
    (re.compile(r"kind: (Connect|Request|Interrupted|Decode|Body)|IncompleteBody|IncompleteMessage"), Cause.CUT),
    (re.compile(r"error (decoding|reading a body)|connection closed|ConnectionReset|BrokenPipe"), Cause.CUT),
)


def read(error: BaseException) -> Failure:
    """Return what an error of the library means."""
    text, kind = str(error), type(error).__name__
    status = int(match[1]) if (match := _STATUS.search(text)) else 0
    code = match[1] if (match := _CODE.search(text)) else ""
    region = match[1] if (match := _REGION.search(text)) else ""
    if _INSTANCE.search(text):
        return Failure(Cause.NO_CREDENTIALS)
    return Failure(_cause(kind, status, code, text), " ".join(filter(None, (str(status or ""), code))), region)


def _cause(kind: str, status: int, code: str, text: str) -> Cause:
    if kind == "AlreadyExistsError":
        return Cause.EXISTS
    if kind == "InvalidPathError":
        return Cause.FOREIGN
    if code in _CODES:
        return _CODES[code]
    if status == 404 and not code and not _is_empty(text):
        # A missing object is described in XML; anything else with a body is no object storage.
        return Cause.STRANGE
    if status:
        return _STATUSES.get(status, Cause.STRANGE)
    found = (cause for pattern, cause in _CONNECTIONS if pattern.search(text))
    return next(found, Cause.MISSING if kind == "FileNotFoundError" else Cause.STRANGE)


def _is_empty(text: str) -> bool:
    return "body: Some(\n" not in text or re.search(r'body: Some\(\s*""', text) is not None


_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_SIGN_IN = {
    "s3": 'set {keys}, as `eval "$(aws configure export-credentials --format env)"` does, or run where the instance '
    "has a role",
    "gs": "run `gcloud auth application-default login`, or set {keys} to the file of a service account",
    "az": "set {keys}, or run `az login` and set AZURE_USE_AZURE_CLI=true",
}
_RIGHTS = {
    "s3": "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    "gs": "the role Storage Object User (roles/storage.objectUser)",
    "az": "the role Storage Blob Data Contributor",
}
_REMEDIES: Mapping[Cause, str] = {
    Cause.NO_CREDENTIALS: "{sign_in}",
    Cause.EXPIRED: "renew them: {sign_in}",
    Cause.UNKNOWN_CREDENTIALS: "correct them: {sign_in}",
    Cause.CLOCK: "set the clock of this machine, for example with `timedatectl set-ntp true`",
    Cause.DENIED: "have them allowed {rights} there, or choose another store with --store",
    Cause.REGION: "set AWS_REGION to the region of the bucket{region}, or add it to the address (?region=…)",
    Cause.NO_BUCKET: "create it, or correct the address given with --store",
    Cause.FULL: "remove what is not needed (idxflow gc), or raise the quota, then run again",
    Cause.EXISTS: "wait, or let fewer runs work at once, then run again",
    Cause.FOREIGN: "remove it, or give the store a prefix of its own with --store",
    Cause.BUSY: "wait, or let fewer runs work at once, then run again",
    Cause.NAME: "check the network, the name, and HTTPS_PROXY, then run again",
    Cause.REFUSED: "check that the server runs and that a firewall lets you through, then run again",
    Cause.SILENT: "check the network and HTTPS_PROXY, then run again",
    Cause.CUT: "check the network and HTTPS_PROXY, then run again",
    Cause.OTHER_NAME: "write the name that it is for into the endpoint",
    Cause.OUTDATED: "have it renewed, and check the clock of this machine",
    Cause.CERTIFICATE: "add its authority to those of the system, or name the file that has it in SSL_CERT_FILE",
    Cause.NO_TLS: "write http:// in place of https:// in its endpoint, if you trust the network",
    Cause.UNSUPPORTED: "use a server that has it, or choose another store with --store",
    Cause.SETTINGS: "correct the variables that begin with {variables}, or remove them",
    Cause.STRANGE: "check the endpoint and HTTPS_PROXY, or choose another store with --store",
}
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}


def refusal(failure: Failure, address: Address, what: str, where: str) -> StoreError:
    """Return the error for a request that failed.

    Args:
        failure: why.
        address: of the store.
        what: what was to be done, such as `read`.
        where: the address of the object or folder.
    """
    scheme = address.scheme
    answer = f" (the server's answer: {failure.answer})" if failure.answer else ""
    named = f" at {server}" if (server := server_of(address)) else ""
    remedy = _REMEDIES.get(failure.cause, _REMEDIES[Cause.STRANGE]).format(
        sign_in=_SIGN_IN[scheme].format(keys=_KEYS[scheme]),
        rights=_RIGHTS[scheme],
        region=f", {failure.region}" if failure.region else "",
        variables=_VARIABLES[scheme],
    )
    sentence = f"found {failure.cause.value}{answer}; {remedy}"
    if scheme == "az":
        sentence = sentence.replace("bucket", "container")
    return StoreError(f"expected to {what} {where}{named}; {sentence}")
