from __future__ import annotations

import ipaddress
import random
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.truncate_ip import TruncateIp

TEXT = pa.string()


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            pytest.param("192.0.2.77", "192.0.2.0", id="IPv4"),
            pytest.param("0.0.0.0", "0.0.0.0", id="lowest"),
            pytest.param("255.255.255.255", "255.255.255.0", id="highest"),
            pytest.param("2001:db8:1:2:3:4:5:6", "2001:db8:1::", id="IPv6"),
            pytest.param("2001:0DB8:0001:0002::0005", "2001:db8:1::", id="not compressed, upper case"),
            pytest.param("::1", "::", id="loopback"),
            pytest.param("::", "::", id="unspecified"),
            pytest.param("::ffff:192.0.2.77", "192.0.2.0", id="mapped"),
            pytest.param("::FFFF:c000:024d", "192.0.2.0", id="mapped, in hexadecimal"),
            pytest.param("0:0:0:0:0:ffff:192.0.2.77", "192.0.2.0", id="mapped, in full"),
            pytest.param("2001:db8:1::192.0.2.33", "2001:db8:1::", id="IPv4 at the end of another IPv6"),
            pytest.param("64:ff9b::192.0.2.33", "64:ff9b::", id="translated"),
        ],
    )
    def test_network(self, treat: Any, given: str, expected: str) -> None:
        assert treat("truncate_ip", {}, [given], TEXT).values == [expected]

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                " ",
                "localhost",
                "192.0.2",
                "192.0.2.77.1",
                "192.0.2.256",
                "192.0.2.077",
                "192.0.02.1",
                "192.0.2.-1",
                "0x7f.0.0.1",
                "3221225985",
            ),
            *(
                "192.0.2.77 ",
                " 192.0.2.77",
                "192.0.2.77\n",
                "192.0.2.77/24",
                "192.0.2.٣",
                "192.0.2.77\x00",
                "1.2.3.4,5.6.7.8",
                "192。0。2。1",
            ),
            *(
                "fe80::1%eth0",
                "2001:db8::1%1",
                "2001:db8",
                ":::",
                "1::2::3",
                "[::1]",
                "::1/64",
                "2001:db8::g",
                "12345::",
                "::ffff:192.0.2.256",
                "::ffff:01.2.3.4",
            ),
            *("1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "::" + "0" * 100, "1." * 1000),
        ],
        ids=repr,
    )
    def test_other_text(self, treat: Any, text: str) -> None:
        assert treat("truncate_ip", {}, [text], TEXT).refused == {0: "EV525"}
        assert treat("truncate_ip", {"otherwise": "other"}, [text], TEXT).values == ["other"]
        assert treat("truncate_ip", {"otherwise": "nullify"}, [text], TEXT).values == [None]

    def test_both_kinds_mixed_with_others(self, treat: Any) -> None:
        values = [None, "10.1.2.3", "x", "2001:db8::5", None, "10.1.2.3", "2001:db8::5", "10.9.9.9"]
        result = treat("truncate_ip", {"v4": 16, "v6": 32}, values, TEXT)

        assert result.values == [None, "10.1.0.0", None, "2001:db8::", None, "10.1.0.0", "2001:db8::", "10.9.0.0"]
        assert result.refused == {2: "EV525"}

    @pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 13, 24, 31])
    def test_v4_is_what_ipaddress_says(self, treat: Any, bits: int) -> None:
        draw = random.Random(bits)
        addresses = [ipaddress.IPv4Address(draw.getrandbits(32)) for _ in range(200)]
        networks = [str(ipaddress.ip_network((address, bits), strict=False).network_address) for address in addresses]

        assert treat("truncate_ip", {"v4": bits}, list(map(str, addresses)), TEXT).values == networks

    @pytest.mark.parametrize("bits", [0, 1, 16, 47, 48, 64, 127])
    def test_v6_is_what_ipaddress_says(self, treat: Any, bits: int) -> None:
        draw = random.Random(bits)
        addresses = [ipaddress.IPv6Address(draw.getrandbits(128) & draw.getrandbits(128)) for _ in range(200)]
        networks = [str(ipaddress.ip_network((address, bits), strict=False).network_address) for address in addresses]

        assert treat("truncate_ip", {"v6": bits}, [address.exploded for address in addresses], TEXT).values == networks


class TestParameters:
    @pytest.mark.parametrize("wrong", [{"v4": 32}, {"v4": -1}, {"v6": 128}, {"v6": -1}, {"v4": "24"}, {"v4": True}], ids=str)
    def test_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TruncateIp(**wrong)

    @pytest.mark.parametrize(("rule", "count"), [({}, 0), ({"v4": 25}, 1), ({"v6": 49}, 1), ({"v4": 30, "v6": 64}, 2)], ids=str)
    def test_warns_of_small_networks(self, rule: dict[str, Any], count: int) -> None:
        assert len(TruncateIp(**rule).warnings(None)) == count  # type: ignore[arg-type]
