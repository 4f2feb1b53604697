"""Which network addresses a webhook may reach. No network is touched here."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

__all__ = ["Address", "Network", "in_networks", "is_public", "parse_address", "parse_networks"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# ``is_global`` of Python 3.11 calls these global, and they are not the public internet.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(n)
    for n in (
        "168.63.129.16/32",  # Azure's wire server, from inside any of its machines
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.0.0.0/24",  # IETF assignments
        "224.0.0.0/4",  # multicast
        "169.254.0.0/16",  # link-local, cloud metadata
    )
)
# Only 2000::/3 is handed out for global unicast (IANA). Outside of it lie ::/96 and ::ffff:0:0/96 (IPv4 in
# disguise), 64:ff9b::/96 and 64:ff9b:1::/48 (NAT64), fec0::/10 (site-local), 5f00::/16 (SRv6), ff00::/8.
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(n)
    for n in (
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2001::/23",  # IETF assignments, Teredo among them
        "3fff::/20",  # documentation (RFC 9637)
    )
)


def is_public(address: Address) -> bool:
    """Is it a unicast address of the public internet, reached as itself (no tunnel, no translation)?"""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in n for n in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    return address.is_global and address in _GLOBAL_UNICAST_6 and not any(address in n for n in _NOT_PUBLIC_6)


def in_networks(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address.version == n.version and address in n for n in networks)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Comma-separated CIDRs, as in ``webhook_allow_networks``. Raises ValueError naming the one at fault."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_address(text: str) -> Address:
    """An address as ``getaddrinfo`` writes it. Raises ValueError."""
    return ip_address(text)
