"""Bring a database to the newest schema: ``python -m shared.db.migrate``. Safe to run twice and at once."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

__all__ = ["alembic_config", "migrate", "sqlalchemy_url"]

# One migration at a time across all replicas that start together. Any constant of our own will do.
_ADVISORY_LOCK = 0x67726164


def sqlalchemy_url(database_url: str) -> str:
    """The same database for SQLAlchemy, by the psycopg 3 driver."""
    scheme, rest = database_url.split("://", 1)
    if scheme not in ("postgresql", "postgres"):
        raise ValueError(f"DATABASE_URL must start with postgresql://, not {scheme}://")
    return f"postgresql+psycopg://{rest}"


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def migrate(database_url: str) -> tuple[str | None, str | None]:
    """Apply what is missing. Returns the revision before and after; equal when nothing was to be done."""
    config = alembic_config()
    engine = sa.create_engine(sqlalchemy_url(database_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("select pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        connection.commit()
        try:
            before = _revision(connection)
            head = ScriptDirectory.from_config(config).get_current_head()
            if before != head:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
            return before, _revision(connection)
        finally:
            connection.rollback()
            connection.execute(sa.text("select pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()


def _revision(connection: sa.Connection) -> str | None:
    if connection.execute(sa.text("select to_regclass('alembic_version')")).scalar() is None:
        return None
    return connection.execute(sa.text("select version_num from alembic_version")).scalar()


def main() -> None:
    from shared.settings import Settings

    before, after = migrate(Settings().database_url.get_secret_value())
    print(f"schema: {after} (was {before or 'empty'})" if before != after else f"schema: {after}, up to date")


if __name__ == "__main__":
    main()
