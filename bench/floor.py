"""The floor of an upload: the least that accepts a file durably, on the same server, store, Postgres and Redis.

No authentication, no validation, no typing by content, no idempotency, no batch, no event: receive the form, hash the
file, fsync it, one INSERT and COMMIT, one Redis push.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import falcon
import falcon.asgi
import psycopg
import redis.asyncio
from gunicorn.app.base import BaseApplication


class Upload:
    async def process_startup(self, scope: Any, event: Any) -> None:
        self.conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
        await self.conn.execute("create table if not exists floor (id uuid primary key, key text, sha256 bytea)")
        self.redis = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
        self.folder = Path(os.environ["FLOOR_DIR"])

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        id = uuid.uuid4()
        hashed = hashlib.sha256()
        path = self.folder / str(id)
        with path.open("wb") as out:
            async for part in await req.get_media():
                while chunk := await part.stream.read(65536):
                    hashed.update(chunk)
                    out.write(chunk)
            out.flush()
            await asyncio.to_thread(os.fsync, out.fileno())
        await self.conn.execute("insert into floor values (%s, %s, %s)", (id, path.name, hashed.digest()))
        await self.redis.rpush("floor", str(id))
        resp.status = falcon.HTTP_202
        resp.media = {"id": str(id)}


class Floor(BaseApplication):  # type: ignore[misc]
    def load_config(self) -> None:
        self.cfg.set("bind", f"127.0.0.1:{os.environ['PORT']}")
        self.cfg.set("worker_class", os.environ.get("FLOOR_WORKER", "asgi"))
        self.cfg.set("workers", 1)
        self.cfg.set("loglevel", "error")

    def load(self) -> Any:
        upload = Upload()
        app: Any = falcon.asgi.App(middleware=[upload])
        app.add_route("/upload", upload)
        return app


if __name__ == "__main__":
    Floor().run()
