"""The database of the demo: reproducible, consistent, and with something to find for every question."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DoesNotFit
from tunesmith.core.files import digest_of
from tunesmith.demo import SCHEMA, shop, write_database
from tunesmith.demo.catalogue import CITIES, PRODUCTS
from tunesmith.demo.stable_random import choice, randbelow, shuffled, weighted_choice


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = write_database(tmp_path_factory.mktemp("shop") / "shop.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as opened:
        yield opened


def number(connection: sqlite3.Connection, sql: str) -> int:
    return int(connection.execute(sql).fetchone()[0])


def test_draws_of_a_seed_are_pinned() -> None:
    rng = Random(0)
    assert [randbelow(rng, 1000) for _ in range(4)] == [844, 757, 420, 258]
    assert choice(rng, "abcdef") == "d"
    assert shuffled(rng, range(6)) == [2, 0, 3, 4, 1, 5]
    drawn = [weighted_choice(rng, {"often": 9, "seldom": 1, "never": 0}) for _ in range(500)]
    assert 400 < drawn.count("often") < 490
    assert "never" not in drawn


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    write_database(tmp_path / "a.sqlite")
    write_database(tmp_path / "b.sqlite")
    write_database(tmp_path / "c.sqlite", seed=1)
    first, second, other = ((tmp_path / f"{name}.sqlite").read_bytes() for name in "abc")
    assert first == second
    assert first != other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sqlite", "b.sqlite", "c.sqlite"]


def test_table_rows_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from tunesmith.core.files import digest_of; from tunesmith.demo.shop import table_rows; "
        "print(digest_of(table_rows(3)))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(shop.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {digest_of(shop.table_rows(3))}


def test_database_holds_the_table_rows(connection: sqlite3.Connection) -> None:
    for table, rows in shop.table_rows().items():
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == rows, table


def test_write_database_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "shop.sqlite"
    path.parent.mkdir()
    path.write_text("not a database")

    def fail(connection: sqlite3.Connection, seed: int) -> None:
        connection.execute("CREATE TABLE half(id)")
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shop, "create_tables", fail)
        with pytest.raises(RuntimeError):
            write_database(path)
    assert path.read_text() == "not a database"
    assert list(path.parent.iterdir()) == [path]
    with path.open() as reader:
        assert write_database(path) == path
        assert reader.read() == "not a database"  # replaced, not written over
    assert path.read_bytes().startswith(b"SQLite format 3")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_tables = shop.create_tables

    def create_in_8_pages(connection: sqlite3.Connection, seed: int) -> None:
        connection.execute("PRAGMA max_page_count = 8")
        create_tables(connection, seed)

    monkeypatch.setattr(shop, "create_tables", create_in_8_pages)
    with raises(DoesNotFit, "disk-full", where="shop.sqlite"):
        write_database(tmp_path / "shop.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_schema_in_prompts_matches_the_tables(connection: sqlite3.Connection) -> None:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    lines = []
    for (table,) in tables:
        columns = [column[1] for column in connection.execute(f"PRAGMA table_info({table})")]
        lines.append(f"{table}({', '.join(columns)})")
    assert SCHEMA.splitlines() == [*lines, "dates are YYYY-MM-DD"]
    assert len(SCHEMA) < 300  # it is in every prompt


def test_sizes_and_references(connection: sqlite3.Connection) -> None:
    assert number(connection, "SELECT COUNT(*) FROM customers") == 200
    assert number(connection, "SELECT COUNT(*) FROM products") == 60
    assert number(connection, "SELECT COUNT(*) FROM orders") == 800
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM customers GROUP BY name HAVING COUNT(*) > 1",
        "SELECT name FROM products GROUP BY name HAVING COUNT(*) > 1",
        "SELECT price FROM products GROUP BY price HAVING COUNT(*) > 1",
        "SELECT order_id FROM items GROUP BY order_id, product_id HAVING COUNT(*) > 1",
        "SELECT product_id FROM reviews GROUP BY product_id, customer_id HAVING COUNT(*) > 1",
        "SELECT o.id FROM orders o JOIN customers c ON o.customer_id = c.id WHERE o.date < c.joined",
        "SELECT id FROM orders WHERE date NOT GLOB '202[0-5]-[01][0-9]-[0-3][0-9]'",
        "SELECT id FROM orders WHERE id NOT IN (SELECT order_id FROM items)",
        "SELECT o.id FROM orders o JOIN payments pay ON pay.order_id = o.id GROUP BY o.id HAVING SUM(pay.amount) "
        "<> (SELECT SUM(i.quantity * p.price) FROM items i JOIN products p ON i.product_id = p.id "
        "WHERE i.order_id = o.id)",
        "SELECT r.stars FROM reviews r WHERE r.stars NOT BETWEEN 1 AND 5 OR NOT EXISTS (SELECT 1 FROM orders o "
        "JOIN items i ON i.order_id = o.id WHERE o.customer_id = r.customer_id AND i.product_id = r.product_id)",
    ],
)
def test_data_are_consistent(connection: sqlite3.Connection, sql: str) -> None:
    assert connection.execute(sql).fetchall() == []


@pytest.mark.parametrize(
    ("sql", "low", "high"),
    [
        ("SELECT COUNT(*) FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)", 30, 60),
        ("SELECT COUNT(*) FROM products WHERE id NOT IN (SELECT product_id FROM items)", 8, 12),
        ("SELECT COUNT(*) FROM orders WHERE id NOT IN (SELECT order_id FROM payments)", 100, 300),
        ("SELECT COUNT(DISTINCT city) FROM customers", len(CITIES), len(CITIES)),
        ("SELECT COUNT(DISTINCT category) FROM products", len(PRODUCTS), len(PRODUCTS)),
        ("SELECT COUNT(DISTINCT status) FROM orders", len(shop.STATUSES), len(shop.STATUSES)),
        ("SELECT COUNT(DISTINCT method) FROM payments", len(shop.METHODS), len(shop.METHODS)),
        ("SELECT COUNT(DISTINCT SUBSTR(date, 1, 7)) FROM orders", 70, 72),
        ("SELECT MIN(n) FROM (SELECT COUNT(*) AS n FROM customers GROUP BY city)", 3, 10),
    ],
)
def test_data_have_enough_variety(connection: sqlite3.Connection, sql: str, low: int, high: int) -> None:
    assert low <= number(connection, sql) <= high
