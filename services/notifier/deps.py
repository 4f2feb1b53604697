"""What the notifier's handlers need of their surroundings."""

from __future__ import annotations

from typing import Protocol

from shared.settings import Settings
from shared.storage import Storage

__all__ = ["Deps"]


class Deps(Protocol):
    """The part of the worker's dependencies that is used here."""

    @property
    def settings(self) -> Settings: ...

    @property
    def storage(self) -> Storage: ...
