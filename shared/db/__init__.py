"""Postgres: connection pools, transactions, the schema's metadata and its migrations."""

from .pools import AsyncPool, SyncPool, open_async_pool, open_pool

__all__ = ["AsyncPool", "SyncPool", "open_async_pool", "open_pool"]
