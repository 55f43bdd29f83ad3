"""Write the invented orders of this example to orders.jsonl; the first is the one of the article. Same seed, same file.

Everybody in here is made up: names, streets and products are drawn from short lists.
"""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

SEED = 20140904
COUNT = 200

# Rinat Abdullin, "Data Anonymization"
ARTICLE: dict[str, Any] = {
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

TENANTS = ("contsco-ebay", "contsco-web", "contsco-b2b")
STATUSES = ("pending", "pending", "shipped", "shipped", "shipped", "delivered", "returned")
CARRIERS = ("usps", "dhl", "dpd", "gls", "ups")
# country, length of its postcode, streets
PLACES = (
    ("Russia", 6, ("ul. Lesnaya", "ul. Mira", "Nevskaya nab.")),
    ("Germany", 5, ("Lindenstraße", "Bahnhofstraße", "Am Markt")),
    ("Germany", 5, ("Gartenweg", "Schulstraße", "Mühlgasse")),
    ("France", 5, ("rue des Écoles", "place de l'Église", "avenue Foch")),
    ("Spain", 5, ("calle Mayor", "plaza del Sol", "calle Luna")),
    ("Italy", 5, ("via Roma", "via Verdi", "piazza Garibaldi")),
    ("Poland", 5, ("ul. Polna", "ul. Kwiatowa", "ul. Długa")),
    ("Austria", 4, ("Hauptplatz", "Wiener Gasse")),
    ("Iceland", 3, ("Laugavegur",)),
)
FIRST = ("Ada", "Björn", "Chiara", "Dmitri", "Elena", "Farid", "Grażyna", "Hanna", "Iñigo", "Jules", "Katya", "Luis")
LAST = ("Arnold", "Bianchi", "Castro", "Dubois", "Egorov", "Fischer", "Gruber", "Horvat", "Ivanova", "Jansen", "Kowalski", "Lopez")
# id, name, price in cents
PRODUCTS = (
    ("ksm6573er", "Kitchen Aid 6573 Empire Red", 20000),
    ("ksm4015ob", "Kitchen Aid 4015 Onyx Black", 34900),
    ("ka1234", "Plastic shield guard", 799),
    ("ka1250", 'Mixing bowl 10"', 2450),
    ("ka2001", "Dough hook", 1899),
    ("cm77", "Coffee mill, hand-cranked", 5990),
    ("cm78", "Coffee mill, electric", 11900),
    ("tp300", "Teapot 0.3 l", 1650),
    ("tp900", "Teapot 0.9 l", 2890),
    ("kn8", "Chef's knife 8\\20", 7900),
)


def price(cents: int, currency: str) -> str:
    return f"{cents // 100}{f'.{cents % 100:02d}' if cents % 100 else ''} {currency}"


def customers(rng: random.Random, count: int = 60) -> list[dict[str, Any]]:
    made = []
    for _ in range(count):
        country, digits, streets = rng.choice(PLACES)
        made.append(
            {
                "country": country,
                "zip": "".join(rng.choices("0123456789", k=digits)),
                "line1": f"{rng.choice(streets)} {rng.randint(1, 120)}",
                "to": f"{rng.choice(LAST)} {rng.choice(FIRST)}",
            }
        )
    return made


def order(rng: random.Random, buyers: list[dict[str, Any]], id_: str, time: str) -> dict[str, Any]:
    currency = rng.choice(("EUR", "EUR", "EUR", "EUR", "USD", "PLN"))
    return {
        "tenant": rng.choice(TENANTS),
        "id": id_,
        "time": time,
        "status": rng.choice(STATUSES),
        "shipping": {**rng.choice(buyers), "carrier": rng.choice(CARRIERS)},
        "products": [
            {"id": sku, "name": name, "quantity": min(40, 1 + int(rng.expovariate(0.5))), "price": price(cents, currency)}
            for sku, name, cents in rng.sample(PRODUCTS, k=rng.choice((1, 1, 2, 2, 3, 4)))
        ],
    }


def orders() -> list[dict[str, Any]]:
    """The article's order, then invented ones in the order of their time, over three days."""
    rng = random.Random(SEED)
    buyers = customers(rng)
    start = datetime.fromisoformat("2014-09-04T23:00:00")
    seconds = sorted(rng.randrange(3 * 24 * 3600) for _ in range(COUNT - 1))
    times = [start + timedelta(seconds=one) for one in seconds]
    return [
        ARTICLE,
        *(order(rng, buyers, f"contsco-{time:%Y-%m-%d}-{number:04d}", time.isoformat()) for number, time in enumerate(times, start=335)),
    ]


if __name__ == "__main__":
    lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in orders()]
    Path(__file__).with_name("orders.jsonl").write_text("".join(lines), "utf-8")
