"""Classify addresses: on the public internet, in this machine's own network, or forbidden."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

Reach = Literal["public", "own", "forbidden"]
"""`forbidden`: link-local, or a cloud's metadata service, which hands out the credentials of the machine."""

METADATA = tuple(
    ip_network(text)
    for text in (
        "100.100.100.200/32",  # Alibaba Cloud: ECS documentation, "View instance metadata"
        "fd00:100::100:200/128",  # the same over IPv6
        "168.63.129.16/32",  # Azure: learn.microsoft.com, "What is IP address 168.63.129.16?"
        "192.0.0.192/32",  # Oracle Cloud Classic: "Retrieving Instance Metadata"
        "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud: the endpoint in its SDK for Python
        "fd00:ec2::/32",  # AWS: EC2 user guide, "Access instance metadata"; EKS user guide, "Pod Identity Agent"
        "fd20:ce::254/128",  # Google Cloud: "View and query VM metadata"
        "fd00:42::42/128",  # Scaleway: cloud-init's documentation of its data source
        "fd00:a9fe:a9fe::1/128",  # Akamai (Linode): "Metadata service API"
    )
)
"""Metadata services that are not link-local, unlike those of AWS, Azure, DigitalOcean, Google, OpenStack, Tencent, …"""
METADATA_NAMES = ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "metadata.tencentyun.com")
"""Host names of metadata services. Without a proxy, any other name for them is recognised by its address."""

_IPV4_IN_IPV6 = (ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"))
"""Other notations of an IPv4 address: mapped (RFC 4291, 2.5.5.2) and NAT64 (RFC 6052, 2.1)."""
_NOT_PUBLIC = tuple(
    # Python counts these as global before 3.11.10, 3.12.4 and 3.13 (python/cpython#113171), or still does.
    ip_network(text)
    for text in ("192.0.0.0/24", "64:ff9b:1::/48", "2002::/16", "3fff::/20", "5f00::/16")
)


def reach_of(address: str) -> Reach:
    """Classify an IP address; IPv4 in any notation, such as `127.1`, `2130706433`, `0x7f000001`.

    An address that embeds another one gets the more restricted class of the two.

    Raises:
        ValueError: it is a name, not an address.
    """
    with suppress(OSError):
        address = socket.inet_ntoa(socket.inet_aton(address))
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return _reach(ip)
    inner = [_reach(embedded) for embedded in _inside(int(ip))]
    reaches = inner if any(ip in network for network in _IPV4_IN_IPV6) else [_reach(ip), *inner]
    return next(reach for reach in _NEAREST_FIRST if reach in reaches)


def reach_of_host(host: str, of_address: Callable[[str], Reach] = reach_of) -> Reach:
    """Classify the host of a URL by its name or address alone, without a DNS lookup."""
    name = host.rstrip(".").lower()
    try:
        return of_address(name)
    except ValueError:
        if name in METADATA_NAMES:
            return "forbidden"
        return "own" if name == "localhost" or name.endswith(".localhost") else "public"


_NEAREST_FIRST: tuple[Reach, ...] = ("forbidden", "own", "public")


def _reach(ip: IPv4Address | IPv6Address) -> Reach:
    if ip.is_link_local or any(ip in network for network in METADATA):
        return "forbidden"
    special = ip.is_multicast or ip.is_reserved or (isinstance(ip, IPv6Address) and ip.is_site_local)
    public = ip.is_global and not special and not any(ip in network for network in _NOT_PUBLIC)
    return "public" if public else "own"


def _inside(ip: int) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address may embed."""

    def at(bit: int) -> IPv4Address:
        return IPv4Address(ip >> (96 - bit) & 0xFFFFFFFF)

    start, low = ip >> 96, at(96)
    # Compatible (RFC 4291, 2.5.5.1), mapped, translated (RFC 2765, 2.1), but neither `::` nor `::1`; NAT64.
    if ip >> 32 in (0, 0xFFFF, 0xFFFF << 16, 0x64FF9B << 64) and ip > 1:
        yield low
    # NAT64 for local use (RFC 8215), with any of the prefixes that fit (RFC 6052, 2.2); bits 64 to 71 are left out.
    if ip >> 80 == 0x64FF9B0001:
        rest = ip >> 64 << 56 | ip & (1 << 56) - 1
        yield from (low, *(IPv4Address(rest >> (88 - bit) & 0xFFFFFFFF) for bit in (48, 56, 64)))
    # 6to4 (RFC 3056).
    if start >> 16 == 0x2002:
        yield at(16)
    # Teredo (RFC 4380, 4): the server, and the client inverted.
    if start == 0x20010000:
        yield from (at(32), IPv4Address(int(low) ^ 0xFFFFFFFF))
    # ISATAP (RFC 5214, 6.1).
    if ip >> 32 & 0xFDFFFFFF == 0x5EFE:
        yield low
