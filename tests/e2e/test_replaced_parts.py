"""The stack with every embedded part replaced by one of the operator's own: Postgres, Redis, S3 and SMTP."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from aiosmtpd.controller import Controller
from moto.server import ThreadedMotoServer

from deploy.local.launch import free_port, launched
from deploy.local.servers import EmbeddedServers
from tests.e2e.client import SAMPLES, Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(envelope.content)
        return "250 Accepted"


def test_own_servers_are_used_and_none_is_embedded(servers: EmbeddedServers) -> None:
    database = "own_stack"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"create database {database}")
    mailbox = Mailbox()
    smtp = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    smtp.start()
    s3.start()
    host, port = s3.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    bucket = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).Bucket("work")
    bucket.create()
    try:
        with tempfile.TemporaryDirectory(prefix="gradeline-e2e-", dir="/var/tmp") as folder:
            environment = {
                "PORT": str(free_port()),
                "DATABASE_URL": servers.database_url.rpartition("/")[0] + f"/{database}",
                "REDIS_URL": servers.redis_url,
                "SMTP_URL": f"smtp://127.0.0.1:{smtp.port}",
                "S3_BUCKET": "work",
                "S3_ENDPOINT_URL": endpoint,
                "S3_ACCESS_KEY_ID": "test",
                "S3_SECRET_ACCESS_KEY": "test",
            }
            data = Path(folder)
            with launched(data, log=data / "stack.log", **environment) as stack:
                assert stack["database_url"] == environment["DATABASE_URL"]
                assert not stack["servers"], "nothing is embedded"
                client = Client(stack)
                batch = client.upload(
                    SAMPLES / "typed" / "homework.pdf",
                    standard_id=client.standard("typed"),
                    notify_email="teacher@school.example",
                )
                done = client.finished(batch)
                job = next(j for j in done["jobs"] if j["type"] == "grading.quiz")
                expected = json.loads((SAMPLES / "typed" / "expected.json").read_text())
                assert client.get(f"/gradings/{job['refs']['grading_id']}")["points"] == expected["points"]
                deadline = time.monotonic() + 20
                while not any(job["id"].encode() in m for m in mailbox.mails):
                    assert time.monotonic() < deadline, "no mail"
                    time.sleep(0.05)
            stored = sorted(o.key for o in bucket.objects.all())
            assert [k.partition("/")[0] for k in stored] == ["documents", "pages", "pages"]
            assert (
                not [p for p in (data / "storage").rglob("*") if p.is_file()] if (data / "storage").exists() else True
            )
    finally:
        smtp.stop()
        s3.stop()
        with psycopg.connect(servers.database_url, autocommit=True) as conn:
            conn.execute(f"drop database {database} with (force)")
