"""The values that fill the fields of questions, divided into values for training and held-out values for test.

The held-out values are whole categories with their products, whole cities with their customers, whole years with their
months and days, and two of every seven numbers. Three sets are too small to divide, so both sides use all of them: the
states of an order, the payment methods, and the words for an SQL operator or function ("cheaper than", "average").
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache

from tunesmith.demo.catalogue import CITIES, PRODUCTS
from tunesmith.demo.shop import FIRST_ORDER, METHODS, ORDERS, STATUSES, table_rows

TEST_CATEGORIES = frozenset({"Travel", "Audio", "Bedding"})
TEST_CITIES = frozenset({"Berlin", "Rome", "Leeds", "Athens", "Geneva", "Utrecht"})
TEST_YEARS = frozenset({2022, 2025})
_YEARS = range(2020, 2026)

# Written out because strftime's names follow the locale.
_MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it is written in a question and in SQL."""

    text: str
    sql: str


@dataclass(frozen=True, slots=True)
class Pool:
    """The values for a field. Dates and numbers ascend."""

    train: tuple[Value, ...]
    test: tuple[Value, ...]


def is_held_out(number: int) -> bool:
    """Return whether a number is held out for test questions."""
    return number % 7 in (3, 5)


@cache
def pools() -> dict[str, Pool]:
    """Return {field of a template: pool}."""
    return {
        "city": _pool((city, city in TEST_CITIES) for city in CITIES),
        "category": _pool((category, category in TEST_CATEGORIES) for category in PRODUCTS),
        "product": _products(),
        "word": _words(),
        "customer": _customers(),
        "year": _pool((str(year), year in TEST_YEARS) for year in _YEARS),
        "month": _months(),
        "date": _dates(),
        "price": _numbers(range(10, 251, 5)),
        "stock": _numbers(range(5, 101)),
        "order": _numbers(range(FIRST_ORDER, FIRST_ORDER + ORDERS)),
        "count": _numbers(range(2, 13)),
        "size": _numbers(range(7, 17)),
        "top": _numbers(range(2, 7)),
        "stars": _numbers(range(1, 6)),
        **SHARED_POOLS,
    }


def _shared_pool(values: dict[str, str]) -> Pool:
    both = tuple(Value(text, sql) for text, sql in values.items())
    return Pool(both, both)


SHARED_POOLS = {
    "status": _shared_pool({status: status for status in STATUSES}),
    "method": _shared_pool({method: method for method in METHODS}),
    "compare": _shared_pool({"cheaper than": "<", "more expensive than": ">"}),
    "side": _shared_pool({"above": ">", "below": "<"}),
    "than": _shared_pool({"more than": ">", "fewer than": "<"}),
    "rank": _shared_pool({"cheapest": "price", "most expensive": "price DESC"}),
    "aggregate": _shared_pool({"average": "AVG", "highest": "MAX", "lowest": "MIN"}),
}


def _pool(marked: Iterable[tuple[str, bool]]) -> Pool:
    """Make a pool from (value, whether it is held out) pairs."""
    values = list(marked)
    return Pool(*(tuple(Value(text, text) for text, out in values if out is test) for test in (False, True)))


def _numbers(numbers: range) -> Pool:
    return _pool((str(number), is_held_out(number)) for number in numbers)


def _products() -> Pool:
    return _pool((name, category in TEST_CATEGORIES) for category, names in PRODUCTS.items() for name in names)


def _words() -> Pool:
    """Return the words in product names. A word that occurs on both sides belongs to training."""
    products = _products()
    train = {word.lower() for product in products.train for word in product.text.split()}
    test = {word.lower() for product in products.test for word in product.text.split()}
    return _pool((word, word not in train) for word in sorted(train | test))


def _customers() -> Pool:
    """Return the names of the customers. Those who live in a held-out city are held out."""
    return _pool((str(name), city in TEST_CITIES) for _, name, city, _ in table_rows()["customers"])


def _months() -> Pool:
    sides: dict[bool, list[Value]] = {False: [], True: []}
    for year in _YEARS:
        values = [Value(f"{name} {year}", f"{year}-{number:02d}") for number, name in enumerate(_MONTH_NAMES, 1)]
        sides[year in TEST_YEARS] += values
    return Pool(tuple(sides[False]), tuple(sides[True]))


def _dates() -> Pool:
    days = [date(_YEARS[0], 1, 1) + timedelta(days=3 * step) for step in range(len(_YEARS) * 121)]
    return _pool((day.isoformat(), day.year in TEST_YEARS) for day in days)
