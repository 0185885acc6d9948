"""The task that tunesmith brings along: English questions over a small shop, answered in SQL. Standard library only."""

from tunesmith.demo.generate import NAME, load, rows
from tunesmith.demo.shop import SCHEMA, write_database

__all__ = ["NAME", "SCHEMA", "load", "rows", "write_database"]
