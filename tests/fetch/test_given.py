"""What a user may give as a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import ConfigError, SourceUnavailable
from storage.store import Store
from tasks.sources.download import redacted
from tasks.sources.origins import check_source
from tests.fetch.helpers import BODY, FILE, PATH, SECRET, SHA256, SPEC, UNPINNED, folder, get, leftovers
from tests.support.faultserver import FaultServer, good


def test_no_source_at_all(store: Store, dataset: Dataset):
    for spec in (SPEC, UNPINNED):
        with pytest.raises(SourceUnavailable, match="expected a source in the manifest; found none"):
            get(store, dataset, spec=spec)


@pytest.mark.parametrize(
    ("source", "spec", "words"),
    [
        ("s3://bucket/mnist", SPEC, "found 's3://bucket/mnist'"),
        ("javascript:alert(1)", SPEC, "cannot be read"),
        ("gopher://host/", SPEC, "found 'gopher://host/'"),
        ("data:text/plain,x", SPEC, "cannot be read"),
        ("localhost:4200/api", SPEC, "cannot be read"),
        (f"https:u:{SECRET}@host/", SPEC, "cannot be read"),
        (f"https://u:{SECRET}/x@host/", SPEC, "cannot be read"),
        (f'"https://u:{SECRET}@host/"', SPEC, "cannot be read"),
        ("a\0b", SPEC, "NUL"),
        (f"ftp://u:{SECRET}@host/", SPEC, "found 'ftp://host/'"),
        (f"http://u:{SECRET}@[::1/", SPEC, "cannot be read"),
        (f"https://u:{SECRET}@host:99999/", SPEC, "http"),
        (f"https:///{FILE}", SPEC, "http"),
        ("file://server/share", SPEC, "found 'file://server/share'"),
        (f"https://u:{SECRET}@host/mnist?{SECRET}", UNPINNED, "expected archives.test-images.sha256"),
        ("https://host/mnist", UNPINNED, "or give a folder as --source"),
    ],
)
def test_a_source_that_cannot_be_one_is_wrong_usage(
    store: Store, dataset: Dataset, source: str, spec: ArchiveSpec, words: str
):
    with pytest.raises(ConfigError) as raised:
        get(store, dataset, spec=spec, source=source)
    assert words in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_base_address_keeps_its_query_and_gets_the_file_name(store: Store, dataset: Dataset):
    with FaultServer({f"/mnist{PATH}": good(BODY)}) as server:
        get(store, dataset, source=server.url("/mnist/?signature=x"))
        assert server.requests[0].path == f"/mnist{PATH}?signature=x"


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "file://localhost{}", "{}"])
def test_a_folder_may_be_given_as_url(store: Store, dataset: Dataset, tmp_path: Path, form: str):
    (tmp_path / "with space").mkdir()
    place = folder(tmp_path / "with space")
    name = str(place).replace(" ", "%20") if "file" in form else str(place)
    assert get(store, dataset, source=form.format(name)).record.sha256 == SHA256


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:pw@host:8443/a/b.gz?sig=1#x", "https://host:8443/a/b.gz"),
        ("https://u@se@host/a", "https://host/a"),
        ("http://host/a", "http://host/a"),
        ("http://[::1/pw", "an address that cannot be read"),
        ("https://user:pa/ss@host/a", "an address that cannot be read"),
        ("https://user:p?ss@host/a", "an address that cannot be read"),
        ("https:user:pw@host", "an address that cannot be read"),
        ("user:pw@host", "an address that cannot be read"),
    ],
)
def test_redacted(url: str, expected: str):
    assert redacted(url) == expected


@pytest.mark.parametrize("source", ["file:///etc/passwd", "/etc/passwd", "file:///etc", "file:///dev/zero"])
def test_a_file_of_this_machine_is_not_an_archive_and_not_shown(store: Store, dataset: Dataset, source: str):
    for spec in (SPEC, UNPINNED):
        with pytest.raises(SourceUnavailable, match=r"it is a (file|device), not a folder|there is no t10k") as raised:
            get(store, dataset, spec=spec, source=source)
        assert "root:" not in str(raised.value)
    assert leftovers(store) == []


def test_a_folder_whose_name_looks_like_an_address_is_written_with_a_dot(
    store: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder(tmp_path).rename(tmp_path / "mine:2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        get(store, dataset, source="mine:2")
    assert get(store, dataset, source="./mine:2").record.sha256 == SHA256


OPEN = ["/data/a@b?c#d", "data", "./a@b", "a:b@c", "~/x", "https://host", "http://127.0.0.1:8000/a/b/", "file:///data"]
CLOSED = [
    f"https://u:{SECRET}@host/",
    f"https://{SECRET}@host",
    f"https://host/?token={SECRET}",
    f"https://host/#{SECRET}",
    f"HTTPS://u:{SECRET}@host/",
    f" https://u:{SECRET}@host/",
    f"https://host/\n?{SECRET}",
    f"file:///data?{SECRET}",
]


@pytest.mark.parametrize("source", OPEN)
def test_a_source_without_credentials_may_be_a_parameter(source: str):
    check_source(source)


@pytest.mark.parametrize("source", CLOSED)
def test_a_source_with_credentials_may_not_be_a_parameter(source: str):
    with pytest.raises(ConfigError, match="in the environment variable IDXFLOW_SOURCE instead") as raised:
        check_source(source)
    assert SECRET not in str(raised.value)
