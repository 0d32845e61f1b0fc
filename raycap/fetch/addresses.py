"""Decides which IP addresses a URL may lead to: those of the public Internet."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# The IANA special-purpose registries. They are written out because what `ipaddress` calls global
# differs between Python versions. Without this table a URL in a list of unknown origin could read
# a router, a cloud's metadata or the node's own ports.
_KINDS = {
    ip_network(network): kind
    for network, kind in {
        "0.0.0.0/8": "an unspecified address",
        "10.0.0.0/8": "a private address",
        "100.64.0.0/10": "a carrier-grade NAT address",
        "127.0.0.0/8": "a loopback address",
        # Azure's; global by its number only.
        "168.63.129.16/32": "a cloud provider's internal address",
        "169.254.0.0/16": "a link-local address",
        "172.16.0.0/12": "a private address",
        "192.0.0.0/24": "a reserved address",
        "192.0.2.0/24": "a reserved address",
        "192.88.99.0/24": "a reserved address",
        "192.168.0.0/16": "a private address",
        "198.18.0.0/15": "a reserved address",
        "198.51.100.0/24": "a reserved address",
        "203.0.113.0/24": "a reserved address",
        "224.0.0.0/4": "a multicast address",
        "240.0.0.0/4": "a reserved address",
        "::/128": "an unspecified address",
        "::1/128": "a loopback address",
        "2001::/23": "a reserved address",  # Teredo among others
        "2001:db8::/32": "a reserved address",
        "2002::/16": "a 6to4 address",  # reaches any IPv4 address
        "3fff::/20": "a reserved address",
        "fc00::/7": "a private address",
        "fe80::/10": "a link-local address",
        "ff00::/8": "a multicast address",
    }.items()
}
_PUBLIC_IPV6 = ip_network("2000::/3")  # all that is assigned as global unicast so far
_NAT64 = ip_network("64:ff9b::/96")  # public IPv4 hosts, seen from a network with IPv6 only


def why_refused(address: str) -> str:
    """Returns why no connection may be made to `address`, "" if it is public."""
    real = _unwrapped(ip_address(address))
    for network, kind in _KINDS.items():
        if real in network:
            return kind
    return "" if real.version == 4 or real in _PUBLIC_IPV6 else "a reserved address"


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside an IPv4-mapped or NAT64 address, else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
