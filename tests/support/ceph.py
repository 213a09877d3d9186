"""The smallest cluster of Ceph: one monitor, one object store in memory, and the gateway that speaks S3."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import Popen
from uuid import uuid4

import pytest

from tests.support.servers import START_SECONDS, free_port, running

_SETTINGS = """
[global]
fsid = {cluster}
mon_host = v2:127.0.0.1:{monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
run_dir = {folder}
crash_dir = {folder}
admin_socket =
log_file =
mon_cluster_log_file =
osd_objectstore = memstore
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_class_load_list = *
osd_class_default_list = *
mon_allow_pool_size_one = true
[client.rgw.a]
# Without the option, an answer to a read waits 40 ms for an acknowledgement.
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/gateway
debug_rgw = 0
"""
_KEYRING = """
[mon.]
key = {key}
caps mon = "allow *"
[client.admin]
key = {key}
caps mon = "allow *"
caps osd = "allow *"
[osd.0]
key = {key}
caps mon = "allow profile osd"
caps osd = "allow *"
[client.rgw.a]
key = {key}
caps mon = "allow rwx"
caps osd = "allow rwx"
"""


@contextmanager
def gateway(folder: Path, port: int, user: str, secret: str) -> Iterator[Popen[bytes]]:
    """Run a cluster that has one user of S3; its files are in `folder`, and it is ready for requests at `port`."""
    if not all(map(shutil.which, ("ceph-mon", "ceph-osd", "radosgw"))):
        pytest.skip("needs Ceph: on Debian, apt-get install ceph-mon ceph-osd radosgw")
    cluster, disk, monitor = uuid4(), uuid4(), free_port()
    settings = folder / "ceph.conf"
    settings.write_text(_SETTINGS.format(folder=folder, cluster=cluster, monitor=monitor, port=port), encoding="utf-8")
    environment = {**os.environ, "CEPH_CONF": str(settings), "HOME": str(folder), "LC_ALL": "C.UTF-8"}

    def call(command: str) -> str:
        done = subprocess.run(
            command.split(), env=environment, cwd=folder, capture_output=True, text=True, timeout=START_SECONDS
        )
        assert done.returncode == 0, (command, done.stderr[-2000:])
        return done.stdout.strip()

    def serve(command: str) -> AbstractContextManager[Popen[bytes]]:
        words = command.split()
        return running([*words, "-d"], environment, folder, folder / f"{words[0]}.log")

    (folder / "osd").mkdir()
    (folder / "keyring").write_text(_KEYRING.format(key=call("ceph-authtool --gen-print-key")), encoding="utf-8")
    call(f"monmaptool --create --fsid {cluster} --addv a [v2:127.0.0.1:{monitor}] monmap")
    call("ceph-mon --mkfs -i a --monmap monmap --keyring keyring")
    with serve("ceph-mon -i a"):
        call(f"ceph osd new {disk}")
        call(f"ceph-osd --mkfs -i 0 --osd-uuid {disk}")
        with serve("ceph-osd -i 0"), serve("radosgw -n client.rgw.a") as process:
            call(f"radosgw-admin user create --uid=t --display-name=t --access-key={user} --secret-key={secret}")
            yield process
