"""Rows of the demo: templates, splits, held-out values, and queries with one clear result."""

import contextlib
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.demo import SCHEMA, generate, load, rows, shop
from tunesmith.demo.generate import TEMPLATES
from tunesmith.demo.pools import SHARED_POOLS, is_held_out, pools
from tunesmith.demo.query_template import QueryTemplate, fields_of, pool_of

COUNT = 2400
SPLITS = ("train", "valid", "test")
BY_NAME = {template.name: template for template in TEMPLATES}

# Feature of SQL -> regular expression, and how many templates must have it at least.
FEATURES = {
    "filter": (r"WHERE \w+ [=<>]", 5),
    "join": (r"^(?!.* JOIN .* JOIN ).* JOIN ", 4),
    "two hops": (r" JOIN .* JOIN ", 2),
    "count": (r"COUNT\(\*\)", 3),
    "sum": (r"SUM\(", 3),
    "average": (r"AVG\(", 2),
    "group": (r"GROUP BY", 5),
    "having": (r"HAVING", 2),
    "having with join": (r" JOIN .* HAVING ", 1),
    "order and limit": (r"ORDER BY .* LIMIT \d", 2),
    "rank by sum": (r"ORDER BY SUM\(.* DESC LIMIT", 1),
    "dates": (r"(date|joined) (LIKE|BETWEEN|>) '20", 5),
    "subquery": (r"\(SELECT ", 7),
    "against average": (r"\(SELECT AVG\(", 1),
    "top of each group": (r"\(SELECT MAX\(q\.price\) FROM products q WHERE q\.category = p\.category", 1),
    "not in": (r" NOT IN \(SELECT", 1),
    "not exists": (r"NOT EXISTS \(SELECT", 1),
    "left join is null": (r"LEFT JOIN .* IS NULL", 1),
    "distinct": (r"SELECT DISTINCT", 1),
    "count distinct": (r"COUNT\(DISTINCT", 1),
    "between": (r" BETWEEN ", 1),
    "like": (r" LIKE '%", 1),
    "in values": (r" IN \('", 1),
    "in subquery": (r"(?<!NOT) IN \(SELECT", 1),
}


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as opened:
        shop.create_tables(opened)
        yield opened


@cache
def sample() -> list[dict[str, str]]:
    return load(COUNT)


def of_split(split: str) -> list[dict[str, str]]:
    return [row for row in sample() if row["split"] == split]


def literals(sql: str) -> set[str]:
    """Return the quoted texts and the numbers of a query."""
    quoted = {text.strip("%") for text in re.findall(r"'([^']*)'", sql)}
    return quoted | set(re.findall(r"\b\d+\b", re.sub(r"'[^']*'", "", sql)))


def is_made_from(phrasing: str, template: QueryTemplate, question: str) -> bool:
    """Return whether a question is this phrasing with values in its fields."""
    pattern = re.escape(phrasing)
    for field in template.fields:
        pattern = pattern.replace(re.escape("{" + field + "}"), "(.+)")
    return re.fullmatch(pattern, question) is not None


def test_row_shape_and_count() -> None:
    assert len(sample()) == COUNT
    assert len({row["question"] for row in sample()}) == COUNT
    for row in sample():
        assert list(row) == ["question", "sql", "kind", "pattern", "split", "schema"]
        assert row["schema"] == SCHEMA
        assert row["kind"] in BY_NAME
        assert len(row["question"]) + len(row["sql"]) < 400  # a prompt stays below 256 tokens
        assert "{" not in row["question"] + row["sql"]


@pytest.mark.parametrize("count", [3, 20, 100, 1999, COUNT])
def test_split_sizes(count: int) -> None:
    sizes = Counter(row["split"] for row in load(count))
    assert sizes.total() == count
    assert sizes["test"] == max(1, int(count * 0.15 + 1e-9))
    assert sizes["valid"] == max(1, int(count * 0.05 + 1e-9))


def test_templates_are_balanced_in_every_split() -> None:
    assert len(TEMPLATES) == len(BY_NAME) >= 25
    for split in SPLITS:
        sizes = Counter(row["kind"] for row in of_split(split))
        assert sizes.keys() == BY_NAME.keys()
        mean = sizes.total() / len(TEMPLATES)
        assert min(sizes.values()) >= 0.25 * mean
        assert max(sizes.values()) <= 1.3 * mean + 1


def test_splits_are_shuffled() -> None:
    for start in range(0, COUNT, 400):
        sizes = Counter(row["split"] for row in sample()[start : start + 400])
        assert sizes["test"] > 30
        assert sizes["valid"] > 5
        assert len({row["kind"] for row in sample()[start : start + 400]}) == len(TEMPLATES)


