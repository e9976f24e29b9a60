"""Durable workflows for Python on the database you already have."""
