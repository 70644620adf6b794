"""CON-32: what a certificate is for, and what a local CA may certify."""

from __future__ import annotations

import ipaddress
import socket

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.trust.names import (
    LOCAL_NETWORKS,
    MAX_NAMES,
    Names,
    could_be_top_level,
    is_host_name,
    machine_names,
    realm_for,
)

ADDRESSES = st.ip_addresses()


class NamesTest(unittest.SynchronousTestCase):
    def test_machine(self) -> None:
        """CON-32: this machine's certificate is for localhost, its addresses, NAME.local."""
        names = machine_names(["M32-Server.local."])
        label = socket.gethostname().split(".")[0].lower()
        self.assertLessEqual({"localhost", "m32-server.local", f"{label}.local"}, set(names.hosts))
        self.assertLessEqual({"127.0.0.1", "::1"}, {str(one) for one in names.addresses})

    def test_strange_host_names(self) -> None:
        """CON-32: a machine may be called anything; only host names get into certificates."""
        for name in ("", "my laptop", "a..b", "-x", "x-", "a" * 64, "é", "a/b", "*.local", "a\n"):
            self.assertFalse(is_host_name(name), name)
        for name in ("vm", "my_laptop", "foh-1.example.com", "a" * 63, "3com"):
            self.assertTrue(is_host_name(name), name)

    @given(st.lists(st.text(max_size=30)), st.lists(ADDRESSES, max_size=MAX_NAMES * 2))
    def test_bounded_sorted_stable(
        self,
        hosts: list[str],
        addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    ) -> None:
        """CON-32: whatever a machine is called, its names are bounded and always the same."""
        names = Names.of(hosts, addresses)
        self.assertEqual(names, Names.of(reversed(hosts), reversed(addresses)))
        self.assertLessEqual(len(names.hosts), MAX_NAMES)
        self.assertLessEqual(len(names.addresses), MAX_NAMES)
        self.assertEqual(names, Names.of(names.hosts, names.addresses))

    def test_local_addresses_are_kept_first(self) -> None:
        """CON-32: with more addresses than fit, those of the local network stay."""
        public = [ipaddress.ip_address("2001:db8::") + n for n in range(MAX_NAMES)]
        names = Names.of([], [*public, "192.168.1.20"])
        self.assertEqual(len(names.addresses), MAX_NAMES)
        self.assertIn(ipaddress.ip_address("192.168.1.20"), names.addresses)


class RealmTest(unittest.SynchronousTestCase):
    def test_not_the_internet(self) -> None:
        """CON-32: the CA may not certify sites of the Internet, only local names and networks."""
        realm = realm_for(Names.of(["localhost", "foh-1"], ["192.168.1.20"]))
        inside = Names.of(
            ["localhost", "m32.local", "foh-1", "x.home.arpa"],
            ["127.0.0.1", "10.9.8.7", "172.31.0.1", "192.168.77.1", "169.254.1.1", "fd00::9"],
        )
        outside = Names.of(
            ["example.com", "foh-2", "local.com", "xlocal"],
            ["8.8.8.8", "172.32.0.1", "2001:db8::1"],
        )
        both = Names.of(inside.hosts + outside.hosts, inside.addresses + outside.addresses)
        self.assertEqual(realm.split(both), (inside, outside))

    def test_public_addresses_of_this_machine(self) -> None:
        """CON-32: a machine on public addresses gets them, IPv6 with the /64 it changes in."""
        realm = realm_for(Names.of([], ["203.0.113.7", "2001:db8:1:2::5"]))
        asked = Names.of([], ["203.0.113.7", "203.0.113.8", "2001:db8:1:2::77", "2001:db8:1:3::"])
        covered, _ = realm.split(asked)
        self.assertEqual(covered.texts(), ("203.0.113.7", "2001:db8:1:2::77"))

    def test_no_top_level_domain(self) -> None:
        """CON-32: a machine called ``studio`` does not let the CA certify all of ``*.studio``."""
        for name in ("studio", "live", "band", "com", "xn--p1ai"):
            self.assertTrue(could_be_top_level(name), name)
            self.assertNotIn(name, realm_for(Names.of([name])).hosts)
        for name in ("foh-1", "m32", "foh.example.com"):
            self.assertIn(name, realm_for(Names.of([name])).hosts)

    @given(st.lists(ADDRESSES, max_size=20))
    def test_realm_covers_whom_it_was_made_for(
        self, addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]
    ) -> None:
        """CON-32: every address the CA was made with can be certified."""
        names = Names.of(["localhost"], addresses)
        realm = realm_for(names)
        self.assertEqual(realm.split(names), (names, Names()))
        self.assertLessEqual(set(LOCAL_NETWORKS), set(realm.networks))