def test_same_seed_gives_the_same_rows() -> None:
    assert list(rows(300, 5)) == load(300, 5)
    assert load(300, 5) != load(300, 6)
    shared = {row["question"] for row in load(300, 5)} & {row["question"] for row in load(300, 6)}
    assert len(shared) < 150


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    script = "from tunesmith.core.files import digest_of; from tunesmith.demo import load; print(digest_of(load(400)))"
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
    assert digests == {digest_of(load(400))}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_phrasings_have_every_field(template: QueryTemplate) -> None:
    assert len(template.train) >= 4
    assert len(template.test) == 4  # each is a unit of the verdict
    for phrasing in (*template.train, *template.test):
        assert set(fields_of(phrasing)) == set(template.fields), phrasing
        assert phrasing[0].isupper()
        assert phrasing[-1] in ".?"
    assert {pool_of(field) for field in template.fields} <= pools().keys()
    assert {pool_of(field) for field in template.fields} - SHARED_POOLS.keys(), "none of its values can be held out"


def test_phrasings_are_distinct() -> None:
    phrasings = [phrasing for template in TEMPLATES for phrasing in (*template.train, *template.test)]
    assert len(set(phrasings)) == len(phrasings)


def test_test_phrasings_occur_only_in_test() -> None:
    used = set()
    for row in sample():
        template = BY_NAME[row["kind"]]
        own, other = (template.test, template.train) if row["split"] == "test" else (template.train, template.test)
        assert row["pattern"] in own, row
        assert is_made_from(row["pattern"], template, row["question"]), row
        assert not any(is_made_from(phrasing, template, row["question"]) for phrasing in other), row
        used.add(row["pattern"])
    assert used == {phrasing for template in TEMPLATES for phrasing in (*template.train, *template.test)}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_test_phrasings_differ_from_training_phrasings(template: QueryTemplate) -> None:
    """A test phrasing shares at most three quarters of its words, in order, with any training phrasing."""
    for phrasing in template.test:
        similarity = [SequenceMatcher(None, phrasing.split(), known.split()).ratio() for known in template.train]
        assert max(similarity) <= 0.75, (phrasing, template.train[similarity.index(max(similarity))])


def test_test_rows_have_many_patterns() -> None:
    """The verdict counts patterns: with few of them, or with one that dominates, it could not decide."""
    patterns = Counter(row["pattern"] for row in load(2000) if row["split"] == "test")
    assert len(patterns) >= 90
    assert max(patterns.values()) <= 0.03 * patterns.total()


def test_test_values_occur_only_in_test() -> None:
    """Except for shared pools and a template's own literals, no text or number of a test query is in training."""
    shared = {value.sql for pool in SHARED_POOLS.values() for value in pool.train}
    fixed = {literal for template in TEMPLATES for literal in literals(re.sub(r"\{\w+\}", "", template.sql))}
    assert fixed == {"", "1"}
    known = {literal for row in sample() if row["split"] != "test" for literal in literals(row["sql"])}
    tested = {literal for row in of_split("test") for literal in literals(row["sql"])}
    assert tested & known <= shared | fixed
    assert len(tested - known) > 100


def test_pools_are_disjoint_and_not_empty() -> None:
    for name, pool in pools().items():
        train, test = {value.sql for value in pool.train}, {value.sql for value in pool.test}
        assert len(train) >= 2, name
        assert len(test) >= 2, name
        assert train == test if name in SHARED_POOLS else not train & test, name
    numbers = ("price", "stock", "order", "count", "size", "top", "stars")
    assert all(is_held_out(int(value.sql)) for name in numbers for value in pools()[name].test)
    assert not any(is_held_out(int(value.sql)) for name in numbers for value in pools()[name].train)


def test_related_values_are_held_out_together() -> None:
    """With a city its customers are held out, with a category its products, with a year its months and days."""
    contents = shop.table_rows()
    cities = {value.sql for value in pools()["city"].test}
    assert {value.sql for value in pools()["customer"].test} == {
        name for _, name, city, _ in contents["customers"] if city in cities
    }
    categories = {value.sql for value in pools()["category"].test}
    assert {value.sql for value in pools()["product"].test} == {
        name for _, name, category, *_ in contents["products"] if category in categories
    }
    years = {value.sql for value in pools()["year"].test}
    for name in ("month", "date"):
        assert {value.sql[:4] for value in pools()[name].test} == years
        assert not {value.sql[:4] for value in pools()[name].train} & years


def test_no_query_is_in_two_splits() -> None:
    queries = {split: {row["sql"] for row in of_split(split)} for split in SPLITS}
    assert not queries["train"] & queries["valid"]
    assert not queries["test"] & (queries["train"] | queries["valid"])


def test_every_query_is_fast(connection: sqlite3.Connection) -> None:
    """The limit counts SQLite's steps, so that it holds on a busy machine; 100,000 steps take about 2 ms."""
    connection.set_progress_handler(lambda: 1, 100_000)
    try:
        for row in sample():
            answer = connection.execute(row["sql"]).fetchall()
            assert 1 <= len(answer) < 200, row
            assert any(value for values in answer for value in values), row
    finally:
        connection.set_progress_handler(None, 0)


