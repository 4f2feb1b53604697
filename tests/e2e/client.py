"""A client of the gateway for the end-to-end tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2

SAMPLES = Path(__file__).parents[2] / "samples"


class Client:
    """The gateway as a front-end developer sees it."""

    def __init__(self, stack: dict[str, Any]) -> None:
        self.stack = stack
        self.http = httpx2.Client(
            base_url=stack["base_url"] + "/api/v1",
            headers={"Authorization": f"Bearer {stack['api_key']}"},
            timeout=30,
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        response = self.http.get(path.removeprefix("/api/v1"))
        response.raise_for_status()
        return response.json()

    def standard(self, sample: str) -> str:
        body = (SAMPLES / sample / "standard.json").read_bytes()
        response = self.http.post("/standards", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def upload(self, *paths: Path, media_type: str = "application/octet-stream", **fields: str) -> Any:
        files = [("files", (p.name, p.read_bytes(), media_type)) for p in paths]
        response = self.http.post("/uploads", files=files, data=fields)
        assert response.status_code == 202, response.text
        return response.json()

    def finished(self, batch: Any, within: float = 90) -> Any:
        """The batch, once every job of it has ended."""
        deadline = time.monotonic() + within
        while not (state := self.get(batch["links"]["self"]))["done"]:
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        return state
