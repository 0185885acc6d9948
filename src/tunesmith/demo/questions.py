"""Every kind of question, from one-table filters to nested queries."""

from tunesmith.demo import joined_tables, nested_queries, one_table

KINDS = (*one_table.KINDS, *joined_tables.KINDS, *nested_queries.KINDS)
