"""The shop's SQLite database. The same seed gives the same rows on every machine."""

import contextlib
import sqlite3
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import TypeAlias

from tunesmith.core.errors import DoesNotFit
from tunesmith.core.files import sync_folder, temporary_path
from tunesmith.demo.catalogue import CITIES, FIRST_NAMES, LAST_NAMES, PRODUCTS
from tunesmith.demo.stable_random import choice, randbelow, shuffled, weighted_choice

Rows: TypeAlias = list[tuple[int | str, ...]]

# The description of the database in the prompts. It is short because every prompt contains it.
SCHEMA = """\
customers(id, name, city, joined)
products(id, name, category, price, stock)
orders(id, customer_id, date, status)
items(order_id, product_id, quantity)
payments(order_id, method, amount)
reviews(product_id, customer_id, stars)
dates are YYYY-MM-DD"""

CUSTOMERS = 200
ORDERS = 800
FIRST_ORDER = 1001
STATUSES = {"delivered": 45, "shipped": 16, "pending": 13, "returned": 13, "cancelled": 13}
METHODS = {"card": 50, "transfer": 20, "voucher": 16, "cash": 14}
_STARS = {5: 36, 4: 28, 3: 16, 2: 11, 1: 9}
_UNPAID_PERCENT = {"pending": 70, "cancelled": 70, "delivered": 6, "shipped": 12, "returned": 12}
_IN_TWO_PARTS_PERCENT = 15
_REVIEW_PERCENT = 38
_OPENED = date(2017, 1, 1)
_LAST_JOINED = date(2025, 6, 30)
_FIRST_SALE = date(2020, 1, 1)
_CLOSED = date(2025, 12, 31)

_TABLES = """
CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, joined TEXT NOT NULL);
CREATE TABLE products(id INTEGER PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, price INTEGER NOT NULL,
    stock INTEGER NOT NULL);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers(id), date TEXT NOT NULL,
    status TEXT NOT NULL);
CREATE TABLE items(order_id INTEGER NOT NULL REFERENCES orders(id), product_id INTEGER NOT NULL REFERENCES products(id),
    quantity INTEGER NOT NULL);
CREATE TABLE payments(order_id INTEGER NOT NULL REFERENCES orders(id), method TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE reviews(product_id INTEGER NOT NULL REFERENCES products(id),
    customer_id INTEGER NOT NULL REFERENCES customers(id), stars INTEGER NOT NULL);
CREATE INDEX order_customer ON orders(customer_id);
CREATE INDEX item_order ON items(order_id);
CREATE INDEX item_product ON items(product_id);
CREATE INDEX payment_order ON payments(order_id);
CREATE INDEX review_product ON reviews(product_id);
"""


def table_rows(seed: int = 0) -> dict[str, Rows]:
    """Draw the rows of every table; return {table: rows in the schema's column order}."""
    rng = Random(seed)
    customers = _customers(rng)
    products = _products(rng)
    orders = _orders(rng, customers)
    items = _items(rng, orders, products)
    return {
        "customers": customers, "products": products, "orders": orders, "items": items,
        "payments": _payments(rng, orders, items, products), "reviews": _reviews(rng, orders, items),
    }  # fmt: skip


def create_tables(connection: sqlite3.Connection, seed: int = 0) -> None:
    """Create and fill the shop's tables in an empty database."""
    connection.executescript(_TABLES)
    for table, rows in table_rows(seed).items():
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    connection.commit()


def write_database(path: Path, seed: int = 0) -> Path:
    """Write the shop to a SQLite file atomically, replacing an existing file; return its path.

    Raises:
        DoesNotFit: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            create_tables(connection, seed)
        temporary.replace(path)
        sync_folder(path.parent)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        hint = "free some disk space and repeat the command"
        raise DoesNotFit("the disk is full", where=str(path), hint=hint, code="disk-full") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _day(rng: Random, first: date, last: date) -> str:
    return (first + timedelta(days=randbelow(rng, (last - first).days + 1))).isoformat()


def _customers(rng: Random) -> Rows:
    """Draw customers with unique names, at least four in each city and more in some."""
    names = shuffled(rng, [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES])[:CUSTOMERS]
    weights = {city: 1 + randbelow(rng, 6) for city in CITIES}
    everywhere = CITIES * 4
    homes = shuffled(rng, [*everywhere, *(weighted_choice(rng, weights) for _ in range(CUSTOMERS - len(everywhere)))])
    named = zip(names, homes, strict=True)
    return [(i, name, city, _day(rng, _OPENED, _LAST_JOINED)) for i, (name, city) in enumerate(named, 1)]


def _products(rng: Random) -> Rows:
    flat = [(name, category, price) for category, products in PRODUCTS.items() for name, price in products.items()]
    return [(i, *product, 1 + randbelow(rng, 120)) for i, product in enumerate(shuffled(rng, flat), 1)]


def _orders(rng: Random, customers: Rows) -> Rows:
    """Draw orders, sorted by date. Every fifth customer has none; no order is older than its customer's account."""
    drawn = []
    buyers = [customer for customer in customers if int(customer[0]) % 5]
    for _ in range(ORDERS):
        buyer = choice(rng, buyers)
        since = max(date.fromisoformat(str(buyer[3])), _FIRST_SALE)
        drawn.append((_day(rng, since, _CLOSED), buyer[0], weighted_choice(rng, STATUSES)))
    return [(i, buyer, day, status) for i, (day, buyer, status) in enumerate(sorted(drawn), FIRST_ORDER)]


def _items(rng: Random, orders: Rows, products: Rows) -> Rows:
    """Draw one to four products per order. Every sixth product is never sold, and some sell more than others."""
    weights = {int(product[0]): 1 + randbelow(rng, 6) for product in products if int(product[0]) % 6}
    items: Rows = []
    for order, *_ in orders:
        basket = {weighted_choice(rng, weights) for _ in range(1 + randbelow(rng, 4))}
        items += [(order, product, 1 + randbelow(rng, 5)) for product in sorted(basket)]
    return items


def _payments(rng: Random, orders: Rows, items: Rows, products: Rows) -> Rows:
    """Pay most orders in full, some of them in two payments, and leave the others unpaid."""
    prices = {product: int(price) for product, _, _, price, _ in products}
    totals: dict[int | str, int] = {}
    for order, product, quantity in items:
        totals[order] = totals.get(order, 0) + prices[product] * int(quantity)
    payments: Rows = []
    for order, _, _, status in orders:
        if randbelow(rng, 100) < _UNPAID_PERCENT[str(status)]:
            continue
        total = totals[order]
        parts = [total // 3, total - total // 3] if randbelow(rng, 100) < _IN_TWO_PARTS_PERCENT else [total]
        payments += [(order, weighted_choice(rng, METHODS), part) for part in parts]
    return payments


def _reviews(rng: Random, orders: Rows, items: Rows) -> Rows:
    """Draw reviews by customers of products that they bought, at most one for each pair."""
    buyers = {order: buyer for order, buyer, _, _ in orders}
    bought = dict.fromkeys((product, buyers[order]) for order, product, _ in items)
    return [(*pair, weighted_choice(rng, _STARS)) for pair in bought if randbelow(rng, 100) < _REVIEW_PERCENT]
