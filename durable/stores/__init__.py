"""The stores: the seam of ``durable.store`` over memory, SQLite and Postgres."""
