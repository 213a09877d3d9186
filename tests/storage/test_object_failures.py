"""What object storage refuses is said in one sentence with a remedy, which helps; nothing secret is in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from storage.errors import IdxflowError, StoreError
from storage.objects import cloud as module
from storage.objects.address import parse
from storage.objects.cloud import Cloud, Patience
from storage.objects.opening import opened
from storage.runtime import cancellation
from tests.support import refusals
from tests.support.certificates import authority
from tests.support.fault_proxy import Answer, FaultProxy, Request
from tests.support.faultserver import FaultServer, good, silent
from tests.support.object_servers import ObjectServer
from tests.support.servers import free_port

SECRET = "kXVw2hIiDf9Zq"
NOBODY = "127.0.0.1:1"
SHORT = Patience(tries=3, seconds=5, pause=0)
WRITTEN = {"Last-Modified": "Mon, 30 Nov 2026 06:39:50 GMT", "ETag": '"1"'}
FINE = Answer(200, b"1", WRITTEN)
REFUSAL = pytest.mark.remedies("storage.objects.failures:refusal")


def error(status: int, code: str, more: str = "") -> Answer:
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{SECRET}</Message>{more}</Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def calls(cloud: Cloud) -> dict[str, Callable[[], object]]:
    """Return every operation, on an object `m/x`."""
    return {
        "read": lambda: cloud.get("m/x"),
        "list": lambda: cloud.list("m"),
        "write": lambda: cloud.put("m/x", b"1"),
        "remove": lambda: cloud.delete(["m/x"]),
        "walk": lambda: list(cloud.walk("m")),
        "create": lambda: cloud.create("m/x", b"1"),
        "range": lambda: cloud.range("m/x", 0, 1),
        "age": lambda: cloud.age("m/x"),
        "probe": cloud.probe,
    }


def one_sentence(raised: IdxflowError) -> str:
    text = str(raised)
    assert "\n" not in text
    assert SECRET not in text
    assert text.startswith("expected ")
    assert "; found " in text
    # A traceback, which a log has, shows nothing of the library's text either.
    before: BaseException | None = raised
    while before := before.__cause__ or before.__context__:
        assert isinstance(before, IdxflowError)
        assert SECRET not in str(before)
    return text


@dataclass(frozen=True)
class Case:
    answer: Answer
    found: str
    advice: str
    tries: int = 1
    """How often it is tried."""


CASES = {
    "denied": Case(error(403, "AccessDenied"), "credentials that do not allow it", "s3:GetObject, s3:PutObject"),
    "denied, no more": Case(Answer(403), "credentials that do not allow it", "s3:ListBucket"),
    "expired": Case(error(400, "ExpiredToken"), "credentials that have expired", "renew them: set AWS_ACCESS_KEY_ID"),
    "token": Case(error(400, "TokenRefreshRequired"), "credentials that have expired", "renew them"),
    "no such key": Case(error(403, "InvalidAccessKeyId"), "credentials that the server does not know", "correct them"),
    "signature": Case(error(403, "SignatureDoesNotMatch"), "credentials that the server does not know", "correct them"),
    "clock": Case(error(403, "RequestTimeTooSkewed"), "a clock that differs", "timedatectl"),
    "moved": Case(
        Answer(301, error(301, "PermanentRedirect").body, {"x-amz-bucket-region": "eu-west-1"}),
        "a bucket of another region",
        "AWS_REGION",
    ),
    "moved, with a hint": Case(
        error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
        "a bucket of another region",
        "to the region of the bucket, eu-west-1,",
    ),
    "no bucket": Case(error(404, "NoSuchBucket"), "no such bucket", "create it, or correct the address"),
    "full": Case(error(507, "InsufficientStorage"), "no room left", "idxflow gc"),
    "quota": Case(error(403, "QuotaExceeded"), "no room left", "raise the quota"),
    "slow down": Case(error(503, "SlowDown"), "a server that turned down every attempt", "fewer runs", 3),
    "internal": Case(error(500, "InternalError"), "a server that turned down every attempt", "wait", 3),
    "gateway": Case(Answer(502, b"<html>bad gateway</html>"), "a server that turned down every attempt", "wait", 3),
    "unsupported": Case(error(501, "NotImplemented"), "a server without this operation", "use a server that has it"),
    "another server": Case(Answer(404, b"<html>Not here</html>"), "an answer that object storage does not give", "end"),
    "a teapot": Case(Answer(418, b"tea"), "an answer that object storage does not give", "check the endpoint"),
}


@REFUSAL
@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_one_sentence_for_every_operation(name: str) -> None:
    case = CASES[name]
    with FaultProxy(NOBODY, instead=lambda request: case.answer) as server:
        cloud = Cloud(parse(f"s3://bucket/p?endpoint={server.url}"), SHORT)
        for call in calls(cloud).values():
            with pytest.raises(StoreError) as raised:
                call()
            text = one_sentence(raised.value)
            assert case.found in text
            assert case.advice in text
            assert "s3://bucket/p" in text
            assert server.url in text
        # A listing is also tried again by the library.
        server.requests.clear()
        with pytest.raises(StoreError):
            cloud.get("m/x")
        assert len(server.requests) == case.tries


def test_an_object_that_is_missing_is_not_a_failure_of_the_store() -> None:
    for answer in (error(404, "NoSuchKey"), Answer(404)):
        with FaultProxy(NOBODY, instead=lambda request, answer=answer: answer) as server:
            with pytest.raises(FileNotFoundError) as raised:
                Cloud(parse(f"s3://bucket/p?endpoint={server.url}")).get("m/x")
            assert raised.value.filename == "s3://bucket/p/m/x"


@REFUSAL
@pytest.mark.parametrize("name", ["expired", "no such key", "signature", "token"])
def test_other_credentials_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Answer:
        return FINE if "Credential=new/" in request.headers["authorization"] else CASES[name].answer

    with FaultProxy(NOBODY, instead=answer) as server:
        address = f"s3://bucket/p?endpoint={server.url}"
        with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            opened(address).get("m/x")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
        assert opened(address).get("m/x") == b"1"


@REFUSAL
def test_credentials_help_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # In place of the service that a machine of the cloud has.
    with FaultProxy(NOBODY, instead=lambda request: Answer(404)) as metadata:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata.url)
        with FaultProxy(NOBODY, instead=lambda request: FINE) as server:
            address = f"s3://bucket/p?endpoint={server.url}"
            with pytest.raises(StoreError, match="found no credentials; set AWS_ACCESS_KEY_ID") as raised:
                opened(address).get("m/x")
            one_sentence(raised.value)
            assert server.requests == []
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            assert opened(address).get("m/x") == b"1"


@REFUSAL
@pytest.mark.parametrize("how", ["variable", "address"])
def test_another_region_helps(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Answer:
        right = "/eu-west-1/s3/" in request.headers["authorization"]
        return FINE if right else CASES["moved, with a hint"].answer

    with FaultProxy(NOBODY, instead=answer) as server:
        address = f"s3://bucket/p?endpoint={server.url}"
        with pytest.raises(StoreError, match=r"set AWS_REGION .* eu-west-1, or add it to the address \(\?region=…\)"):
            opened(address).get("m/x")
        if how == "variable":
            monkeypatch.setenv("AWS_REGION", "eu-west-1")
        assert opened(f"{address}&region=eu-west-1" if how == "address" else address).get("m/x") == b"1"


@REFUSAL
@pytest.mark.parametrize("name", ["slow down", "internal", "gateway"])
def test_waiting_helps(name: str) -> None:
    answers = iter([CASES[name].answer] * 3)
    with FaultProxy(NOBODY, instead=lambda request: next(answers, FINE)) as server:
        cloud = Cloud(parse(f"s3://bucket/p?endpoint={server.url}"), SHORT)
        with pytest.raises(StoreError, match="then run again"):
            cloud.get("m/x")
        assert cloud.get("m/x") == b"1"


@REFUSAL
def test_a_bucket_that_is_created_is_there(
    object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    query = object_storage.address.partition("?")[2]
    cloud = Cloud(parse(f"s3://nobody-made-this/p?{query}"), SHORT)
    for call in calls(cloud).values():
        with pytest.raises(StoreError, match="found no such bucket .* create it, or correct the address given with"):
            call()
    with pytest.raises(StoreError, match="found no such bucket"):
        cloud.download("m/x", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="found no such bucket"):
        cloud.upload("m/x", tmp_path / "file")
    cloud = Cloud(parse(object_storage.fresh().address), SHORT)
    cloud.probe()


def test_a_container_that_does_not_exist_is_none(
    object_servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_servers("azurite").environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="found no such container .* create it") as raised:
        opened("az://nobody-made-this/p").get("m/x")
    assert os.environ["AZURE_STORAGE_ENDPOINT"].rpartition("/")[0] in str(raised.value)


@REFUSAL
def test_azure_needs_the_name_of_an_account(
    object_servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = object_servers("azurite").fresh()
    with pytest.raises(StoreError, match="found no credentials; set AZURE_STORAGE_ACCOUNT_NAME and") as raised:
        opened(server.address).probe()
    one_sentence(raised.value)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    opened(server.address).probe()


@pytest.mark.remedies("storage.objects.cloud:_check_keys")
@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_the_keys_are_not_enough(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(missing)
    with FaultProxy(NOBODY, instead=lambda request: FINE) as server:
        with pytest.raises(StoreError, match=f"found only AWS_.*; set {missing}, too") as raised:
            opened(f"s3://bucket?endpoint={server.url}").get("m/x")
        one_sentence(raised.value)
        monkeypatch.setenv(missing, SECRET)
        assert opened(f"s3://bucket?endpoint={server.url}").get("m/x") == b"1"


@REFUSAL
def test_settings_that_the_library_refuses_can_be_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_COPY_IF_NOT_EXISTS", SECRET)
    with FaultProxy(NOBODY, instead=lambda request: FINE) as server:
        with pytest.raises(StoreError, match="correct the variables that begin with AWS_, or remove them") as raised:
            opened(f"s3://bucket?endpoint={server.url}").get("m/x")
        one_sentence(raised.value)
        monkeypatch.delenv("AWS_COPY_IF_NOT_EXISTS")
        assert opened(f"s3://bucket?endpoint={server.url}").get("m/x") == b"1"


@REFUSAL
def test_a_server_that_is_started_is_reached() -> None:
    cloud = Cloud(parse(f"s3://bucket/p?endpoint=http://127.0.0.1:{free_port()}"), SHORT)
    for call in calls(cloud).values():
        with pytest.raises(StoreError, match="found nothing that listens there; check that the server runs") as raised:
            call()
        one_sentence(raised.value)
    assert cloud.requests["get"] == 2 * SHORT.tries
    with FaultProxy(NOBODY, instead=lambda request: FINE) as server:
        assert Cloud(parse(f"s3://bucket/p?endpoint={server.url}"), SHORT).get("m/x") == b"1"


def test_a_name_that_nobody_has_is_said_to_be_none() -> None:
    # With a part that is too long for a name, so that no server of names is asked.
    cloud = Cloud(parse(f"s3://bucket/p?endpoint=http://{'x' * 64}.invalid"), SHORT)
    with pytest.raises(StoreError, match="found no server of that name; check the network, the name") as raised:
        cloud.get("m/x")
    one_sentence(raised.value)


@REFUSAL
def test_an_authority_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = authority(tmp_path / "authority")
    answer = good(b"1", **{name.replace("-", "_"): value for name, value in WRITTEN.items()})
    with FaultServer({"/bucket/m/x": answer}, tls=own.server()) as server:
        address = f"s3://bucket?endpoint={server.url()}"
        with pytest.raises(StoreError, match="a certificate that this machine does not trust; .* in SSL_CERT_FILE"):
            opened(address).get("m/x")
        monkeypatch.setenv("SSL_CERT_FILE", str(own.file))
        assert opened(address).get("m/x") == b"1"
    with (
        FaultServer({}, tls=own.server("another.example")) as server,
        pytest.raises(StoreError, match="a certificate for another name; write the name that it is for"),
    ):
        opened(f"s3://bucket?endpoint={server.url()}").get("m/x")
    with (
        FaultServer({}, tls=own.server(ends=-timedelta(days=1))) as server,
        pytest.raises(StoreError, match="a certificate that is no longer valid, or not yet; have it renewed"),
    ):
        opened(f"s3://bucket?endpoint={server.url()}").get("m/x")


@REFUSAL
def test_a_server_without_tls_is_reached_without() -> None:
    with FaultProxy(NOBODY, instead=lambda request: FINE) as server:
        address = f"s3://bucket?endpoint={server.url}"
        with pytest.raises(StoreError, match="does not speak TLS; write http:// in place of https:// in its endpoint"):
            opened(address.replace("http://", "https://")).get("m/x")
        assert opened(address).get("m/x") == b"1"


@pytest.fixture
def mute() -> Iterator[FaultServer]:
    """A server that reads a request and answers nothing."""
    with FaultServer({"/bucket/m/x": silent}) as server:
        yield server


def bucket_of(server: FaultServer) -> str:
    return f"s3://bucket?endpoint={server.url()}"


def test_a_server_that_is_silent_is_not_waited_for_for_ever(mute: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE", timedelta(milliseconds=100))
    cloud = Cloud(parse(bucket_of(mute)), SHORT)
    with pytest.raises(StoreError, match="found no answer in time; check the network") as raised:
        cloud.get("m/x")
    one_sentence(raised.value)
    assert cloud.requests["get"] == SHORT.tries


def test_a_run_that_is_stopped_does_not_wait_for_a_server(mute: FaultServer) -> None:
    """Neither for an answer nor for the next try, which would come after minutes."""
    cloud = Cloud(parse(bucket_of(mute)), Patience(tries=2, pause=300))
    stopped = threading.Event()

    def work() -> None:
        try:
            cloud.get("m/x")
        except cancellation.Cancelled:
            stopped.set()

    with pytest.raises(KeyboardInterrupt):
        _stop_when(lambda: bool(mute.requests), work)
    assert stopped.wait()


def _stop_when(ready: Callable[[], bool], work: Callable[[], object]) -> None:
    """Stop a run, whose work goes on in another thread, at a certain moment."""
    with cancellation.cancellable():
        threading.Thread(target=partial(copy_context().run, work)).start()
        while not ready():
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_a_signal_does_not_wait_for_a_server(mute: FaultServer) -> None:
    program = "import sys\nfrom storage.objects.opening import opened\nopened(sys.argv[1]).get('m/x')\n"
    with subprocess.Popen(
        [sys.executable, "-c", program, bucket_of(mute)], stderr=subprocess.PIPE, text=True
    ) as process:
        while not mute.requests:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        # The server would keep it for ten minutes.
        _, errors = process.communicate()
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.remedies("storage.objects.cloud:_client")
def test_a_forked_process_does_not_use_what_its_parent_has_used(object_storage: ObjectServer) -> None:
    """The library has threads, which the child has not: it would wait for ever, and damage what they share."""
    program = (
        "import os, sys\n"
        "from storage.errors import StoreError\n"
        "from storage.objects.opening import opened\n"
        "objects = opened(sys.argv[1])\n"
        "def child(call):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        try:\n"
        "            call()\n"
        "        except StoreError as error:\n"
        "            print(error, flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "child(objects.probe)\n"
        "objects.probe()\n"
        "child(objects.probe)\n"
        "objects.probe()\n"
        "print('fine')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, object_storage.fresh().address],
        env=os.environ | object_storage.environment | refusals.python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    refused, fine = ended.stdout.splitlines()
    assert "a process that was started, not forked" in refused
    assert fine == "fine"


@pytest.mark.remedies("storage.objects.folder:probe")
def test_a_folder_whose_file_system_replaces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some that reach a network do."""
    with monkeypatch.context() as other:
        other.setattr(os, "link", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))
        with pytest.raises(StoreError, match="it replaces files that exist; choose another store with --store"):
            opened(tmp_path / "one").probe()
    opened(tmp_path / "another").probe()


