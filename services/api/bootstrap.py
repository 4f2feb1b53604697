"""Make a development organisation with its keys: ``python -m services.api.bootstrap --json``.

Safe to run again: with BOOTSTRAP_FILE set, keys made before are kept there and put back as they were.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from shared.db.pools import connect
from shared.settings import Settings
from shared.webhook_secret import organisation_secret

from .auth import ALL_SCOPES
from .keys import digest, key_id, new_key

__all__ = ["bootstrap"]

# Fixed, so that a second run on an empty database makes the same organisation.
_ORG = uuid.UUID("01990000-0000-7000-8000-000000000001")
_TEACHER = uuid.UUID("01990000-0000-7000-8000-000000000002")
_ADMIN = uuid.UUID("01990000-0000-7000-8000-000000000003")

_UPSERT_ORG = "insert into organisations (id, name) values (%s, %s) on conflict (id) do nothing"
_UPSERT_MEMBER = """
insert into members (id, org_id, email, name, role) values (%s, %s, %s, %s, %s) on conflict (id) do nothing
"""
_UPSERT_KEY = """
insert into api_keys (id, org_id, member_id, name, hash, scopes) values (%s, %s, %s, %s, %s, %s)
on conflict (id) do update set hash = excluded.hash, scopes = excluded.scopes
"""


def bootstrap(settings: Settings, file: Path | None) -> dict[str, Any]:
    """The keys, made now or read from ``file`` (kept readable by its owner only)."""
    kept: dict[str, str] = {}
    if settings.environment != "local":
        raise SystemExit("These are development keys, one of them a super admin's: for ENVIRONMENT=local only.")
    if file is not None and file.exists():
        with contextlib.suppress(ValueError):  # torn by a crash: new keys, then
            kept = json.loads(file.read_text())
    with connect(settings.database_url.get_secret_value(), "gradeline-bootstrap") as conn, conn.transaction():
        conn.execute(_UPSERT_ORG, (_ORG, "Development School"))
        for member_id, name, role, field in (
            (_TEACHER, "Teacher", "member", "api_key"),
            (_ADMIN, "Administrator", "super_admin", "admin_api_key"),
        ):
            conn.execute(_UPSERT_MEMBER, (member_id, _ORG, f"{name.lower()}@school.example", name, role))
            # The key's row has the member's id: one development key a member.
            if key_id(kept.get(field, "")) != member_id:
                kept[field] = new_key(member_id).text
            conn.execute(
                _UPSERT_KEY, (member_id, _ORG, member_id, "development", digest(kept[field]), list(ALL_SCOPES))
            )
    kept["webhook_secret"] = organisation_secret(settings.signing_key(), _ORG)
    if file is not None:
        fresh = file.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(kept, out, indent=2)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the keys as JSON")
    arguments = parser.parse_args()
    file = os.environ.get("BOOTSTRAP_FILE")
    keys = bootstrap(Settings(), Path(file) if file else None)
    if arguments.json:
        print(json.dumps(keys))
    else:
        for name, value in keys.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
