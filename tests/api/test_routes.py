"""Every route, generated from the table of routes: nothing is reachable without a key, its scope and its tenant."""

from __future__ import annotations

from typing import Any

import falcon
import pytest

from services.api import app
from services.api.auth import ALL_SCOPES, PUBLIC
from shared.settings import Settings
from tests.api.gateway import V1, Person, School, a_standard, accepted, problem, upload


def _responders() -> list[tuple[str, str, str]]:
    """Method, path and scope of everything the gateway answers."""
    found = []
    for path, resource in app.ROUTES:
        for method in falcon.HTTP_METHODS:
            responder = getattr(resource, f"on_{method.lower()}", None)
            if responder is not None:
                found.append((method, path, responder.required_scope))
    return found


RESPONDERS = _responders()
GUARDED = [r for r in RESPONDERS if r[2] != PUBLIC]
# An id in the path that names no object of anybody.
_NOBODYS = {
    "document_id": "doc_", "submission_id": "sub_", "standard_id": "std_", "grading_id": "grd_", "job_id": "job_",
    "batch_id": "bat_",
}  # fmt: skip


def _at(path: str, ids: dict[str, str] | None = None) -> str:
    return path.format(**(ids or {name: prefix + "0" * 26 for name, prefix in _NOBODYS.items()}))


def _call(who: Any, method: str, path: str) -> Any:
    body = {"json": {"name": "x"}} if method == "PATCH" else {}
    return who.request(method, path, **body)


def test_only_the_probes_are_public() -> None:
    assert {path for _, path, scope in RESPONDERS if scope == PUBLIC} == {"/healthz", "/readyz"}
    assert {scope for _, _, scope in GUARDED} <= set(ALL_SCOPES)


@pytest.mark.parametrize(("method", "path", "scope"), RESPONDERS)
def test_without_a_key_it_is_401(school: School, method: str, path: str, scope: str) -> None:
    answer = _call(school.client(None), method, _at(path))
    if scope == PUBLIC:
        assert answer.status_code == 200
    else:
        problem(answer, 401, "auth.required")


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED)
def test_without_its_scope_it_is_403(school: School, method: str, path: str, scope: str) -> None:
    for scopes in ((), [s for s in ALL_SCOPES if s != scope]):
        answer = _call(school.person("super_admin", scopes).http, method, _at(path))
        assert scope in problem(answer, 403, "auth.missing_scope")["detail"]


@pytest.fixture
def objects(teacher: Person) -> dict[str, str]:
    """One of each kind, a teacher's."""
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    batch = accepted(upload(teacher, standard_id=standard))
    refs = {k: v for job in batch["jobs"] for k, v in job["refs"].items()}
    return {**refs, "job_id": batch["jobs"][0]["id"], "batch_id": batch["id"]}


def test_anothers_object_is_404_everywhere(teacher: Person, stranger: Person, objects: dict[str, str]) -> None:
    tried = 0
    for method, path, _ in GUARDED:
        if "{" not in path:
            continue
        problem(_call(stranger.http, method, _at(path, objects)), 404, "not_found")
        # Just as what never was, and what is no id of that kind.
        problem(_call(stranger.http, method, _at(path)), 404, "not_found")
        for nonsense in (
            "x",
            "job_",
            "bat_" + "0" * 26,
            "doc_" + "0" * 26,
            "%00",
            "job_" + "z" * 26,
            "..%2f",
            "é" * 30,
        ):
            if nonsense[:4] not in path.replace("{document_id}", "doc_").replace("{batch_id}", "bat_"):
                problem(
                    _call(stranger.http, method, path.format(**dict.fromkeys(_NOBODYS, nonsense))), 404, "not_found"
                )
        tried += 1
    assert tried >= 11
    # Nothing of it had an effect.
    assert teacher.http.get(f"{V1}/jobs/{objects['job_id']}").json()["status"] == "queued"
    assert teacher.http.get(f"{V1}/standards/{objects['standard_id']}").json()["name"] == "Quiz"


def test_a_responder_that_declares_no_scope_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open:
        def __init__(self, deps: Any) -> None: ...

        async def on_get(self, req: Any, resp: Any) -> None: ...

    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, ("/api/v1/open", Open)))
    with pytest.raises(ValueError, match="GET /api/v1/open declares no scope"):
        app.create_app(Settings())


def test_unknown_places_and_methods_are_problems(teacher: Person) -> None:
    for path in ("/nowhere", "/api/v1", "/api/v1/jobs/x/y/z", "/api/v2/jobs", "//"):
        problem(teacher.http.get(path), 404, "not_found")
    for method, path in (("PUT", "/api/v1/jobs"), ("DELETE", "/api/v1/uploads"), ("POST", "/healthz")):
        answer = teacher.http.request(method, path)
        problem(answer, 405, "request.method_not_allowed")
        assert answer.headers["allow"]
    for method in ("BREW", "PROPFIND", "TRACE", "CONNECT"):
        assert 400 <= teacher.http.request(method, "/api/v1/jobs").status_code < 500
    assert teacher.http.get("/api/v1/jobs/").status_code == 200


def test_a_sane_request_id_comes_back(teacher: Person) -> None:
    for given in ("abc-123", "A" * 64, "a.b_c"):
        answer = teacher.http.get("/nowhere", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given == answer.json()["request_id"]
    for given in ("", "A" * 65, "a b", "<script>", "a;b", "é".encode("latin-1").decode("latin-1")):
        answer = teacher.http.get("/healthz", headers={"X-Request-Id": given.encode("latin-1")})
        assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_nul_in_the_address_is_refused(teacher: Person) -> None:
    for path in ("/api/v1/jobs?type=%00", "/api/v1/submissions?cursor=a%00b"):
        problem(teacher.http.get(path), 400, "request.malformed")