@pytest.mark.remedies("storage.objects.cloud:probe")
def test_a_server_that_ignores_the_condition_is_refused(
    object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    upstream = parse(at).endpoint
    with (
        FaultProxy(upstream.removeprefix("http://"), without="if-none-match") as proxy,
        pytest.raises(StoreError, match="that ignores If-None-Match .* or choose another store with --store"),
    ):
        opened(at.replace(upstream, proxy.url)).probe()
    opened(at).probe()
    opened(str(tmp_path)).probe()


@REFUSAL
@pytest.mark.parametrize("answer", [error(501, "NotImplemented"), error(400, "InvalidArgument")])
def test_a_server_that_refuses_conditions_is_refused(
    answer: Answer, object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    upstream = parse(at).endpoint
    with FaultProxy(
        upstream.removeprefix("http://"),
        instead=lambda request: answer if "if-none-match" in request.headers else None,
    ) as proxy:
        with pytest.raises(StoreError, match="or choose another store with --store") as raised:
            opened(at.replace(upstream, proxy.url)).probe()
        assert str(answer.status) in one_sentence(raised.value)
    opened(at).probe()


@pytest.mark.remedies("storage.objects.cloud:probe:2")
def test_a_server_whose_listings_lag_is_refused(object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    upstream = parse(at).endpoint
    empty = Answer(200, b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
    with (
        FaultProxy(
            upstream.removeprefix("http://"),
            instead=lambda request: empty if "list-type=2" in request.path else None,
        ) as proxy,
        pytest.raises(StoreError, match="found 0 of 1 after the creation .* choose another store with --store"),
    ):
        opened(at.replace(upstream, proxy.url)).probe()
    opened(at).probe()


@REFUSAL
def test_what_others_keep_there_is_left_to_them(object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that no store can have ends a listing; a prefix of one's own has none."""
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    upstream = parse(at).endpoint
    path = f"/{parse(at).bucket}/{parse(at).prefix}/m//x"
    with FaultProxy(upstream.removeprefix("http://")) as proxy:
        proxy.answer(Request("PUT", path, {"host": "h", "content-length": "0"}, b""))
    with pytest.raises(StoreError, match="an object whose key no store has, .*; remove it, or give the store a prefix"):
        list(opened(at).walk(""))
    place, mark, query = at.partition("?")
    assert list(opened(f"{place}/own{mark}{query}").walk("")) == []


def test_folders_that_a_cloud_shows_are_no_objects(
    object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Web pages of clouds keep a folder as an empty object whose key ends with a slash."""
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    address = parse(at)
    objects = opened(at)
    objects.put("m/x", b"1")
    with FaultProxy(address.endpoint.removeprefix("http://")) as proxy:
        for key in ("", "m/"):
            path = f"/{address.bucket}/{address.prefix}/{key}"
            proxy.answer(Request("PUT", path, {"host": "h", "content-length": "0"}, b""))
    assert [found.key for found in objects.walk("")] == ["m/x"]
    assert objects.list("").objects == ()
    assert objects.list("").folders == ("m",)
    assert [found.key for found in objects.list("m").objects] == ["m/x"]


def test_objects_are_removed_one_by_one_where_several_cannot_be(
    object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    at = object_storage.fresh().address
    upstream = parse(at).endpoint
    with FaultProxy(
        upstream.removeprefix("http://"),
        instead=lambda request: error(501, "NotImplemented") if request.method == "POST" else None,
    ) as proxy:
        objects = opened(at.replace(upstream, proxy.url))
        objects.put("a", b"1")
        objects.put("b", b"1")
        objects.delete(["a", "b", "c"])
        assert list(objects.walk("")) == []