def test_results_do_not_depend_on_the_order_of_stored_rows(connection: sqlite3.Connection) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as reversed_rows:
        for table, content in shop.table_rows().items():
            columns = [column[1] for column in connection.execute(f"PRAGMA table_info({table})")]
            reversed_rows.execute(f"CREATE TABLE {table}({', '.join(columns)})")
            marks = ", ".join("?" * len(columns))
            reversed_rows.executemany(f"INSERT INTO {table} VALUES ({marks})", content[::-1])
        for row in sample()[::3]:
            answers = [database.execute(row["sql"]).fetchall() for database in (connection, reversed_rows)]
            if "ORDER BY" not in row["sql"]:
                answers = [sorted(answer) for answer in answers]
            assert answers[0] == answers[1], row


@pytest.mark.parametrize("split", SPLITS)
def test_no_constant_answer_scores_well(connection: sqlite3.Connection, split: str) -> None:
    answers = Counter(tuple(sorted(connection.execute(row["sql"]).fetchall())) for row in of_split(split))
    assert answers.most_common(1)[0][1] <= 0.03 * answers.total()
    assert len(answers) >= 0.35 * answers.total()


@pytest.mark.parametrize("feature", FEATURES)
def test_sql_features_are_in_every_split(feature: str) -> None:
    pattern, min_templates = FEATURES[feature]
    for split in SPLITS:
        kinds = {row["kind"] for row in of_split(split) if re.search(pattern, row["sql"])}
        assert len(kinds) >= min_templates, split


def test_sql_style_is_uniform() -> None:
    words = r"\b(select|distinct|from|where|and|or|not|in|join|left|on|group|order|by|having|limit|between|like)\b"
    aliases = {"customers": "c", "products": "p", "orders": "o", "items": "i", "payments": "pay", "reviews": "r"}
    for template in TEMPLATES:
        assert template.sql.startswith("SELECT ")
        assert "\n" not in template.sql
        assert "  " not in template.sql
        assert ";" not in template.sql
        assert not re.search(words, re.sub(r"\{\w+\}", "", template.sql))
        assert template.sql.count(" JOIN ") == template.sql.count(" ON ")
        assert (" LIMIT " in template.sql) == (" ORDER BY " in template.sql)
        for table, alias in re.findall(r"(?:FROM|JOIN) (\w+) ([a-z]+)\b", template.sql):
            assert alias == aliases[table] or (table, alias) == ("products", "q")


def test_columns_are_qualified_only_in_joins() -> None:
    columns = (
        r"(?<![.\w'{])(id|name|city|joined|category|price|stock|date|status|quantity|method|amount|stars|\w+_id)\b"
    )
    for template in TEMPLATES:
        outer = re.sub(r"\(SELECT .*\)", "", template.sql)
        if " JOIN " in outer:
            assert not re.search(columns, outer), template.name
        elif "EXISTS" not in template.sql and template.name != "top_per_category":
            assert not re.search(r"\b[a-z]+\.\w", outer), template.name


@pytest.mark.parametrize(
    ("sql", "answerable"),
    [
        ("SELECT name FROM customers WHERE city = 'Oslo'", True),
        ("SELECT name FROM customers WHERE city = 'Atlantis'", False),
        ("SELECT COUNT(*) FROM customers WHERE city = 'Atlantis'", False),
        ("SELECT AVG(price) FROM products WHERE category = 'Atlantis'", False),
        ("SELECT name FROM customers", False),
        ("SELECT name FROM products ORDER BY price LIMIT 3", True),
        ("SELECT name FROM products ORDER BY price > 20 LIMIT 3", False),
        ("SELECT name FROM products WHERE price > 300 ORDER BY price LIMIT 3", False),
    ],
    ids=["rows", "no rows", "zero", "null", "too long", "ranked", "tied", "too few to rank"],
)
def test_is_answerable(connection: sqlite3.Connection, sql: str, answerable: bool) -> None:
    assert generate.is_answerable(connection, sql) is answerable


@pytest.mark.parametrize("count", [-1, 0, 2])
def test_too_few_rows(count: int) -> None:
    with raises(RecipeError, "generated-rows", count):
        load(count)


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "TEMPLATES", (BY_NAME["customers_in_city"],))
    assert len(load(40)) == 40
    with raises(RecipeError, "generated-rows", 24, 90, "test"):
        load(600)


def test_fields_of_one_pool_differ_and_ascend() -> None:
    for row in sample():
        if between := re.search(r"BETWEEN '?([\d-]+)'? AND '?([\d-]+)", row["sql"]):
            low, high = between.groups()
            assert (int(low) < int(high)) if low.isdigit() else (low < high)
            assert re.findall(r"\d[\d-]*", row["question"]) == [low, high]
        if cities := re.search(r"IN \('(\w+)', '(\w+)'\)", row["sql"]):
            assert cities[1] != cities[2]
