"""The site that `idxflow up` starts: what it refuses to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flows.service.site_process import SitePlan, Started
from storage.errors import ConfigError
from tests.support.servers import free_port


@pytest.mark.remedies("flows.service.site_process:_token")
@pytest.mark.parametrize("auth", [None, "me:too-short"])
def test_other_machines_need_a_password_that_cannot_be_guessed(tmp_path: Path, auth: str | None):
    site = Started(tmp_path)
    with pytest.raises(ConfigError, match="use a longer one, or add --no-site"):
        site.start(SitePlan("0.0.0.0"), 0, auth, {})
    assert (site.pid, site.url) == (None, None)
    site.stop(1)


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port := free_port()))
        other.listen()
        with pytest.raises(ConfigError, match="Address already in use; choose another with --site-port or --host"):
            Started(tmp_path).start(SitePlan("127.0.0.1"), port, None, {})
