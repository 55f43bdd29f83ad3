"""The article's order under the two policies of examples/shipping_order once more: in plain Python, without a line of eventveil.

    python tests/jobs/golden/article.py          prints article_policy.jsonl, then article_trusted.jsonl

Keys, canonical values and pseudonyms by tests/vectors/plain.py; draws by AES-256 of pyca/cryptography, block by block. The two files beside
this one were written with it, and a test holds both it and the job to them.
"""

from __future__ import annotations

import json
import math
import runpy
import struct
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

plain = runpy.run_path(str(Path(__file__).parents[2] / "vectors" / "plain.py"))

ROOT = bytes(range(32))
SCHEMA = "contsco.shop.ShippingOrder"
ORDER: dict[str, Any] = {
    "tenant": "contsco-ebay",
    "id": "contsco-2024-09-10-0334",
    "time": "2014-09-04T22:57:55",
    "status": "pending",
    "shipping": {"country": "Russia", "zip": "450075", "line1": "Ufa ul.Zorge 66-61", "to": "Abdullin Rinat", "carrier": "usps"},
    "products": [
        {"id": "ksm6573er", "name": "Kitchen Aid 6573 Empire Red", "quantity": 1, "price": "200 EUR"},
        {"id": "ka1234", "name": "Plastic shield guard", "quantity": 10, "price": "7.99 EUR"},
    ],
}
TIME = datetime.fromisoformat(ORDER["time"])
DAY = datetime(2014, 9, 4)
WINDOW = (int((DAY - datetime(1970, 1, 1)).total_seconds()) * 1_000_000, "1d", "UTC")


def compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def draw(domain: str, rule: tuple[str, ...], value: bytes, element: int) -> tuple[int, int]:
    """CBC-MAC of release id, value word, element and number of the draw under the rule's sub-key: two words of 63 bits."""
    release_key = plain["sub_key"](ROOT, domain, None, "release", SCHEMA)
    release_id = plain["mac"]("aes-cmac", release_key, plain["canonical"]("s", ORDER["id"]), 16)
    encrypt = Cipher(AES(plain["sub_key"](ROOT, domain, WINDOW, "noise", *rule)), ECB()).encryptor().update
    second = value.ljust(8, b"\0") + struct.pack(">II", element, 0)
    low, high = struct.unpack("<QQ", encrypt(bytes(a ^ b for a, b in zip(encrypt(release_id), second))))
    return low >> 1, high >> 1


def laplace(word: int) -> int:
    """Discrete Laplace noise of scale 1: the least x whose probability of at most x is above word / 2^63."""
    ratio = math.exp(-1)
    x = -60
    while word / 2**63 >= (ratio**-x / (1 + ratio) if x < 0 else 1 - ratio ** (x + 1) / (1 + ratio)):
        x += 1
    return x


def policy() -> str:
    ticks = 10 * 60 * 1_000_000
    first, second = draw("analytics", ("leaf", "time", "0", "shift", compact({"per": "event", "within": "10min"}), "t"), b"", 0)
    moved = TIME + timedelta(microseconds=((first << 63 | second) * (2 * ticks + 1) >> 126) - ticks)
    assert DAY <= moved < DAY + timedelta(days=1), "nothing to reflect"
    parameters = compact({"clamp_output": {"min": "1"}, "grid": "1", "laplace_scale": "1", "null": "refuse", "per": "event"})
    rule = ("leaf", "products[].quantity", "0", "noise", parameters, "i")
    group = []
    for element, product in enumerate(ORDER["products"]):
        noise = laplace(draw("analytics", rule, plain["canonical"]("i", product["quantity"]), element)[0])
        group.append({"ref": element + 1, "delta": max(1, product["quantity"] + noise)})
    date = moved.replace(second=0, microsecond=0).isoformat()
    return json.dumps({"date": date, "group": group}, separators=(",", ":")) + "\n"


def trusted() -> str:
    def pseudonym(window: tuple[int, str, str] | None, of: str, value: str) -> str:
        key = plain["sub_key"](ROOT, "fulfilment", window, "pseudonym", "class", of, "s", "blake2b")
        text: str = plain["base32"](plain["mac"]("blake2b", key, plain["canonical"]("s", value), 16))
        return text

    shipping = ORDER["shipping"]
    products = []
    for product in ORDER["products"]:
        amount, currency = product["price"].split(" ")
        tens = Decimal(amount).quantize(Decimal("1e1"), ROUND_HALF_EVEN)
        products.append(
            {
                "product": pseudonym(None, "product", product["id"]),
                "family": product["id"][:2],
                "quantity": min(product["quantity"], 20),
                # A parsed number keeps nine digits behind the point: JSON says it exactly, digit by digit.
                "amount": f"<{tens:f}>",
                "currency": currency,
            }
        )
    event = {
        "time": TIME.replace(minute=0, second=0).isoformat(),
        "status": ORDER["status"],
        "shipping": {
            "country": shipping["country"],
            "area": shipping["zip"][:2],
            "customer": pseudonym(WINDOW, "customer", shipping["to"]),
            "carrier": shipping["carrier"],
        },
        "products": products,
    }
    return json.dumps(event, separators=(",", ":")).replace('"<', "").replace('>"', "") + "\n"


if __name__ == "__main__":
    print(policy() + trusted(), end="")
