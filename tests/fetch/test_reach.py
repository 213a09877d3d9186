"""How far away an address is, in every spelling that a URL, a resolver or a tunnel may give it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import httpx
import pytest

from tasks.sources.reach import reach_of, reach_of_host

METADATA = [
    "169.254.169.254",  # AWS, Azure, DigitalOcean, Google Cloud, Hetzner, IBM, OpenStack, Oracle Cloud, Vultr
    "169.254.170.2",  # AWS: credentials of ECS tasks
    "169.254.170.23",  # AWS: EKS Pod Identity Agent
    "169.254.0.23",  # Tencent Cloud
    "169.254.42.42",  # Scaleway
    "100.100.100.200",  # Alibaba Cloud
    "168.63.129.16",  # Azure
    "192.0.0.192",  # Oracle Cloud Classic
]
METADATA_6 = [
    "fe80::a9fe:a9fe",  # OpenStack
    "fd00:ec2::254",  # AWS
    "fd00:ec2::23",  # AWS: EKS Pod Identity Agent
    "fd20:ce::254",  # Google Cloud
    "fd00:c1::a9fe:a9fe",  # Oracle Cloud
    "fd00:42::42",  # Scaleway
    "fd00:a9fe:a9fe::1",  # Akamai (Linode)
    "fd00:100::100:200",  # Alibaba Cloud
]


def spelled(address: str) -> Iterator[str]:
    """Yield the spellings of an IPv4 address that resolvers take (inet_aton(3)), as hosts of URLs."""
    number = int(IPv4Address(address))
    first, second, third, fourth = number.to_bytes(4)
    yield from (address, f"{address}.", str(number), hex(number), hex(number).upper().replace("X", "x"), f"0{number:o}")
    yield f"{first}.{second}.{third << 8 | fourth}"
    yield f"{first}.{number & 0xFFFFFF}"
    yield f"0{first:o}.0{second:o}.0{third:o}.0{fourth:o}"
    yield f"{first:#x}.{second:#x}.{third:#x}.{fourth:#x}"
    yield f"{first:#06x}.0{second:04o}.{third}.{fourth}"


def embedded(address: str) -> Iterator[str]:
    """Yield the IPv6 addresses that an IPv4 one is inside of."""
    number = int(IPv4Address(address))
    high, low = number >> 16, number & 0xFFFF
    yield f"::ffff:{address}"
    yield f"::{address}"
    yield f"::ffff:0:{address}"
    yield f"64:ff9b::{address}"
    yield f"2002:{high:x}:{low:x}::1"
    yield f"2001:0:{high:x}:{low:x}::1"
    yield f"2001:0:808:808::{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"
    yield f"2001:db8::5efe:{high:x}:{low:x}"
    yield f"2606:2800::200:5efe:{high:x}:{low:x}"
    # NAT64 for local use, with a prefix of 48, 56, 64 and 96 bits (RFC 6052, 2.2).
    first, second, third, fourth = number.to_bytes(4)
    yield f"64:ff9b:1:{first:02x}{second:02x}:{third:x}:{fourth:02x}00::"
    yield f"64:ff9b:1:{first:x}:{second:x}:{third:02x}{fourth:02x}::"
    yield f"64:ff9b:1:0:{first:x}:{second:02x}{third:02x}:{fourth:02x}00:0"
    yield f"64:ff9b:1::{address}"


@pytest.mark.parametrize("address", METADATA)
def test_no_spelling_of_a_metadata_service_is_asked(address: str):
    for host in spelled(address):
        assert reach_of_host(host) == "forbidden", host
        # A URL of some of them is not valid for httpx, and asks nobody.
        with suppress(httpx.InvalidURL):
            assert reach_of_host(httpx.URL(f"http://{host}/latest").host) == "forbidden", host
    for inside in embedded(address):
        assert reach_of(inside) == reach_of(IPv6Address(inside).exploded) == reach_of(f"{inside}%eth0") == "forbidden"
        assert reach_of_host(httpx.URL(f"http://[{inside}]/latest").host) == "forbidden", inside


@pytest.mark.parametrize("address", METADATA_6)
def test_no_spelling_of_a_metadata_service_over_ipv6_is_asked(address: str):
    for host in (address, address.upper(), IPv6Address(address).exploded, f"{address}%eth0", f"{address}%25eth0"):
        assert reach_of_host(host) == "forbidden", host
        assert reach_of_host(httpx.URL(f"http://[{host}]/").host) == "forbidden", host


@pytest.mark.parametrize(
    "name", ["metadata", "metadata.google.internal", "Metadata.Goog.", "instance-data", "metadata.tencentyun.com"]
)
def test_the_names_of_metadata_services_are_known_where_only_a_proxy_looks_them_up(name: str):
    assert reach_of_host(name) == "forbidden"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "100.64.0.1", "172.16.0.1", "0.0.0.0"])
def test_an_address_of_this_network_is_as_near_in_every_spelling(address: str):
    assert {reach_of_host(host) for host in spelled(address)} == {"own"}
    assert {reach_of(inside) for inside in embedded(address)} == {"own"}


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("93.184.216.34", "public"),
        ("2606:2800:220:1::1", "public"),
        ("::ffff:93.184.216.34", "public"),
        ("64:ff9b::5db8:d822", "public"),
        ("::", "own"),
        ("::1", "own"),
        ("fd12:3456::1", "own"),
        ("fec0::1", "own"),
        ("255.255.255.255", "own"),
        # Multicast; 6to4 and compatible addresses, which lead nowhere any more; what Python calls global until 3.11.10
        # and 3.12.4, or still.
        ("224.0.0.1", "own"),
        ("ff02::1", "own"),
        ("2002:5db8:d822::1", "own"),
        ("::93.184.216.34", "own"),
        ("64:ff9b:1::5db8:d822", "own"),
        ("192.0.0.9", "own"),
        ("3fff::1", "own"),
        ("5f00::1", "own"),
    ],
)
def test_addresses_of_this_network_are_known(address: str, reach: str):
    assert reach_of(address) == reach


def test_a_name_is_no_address():
    with pytest.raises(ValueError, match="files.example"):
        reach_of("files.example")
    assert [reach_of_host(name) for name in ("files.example", "localhost", "a.LOCALHOST.")] == ["public", "own", "own"]
