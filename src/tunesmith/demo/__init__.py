"""The built-in text-to-SQL job: English questions about a small shop's database. Uses only the standard library."""

from tunesmith.demo.generate import load, rows
from tunesmith.demo.shop import SCHEMA, write_database

__all__ = ["SCHEMA", "load", "rows", "write_database"]
