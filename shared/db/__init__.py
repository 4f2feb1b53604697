"""Postgres: connection pools, transactions, the schema's metadata and its migrations."""

from .pools import AsyncPool, SyncPool, is_outage, open_async_pool, open_pool

__all__ = ["AsyncPool", "SyncPool", "is_outage", "open_async_pool", "open_pool"]
