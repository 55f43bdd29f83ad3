"""truncate_ip: the network of an IP address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET6, inet_pton
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Placing, Setting, operator

__all__ = ["TruncateIp"]

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"\A{_OCTET}(\.{_OCTET}){{3}}\z"
_OCTETS = pa.array([str(octet) for octet in range(256)])
_pc: Any = pc  # the stubs know no calls with arrays and a scalar
_HEXTETS = re.compile(r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}\Z")
_MAPPED = bytes(10) + b"\xff\xff"
_LONGEST = 45  # characters of the longest form of an IPv6 address


@operator("truncate_ip")
class TruncateIp(Placing):
    """Set the last bits of an IP address to zero.

    Discloses the network: with the defaults 256 IPv4 addresses, or one site's IPv6 block. Joinable by it. Not
    reversible. IPv4 in dotted decimals without leading zeros; IPv6 in any form of RFC 4291 without zone id. An
    IPv4-mapped address is treated, and written, as IPv4. An address whose last bits are zero already stays as it is.
    Null stays null.

    Args:
        v4: leading bits kept of an IPv4 address, 0 to 31.
        v6: leading bits kept of an IPv6 address, 0 to 127.
        otherwise: ``refuse`` the event, ``nullify`` the value, or write the text ``other``, where the text is no address.

    Raises:
        EV525: the text is not an IP address.

    Source:
        RFC 4291 (forms), RFC 5952 (the form written).

    Example:
        truncate_ip: "192.0.2.77" -> "192.0.2.0", "2001:DB8:1:2::5" -> "2001:db8:1::", "::ffff:192.0.2.77" -> "192.0.2.0"
        {truncate_ip: {v4: 20, otherwise: nullify}}: "10.1.77.3" -> "10.1.64.0", "localhost" -> null, null -> null
    """

    may_return_input = True  # an address that is its own network
    refusals = ("EV525",)

    v4: int = Field(24, ge=0, le=31)
    v6: int = Field(48, ge=0, le=127)

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_string(given) else None

    def discloses(self) -> str:
        return f"the network: {self.v4} bits of an IPv4 address, {self.v6} of an IPv6 address"

    def warnings(self, setting: Setting) -> Sequence[str]:
        said = [f"v4: {self.v4} leaves {2 ** (32 - self.v4)} addresses in a network"] if self.v4 > 24 else []
        return [*said, f"v6: {self.v6} is finer than the block of one site"] if self.v6 > 48 else said

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        valid = np.asarray(pc.is_valid(values))
        dotted = np.asarray(pc.match_substring_regex(values, _IPV4).fill_null(False))
        other = valid & ~dotted
        networks = pa.concat_arrays([self._truncate_v4(values.filter(pa.array(dotted))), self._truncate_v6(values.filter(pa.array(other)))])
        place = np.where(dotted, np.cumsum(dotted), dotted.sum() + np.cumsum(other)) - 1
        placed = networks.take(pa.array(place, pa.int64(), mask=~valid))
        return self.place(placed, np.asarray(pc.is_null(placed)) & valid, context)

    def _truncate_v4(self, dotted: pa.Array[Any]) -> pa.Array[Any]:
        octets = np.asarray(pc.split_pattern(dotted, ".").flatten().cast(pa.uint8())).reshape(-1, 4)
        kept = octets & np.frombuffer(self._mask_v4().to_bytes(4, "big"), np.uint8)
        a, b, c, d = (_OCTETS.take(pa.array(octet, pa.int64())) for octet in kept.T)
        networks: pa.Array[Any] = _pc.binary_join_element_wise(a, b, c, d, ".")
        return networks

    def _truncate_v6(self, texts: pa.Array[Any]) -> pa.Array[Any]:
        """Networks; null where the text is no address."""
        coded = texts.dictionary_encode()
        # Each distinct text once in Python: neither Arrow nor numpy reads IPv6, and its compressed form has no fixed places.
        distinct: list[Any] = coded.dictionary.to_pylist()
        return pa.array([self._network(text) for text in distinct], pa.string()).take(coded.indices)

    def _network(self, text: str) -> str | None:
        packed = _packed(text)
        if packed is None:
            return None
        if packed.startswith(_MAPPED):
            return str(IPv4Address(int.from_bytes(packed[12:], "big") & self._mask_v4()))
        return _written(int.from_bytes(packed, "big") >> (128 - self.v6) << (128 - self.v6))

    def _mask_v4(self) -> int:
        return 0xFFFFFFFF >> (32 - self.v4) << (32 - self.v4)


def _packed(text: str) -> bytes | None:
    """The 16 bytes of an IPv6 address. The system's reader, ten times as fast, is asked where no two systems differ."""
    try:
        if _HEXTETS.match(text):
            return inet_pton(AF_INET6, text)
        return None if len(text) > _LONGEST or "%" in text else IPv6Address(text).packed
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1 << 16)
def _written(network: int) -> str:
    return str(IPv6Address(network))
