"""Addresses of object storage: what is one, and what is refused without repeating a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.errors import ConfigError
from storage.objects.address import OPEN_STORE, Address, is_address, parse, server_of
from storage.objects.cloud import Cloud
from storage.objects.folder import Folder
from storage.objects.opening import opened
from storage.store import store_address

SECRET = "kXVw2hIiDf9Zq"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket", Address("s3", "bucket")),
        ("s3://bucket/", Address("s3", "bucket")),
        ("gs://my_bucket.example.org/a/b", Address("gs", "my_bucket.example.org", "a/b")),
        ("az://container/a b/é%20/", Address("az", "container", "a b/é%20")),
        ("S3://bucket/A", Address("s3", "bucket", "A")),
        (
            "s3://bucket/p?endpoint=http://127.0.0.1:9000&region=eu-west-1",
            Address("s3", "bucket", "p", "http://127.0.0.1:9000", "eu-west-1"),
        ),
        (
            "s3://bucket?region=auto&endpoint=https%3A%2F%2Fhost.example%2Fstorage%2Fv1%2Fs3%2F",
            Address("s3", "bucket", "", "https://host.example/storage/v1/s3", "auto"),
        ),
        ("s3://bucket/p?endpoint=https://[::1]:9000", Address("s3", "bucket", "p", "https://[::1]:9000")),
        ("s3://bucket/p?", Address("s3", "bucket", "p")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert is_address(text)
    assert parse(text) == address
    assert parse(str(address)) == address


def test_the_text_of_an_address_is_always_the_same() -> None:
    texts = ("s3://b/p?region=r&endpoint=https://h:1", "S3://b/p/?endpoint=https%3A//h:1/&region=r")
    assert {str(parse(text)) for text in texts} == {"s3://b/p?endpoint=https://h:1&region=r"}
    assert parse(texts[0]).where("m/x.json") == "s3://b/p/m/x.json"
    assert parse("s3://b").where("m/x.json") == "s3://b/m/x.json"
    assert parse("s3://b").where() == "s3://b"


@pytest.mark.parametrize(
    "text", ["", "store", "/s3://x", "./s3:/x", "s3", "s3:x", "http://bucket", "file:///x", "s4://x"]
)
def test_all_else_is_a_path(text: str) -> None:
    assert not is_address(text)
    assert isinstance(opened(text), Folder)


@pytest.mark.remedies("storage.objects.address:_refuse")
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3:/bucket/" + SECRET, "another form"),
        (f"s3:///{SECRET}", "no bucket"),
        (f"s3://?endpoint={SECRET}", "no bucket"),
        (f"gs://user:{SECRET}@bucket/x", "a user name or a password"),
        (f"s3://{SECRET}@bucket", "a user name or a password"),
        (f"s3://bucket?endpoint=https://user:{SECRET}@host", "a user name or a password"),
        (f"s3://bucket/x#{SECRET}", "a fragment"),
        (f"s3://bucket?region=x#{SECRET}", "a fragment"),
        (f"s3://bucket?regio={SECRET}", "`regio` after"),
        (f"s3://bucket?{SECRET}=1", "something else after"),
        ("s3://bucket/prefix ?region=x", "a space at the beginning or the end"),
        (f"s3://host:9000/{SECRET}", "a character that no name of a bucket has"),
        (f"s3://../{SECRET}", "a character that no name of a bucket has"),
        (f"s3://bucket/../{SECRET}", "an empty part"),
        (f"s3://bucket/a/./{SECRET}", "an empty part"),
        (f"s3://bucket/a//{SECRET}", "an empty part"),
        (f"s3://bucket//{SECRET}", "an empty part"),
        (f"s3://bucket/{SECRET}//", "an empty part"),
        (f"s3://bucket/a\n{SECRET}", "a control character"),
        (f"s3://bucket/a\x00{SECRET}", "a control character"),
        (f"s3://bucket/\u202e{SECRET}", "a control character"),
        (f"s3://bucket?aws_secret_access_key={SECRET}", "something else after `?`"),
        (f"s3://bucket?X-Amz-Signature={SECRET}&region=x", "something else after `?`"),
        (f"s3://bucket?{SECRET}", "something else after `?`"),
        (f"s3://bucket?region=a&region={SECRET}", "something else after `?`"),
        (f"gs://bucket?region={SECRET}", "which only an address of s3:// can have"),
        (f"az://bucket?endpoint={SECRET}", "which only an address of s3:// can have"),
        (f"s3://bucket?endpoint={SECRET}", "an endpoint that is not the URL of a server"),
        (f"s3://bucket?endpoint=ftp://{SECRET}", "an endpoint that is not the URL of a server"),
        (f"s3://bucket?endpoint=https://h/a/../{SECRET}?x", "an endpoint that is not the URL of a server"),
        (f"s3://bucket?endpoint=https://h:99999/{SECRET}", "an endpoint that is not the URL of a server"),
        (f"s3://bucket?endpoint=https://h:0/{SECRET}", "an endpoint that is not the URL of a server"),
        ("s3://bucket?endpoint=", "an endpoint that is not the URL of a server"),
        (f"s3://bucket?region=%0A{SECRET}", "a region with a character"),
        ("s3://bucket?region=", "something else|a region with a character"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secret(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found) as raised:
        parse(text)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)
    # The form that the message gives is one.
    form = str(raised.value).partition("object storage, ")[2].partition(",")[0].partition(";")[0]
    assert isinstance(opened(form), Cloud)


def test_a_path_that_pathlib_made_of_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="another form"):
        opened(Path("s3://bucket/x"))


def test_what_a_variable_says_of_the_server_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_of(parse("s3://b")) == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://user:{SECRET}@host:9000/{SECRET}?{SECRET}")
    assert server_of(parse("s3://b")) == "https://host:9000"
    assert server_of(parse("s3://b?endpoint=http://other")) == "http://other"
    assert server_of(parse("az://b")) == ""


@pytest.mark.remedies("storage.objects.opening:opened")
def test_object_storage_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"-m pip install 'idxflow\[cloud\]'"):
            opened("s3://bucket")
        assert isinstance(opened("a folder"), Folder)
    assert isinstance(opened("s3://bucket"), Cloud)


@pytest.mark.parametrize(
    ("store", "is_open"),
    [
        ("/srv/store", True),
        ("/srv/me@home/what?x=1", True),
        ("s3://bucket/prefix", True),
        ("s3://bucket/prefix?endpoint=https://host:9000&region=here", True),
        ("az://container", True),
        ("s3://key:secret@bucket/prefix", False),
        ("S3://key@bucket", False),
        ("s3://bucket?endpoint=https://key:secret@host", False),
        ("gs://bucket?token=secret", False),
        ("s3://bucket?region=here&secret_access_key=secret", False),
    ],
)
def test_a_store_that_is_a_parameter_of_a_run_shows_no_secret(store: str, is_open: bool) -> None:
    assert bool(re.search(OPEN_STORE, store)) is is_open


def test_a_space_around_an_address_does_not_make_it_a_path() -> None:
    assert store_address(" s3://bucket/x\n") == "s3://bucket/x"
    assert store_address("/a b ") == "/a b "
