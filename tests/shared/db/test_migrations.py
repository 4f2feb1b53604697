"""The schema that migrations make is the one that the code knows."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from deploy.local.servers import EmbeddedServers
from shared.db import SyncPool
from shared.db.migrate import alembic_config, migrate, sqlalchemy_url
from shared.db.tables import metadata


@pytest.fixture
def empty_database(servers: EmbeddedServers) -> str:
    name = f"empty_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"create database {name}")
    return urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))


def test_migrations_and_metadata_agree(database_url: str) -> None:
    engine = sa.create_engine(sqlalchemy_url(database_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_many_replicas_may_migrate_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda _: migrate(empty_database), range(4)))
    assert len({after for _, after in outcomes}) == 1
    assert sum(before is None for before, _ in outcomes) == 1, "one of them did it"


def test_the_schema_can_be_taken_down_and_put_up_again(empty_database: str) -> None:
    migrate(empty_database)
    config = alembic_config()
    engine = sa.create_engine(sqlalchemy_url(empty_database), poolclass=sa.NullPool)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    assert migrate(empty_database)[0] is None


def test_a_wrong_url_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        migrate("mysql://localhost/x")


def test_new_ids_of_the_database_are_uuids_of_version_7_in_order(pool: SyncPool) -> None:
    with pool.connection() as conn:
        made = [conn.execute("select new_id() as id").fetchone() for _ in range(3)]
    ids = [row["id"] for row in made if row]
    assert all(isinstance(i, UUID) and i.version == 7 for i in ids)
    assert ids == sorted(ids)


def test_the_older_servers_form_of_new_id_makes_the_same_kind_of_id(pool: SyncPool) -> None:
    from importlib import import_module

    form = import_module("shared.db.migrations.versions.0001_first_schema")._UUID7
    with pool.connection() as conn:
        row = conn.execute(f"select ({form}) as old, new_id() as new").fetchone()
    assert row is not None
    assert row["old"].version == 7
    assert abs((row["old"].int >> 80) - (row["new"].int >> 80)) < 1000, "within a second of each other"


def test_running_services_need_no_migration_library() -> None:
    code = (
        "import sys, services.api.app, shared.broker; print([m for m in ('alembic', 'sqlalchemy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
