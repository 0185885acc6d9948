"""Execution accuracy: equal and unequal results, invalid queries, and hostile ones that hang, use memory or write."""

import hashlib
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.scoring import sql_worker
from tunesmith.scoring.metrics import score
from tunesmith.scoring.sql_execution import execution_accuracy

ROWS = [
    (1, "apple", 1.5, "fruit"),
    (2, "pear", 2.0, "fruit"),
    (3, "leek", 0.1, "vegetable"),
    (4, "kale", 0.2, "vegetable"),
    (5, "salt", None, None),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a database, and check afterwards that its bytes and its folder are unchanged."""
    path = tmp_path_factory.mktemp("a folder #1?%20") / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, kind TEXT)")
        connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", ROWS)
        connection.execute("CREATE VIEW fruit AS SELECT * FROM item WHERE kind = 'fruit'")
        connection.commit()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    yield path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [file.name for file in path.parent.iterdir()] == ["shop.sqlite"]


def is_right(shop: Path, prediction: str, reference: str) -> bool:
    return execution_accuracy([prediction], [[reference]], shop) == [1.0]


ALL = "SELECT name FROM item"
SUM = "SELECT sum(price) FROM item"


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        (ALL, ALL),
        ("select NAME as title from item i;", ALL),
        (" \n-- the names\nSELECT name FROM item /* ; */ ; ; -- done; really", ALL),
        ("SELECT name FROM item ORDER BY name", ALL),  # the reference has no order
        ("WITH x AS (SELECT name FROM item) SELECT * FROM x", ALL),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n",
            "SELECT id FROM item",
        ),
        ("SELECT name FROM item ORDER BY id DESC", "SELECT name FROM item ORDER BY -id"),
        ("SELECT name FROM (SELECT * FROM item ORDER BY id DESC)", "SELECT name FROM (SELECT * FROM item ORDER BY id)"),
        ("SELECT name FROM item ORDER BY id DESC", "SELECT name FROM item WHERE '(' || \"name\" <> 'ORDER BY'"),
        ("SELECT 3", "SELECT 3.0"),
        ("SELECT 0.1 + 0.2", "SELECT 0.3"),
        ("SELECT 1000000.4", "SELECT 1000000.0"),
        ("SELECT 1e-17", "SELECT 0"),
        ("SELECT price / 3 * 3, id FROM item", "SELECT price, id FROM item ORDER BY id LIMIT 99"),
        ("SELECT NULL", "SELECT price FROM item WHERE id = 5"),
        ("SELECT * FROM item WHERE 0", "SELECT id, name, price, kind FROM item WHERE id > 9"),
        ("SELECT kind FROM item", "SELECT kind FROM item ORDER BY kind IS NULL LIMIT (SELECT 5)"),
        ("SELECT count(*) FROM fruit", "SELECT 2"),
        ("SELECT 'a;b' -- ;", "SELECT 'a' || ';' || 'b'"),
        ("SELECT 'it''s'", "SELECT 'it' || char(39) || 's'"),
        ("SELECT [name] FROM `item`", ALL),
        ("SELECT group_concat(name, ', ' ) OVER (ORDER BY id) FROM item WHERE id = 1", "SELECT 'apple'"),
        ("SELECT x'0102'", "SELECT CAST(x'0102' AS BLOB)"),
        ("```sql\nSELECT name\nFROM item\n```", ALL),
        ("\n```\nSELECT name FROM item;\n```\n", ALL),
        (ALL, "```sql\nSELECT name FROM item\n```"),
    ],
)
def test_equal_results(shop: Path, prediction: str, reference: str) -> None:
    assert is_right(shop, prediction, reference)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("SELECT id FROM item", ALL),
        ("SELECT name, id FROM item", "SELECT id, name FROM item"),
        ("SELECT name FROM item LIMIT 4", ALL),
        ("SELECT name FROM item UNION ALL SELECT 'salt'", ALL),
        ("SELECT DISTINCT kind FROM item", "SELECT kind FROM item"),
        ("SELECT kind FROM item WHERE id <> 1 UNION ALL SELECT 'vegetable'", "SELECT kind FROM item"),
        ("SELECT name FROM item ORDER BY name", "SELECT name FROM item ORDER BY id"),
        ("SELECT name FROM item ORDER BY id", "SELECT name FROM item ORDER BY id DESC LIMIT 5"),
        ("SELECT '3'", "SELECT 3"),
        ("SELECT 1000001", "SELECT 1000002"),  # integers are compared exactly
        ("SELECT 1.00001", "SELECT 1.0"),
        ("SELECT 0", "SELECT NULL"),
        ("SELECT ''", "SELECT NULL"),
        ("SELECT id, name FROM item WHERE 0", "SELECT id FROM item WHERE 0"),
        ("SELECT x'61'", "SELECT 'a'"),
        ("SELECT 1, 'b' UNION ALL SELECT 2, 'a'", "SELECT 1, 'a' UNION ALL SELECT 2, 'b'"),
        ("Here it is: SELECT name FROM item", ALL),
        ("```python\nSELECT name FROM item\n```", ALL),
        ("```sql\nSELECT name FROM item\n```\nThis lists the names.", ALL),
        ("```sql\nSELECT 1\n```\n```sql\nSELECT name FROM item\n```", ALL),
        ("SELECT nothing FROM item", ALL),
        ("SELECT name FROM nowhere", ALL),
        ("SELEC name FROM item", ALL),
        ("SELECT name FROM item WHERE name = ?", ALL),
        ("VALUES (1)", "SELECT 1"),
        ("EXPLAIN SELECT 1", "SELECT 1"),
        ("SELECT 'open", "SELECT 1"),
        ("", "SELECT 1"),
        (" ; ", "SELECT 1"),
        ("-- SELECT 1", "SELECT 1"),
    ],
)
def test_unequal_results(shop: Path, prediction: str, reference: str) -> None:
    assert not is_right(shop, prediction, reference)


DOUBLING = (
    "WITH c0(x) AS (SELECT 1 LIMIT 1)"
    + "".join(f", c{i}(x) AS (SELECT a.x FROM c{i - 1} a, c{i - 1} b LIMIT 1)" for i in range(1, 30))
    + " SELECT x FROM c29"
)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
HOSTILE = {
    "endless rows": f"{ENDLESS} i FROM n",
    "endless count": f"{ENDLESS} count(*) FROM n",
    "endless sort": f"{ENDLESS} 1 FROM n ORDER BY hex(randomblob(50000)) LIMIT 1",
    "endless text": f"{ENDLESS} length(group_concat(hex(zeroblob(1000000)))) FROM n",
    "cartesian": "SELECT count(*) FROM " + ", ".join(f"item i{number}" for number in range(30)),
    "doubling while it is parsed": DOUBLING,
    "search that SQLite cannot interrupt": "SELECT instr(hex(zeroblob(4000000)), hex(zeroblob(2000000)) || 'x')",
    "pattern that SQLite cannot interrupt": "SELECT hex(zeroblob(4000000)) LIKE '%" + "0_" * 20_000 + "x'",
    "huge blob": "SELECT 1 FROM (SELECT zeroblob(2000000000) AS z) WHERE length(z) > 0",
    "huge random blob": "SELECT length(randomblob(900000000)) > 0",
    "huge text": "SELECT length(printf('%.*c', 2000000000, 'x')) > 0",
    "huge replacement": "SELECT length(replace(hex(zeroblob(4000000)), '0', hex(zeroblob(4000000)))) > 0",
    "huge row": "SELECT " + ", ".join(["hex(zeroblob(900000))"] * 1000),
    "a million characters": "SELECT 1" + " " * 1_000_000,
    "a million operators": "SELECT 1" + "+0" * 500_000,
    "nested parentheses": "SELECT " + "(" * 40_000 + "1" + ")" * 40_000,
    "nested queries": "SELECT 1 FROM " + "(SELECT * FROM " * 5_000 + "item" + ")" * 5_000,
    "quotes": "'" * 99_999,
    "zero byte": "SELECT 1\0",
    "half a character": "SELECT '\ud800'",
    "two statements": "SELECT 1; DROP TABLE item",
    "two statements after a comment": "SELECT 1 /* */; -- no\n; DELETE FROM item",
    "insert": "INSERT INTO item VALUES (9, 'x', 1, 'x')",
    "insert in a fence": "```sql\nINSERT INTO item VALUES (9, 'x', 1, 'x')\n```",
    "insert after with": "WITH x AS (SELECT 1) INSERT INTO item SELECT 9, 'x', 1, 'x'",
    "delete after with": "WITH x AS (SELECT 1) DELETE FROM item RETURNING 1",
    "update": "UPDATE item SET price = 0 RETURNING 1",
    "drop": "DROP TABLE item",
    "create": "CREATE TABLE other AS SELECT 1",
    "create in memory": "CREATE TEMP TABLE other AS SELECT 1",
    "attach": "ATTACH DATABASE 'other.sqlite' AS other",
    "vacuum into": "VACUUM INTO 'other.sqlite'",
    "pragma": "PRAGMA writable_schema = ON",
    "pragma as a table": "SELECT 1 FROM pragma_table_info('item') LIMIT 1",
    "transaction": "BEGIN EXCLUSIVE",
    "extension": "SELECT load_extension('libc.so.6')",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_query_fails_and_the_next_one_works(shop: Path, name: str) -> None:
    predictions = ["SELECT 1", HOSTILE[name], "SELECT 1"]
    assert execution_accuracy(predictions, [["SELECT 1"]] * 3, shop, seconds=0.2) == [1.0, 0.0, 1.0]


def test_time_limit(shop: Path) -> None:
    slow = f"{ENDLESS} count(*) FROM (SELECT 1 FROM n LIMIT 3000000)"
    assert execution_accuracy([slow], [["SELECT 3000000"]], shop, seconds=20) == [1.0]
    assert execution_accuracy([slow], [["SELECT 3000000"]], shop, seconds=0.02) == [0.0]


@pytest.mark.parametrize(
    "reference",
    ["SELECT nothing", "DROP TABLE item", "", f"{ENDLESS} i FROM n", f"{ENDLESS} count(*) FROM n", DOUBLING],
)
def test_failing_reference_is_named(shop: Path, reference: str) -> None:
    with raises(DataError, "reference-query-failed", where="references[2]") as error:
        execution_accuracy(["SELECT 1"] * 3, [["SELECT 1"], ["SELECT 2"], [reference]], shop, seconds=0.2)
    assert error.value.hint


def test_reference_with_too_many_rows_is_refused(shop: Path) -> None:
    assert execution_accuracy([ALL], [[ALL]], shop, max_rows=5) == [1.0]
    with raises(DataError, "reference-query-failed", 4, where="references[0]"):
        execution_accuracy([ALL], [[ALL]], shop, max_rows=4)


def test_unreadable_database_is_refused(tmp_path: Path) -> None:
    with raises(DataError, "unreadable-database", where="nothing.sqlite"):
        execution_accuracy(["SELECT 1"], [["SELECT 1"]], tmp_path / "nothing.sqlite")
    (tmp_path / "text.sqlite").write_text("no database " * 1000)
    with raises(DataError, "unreadable-database", where="text.sqlite"):
        execution_accuracy(["SELECT 1"], [["SELECT 1"]], tmp_path / "text.sqlite")


def test_database_with_changes_in_a_write_ahead_log_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "live.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
        with raises(DataError, "unreadable-database", "wal_checkpoint", where="live.sqlite"):
            execution_accuracy(["SELECT 1"], [["SELECT 1"]], tmp_path / "live.sqlite")
    assert execution_accuracy(["SELECT 1"], [["SELECT 1"]], tmp_path / "live.sqlite") == [1.0]


def test_no_rows_are_no_values(shop: Path) -> None:
    assert execution_accuracy([], [], shop) == []


def test_metric_execution_with_several_references(shop: Path) -> None:
    values = score(["SELECT 2", "SELECT 2"], [["SELECT 1", "SELECT 2"], "SELECT 3"], ["execution"], database=shop)
    assert values == {"execution": [1.0, 0.0]}


# --- the comparison itself ----------------------------------------------------------------------------------------

NUMBERS = st.integers(-3, 3) | st.integers(10**9, 10**9 + 9) | st.floats(allow_nan=False)
VALUES = st.none() | NUMBERS | st.text("ab", max_size=2) | st.binary(max_size=1)
TABLES = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=8))


def table(rows: list[sql_worker.Row]) -> sql_worker.Result:
    return sql_worker.Result(len(rows[0]), rows)


@settings(max_examples=50)
@given(TABLES, st.randoms(use_true_random=False))
def test_order_of_rows_matters_only_if_ordered(rows: list[sql_worker.Row], shuffle: random.Random) -> None:
    mixed = shuffle.sample(rows, len(rows))
    assert sql_worker.results_equal(table(mixed), table(rows), ordered=False)
    assert sql_worker.results_equal(table(rows), table(rows), ordered=True)
    if mixed != rows and not any(isinstance(value, float) for row in rows for value in row):
        assert not sql_worker.results_equal(table(mixed), table(rows), ordered=True)


def test_large_integers_are_compared_exactly_in_any_order() -> None:
    rows: list[sql_worker.Row] = [(0.1, 10**9 + number) for number in range(9)]
    assert sql_worker.results_equal(table(rows[::-1]), table(rows), ordered=False)
    assert not sql_worker.results_equal(table([*rows[1:], rows[1]]), table(rows), ordered=False)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 2.5, 12345.65, 1e9 / 3]), st.integers(0, 3)), min_size=2, max_size=9),
    st.randoms(use_true_random=False),
)
def test_rounding_errors_do_not_change_the_sort_order(rows: list[sql_worker.Row], shuffle: random.Random) -> None:
    noisy = [(value * (1 + shuffle.uniform(-1e-14, 1e-14)), count) for value, count in rows]  # type: ignore[operator]
    assert sql_worker.results_equal(table(shuffle.sample(noisy, len(noisy))), table(rows), ordered=False)


@settings(max_examples=50)
@given(TABLES, st.data())
def test_one_changed_value_is_detected(rows: list[sql_worker.Row], data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(rows[0]) - 1))
    changed = [list(values) for values in rows]
    changed[row][column] = "something else"
    assert not sql_worker.results_equal(table([tuple(values) for values in changed]), table(rows), ordered=False)
    assert not sql_worker.results_equal(table(rows[1:] + rows[:1] + rows[:1]), table(rows), ordered=False)
