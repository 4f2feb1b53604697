"""Leftovers of killed processes go; what is in use, and what a link points at, stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from shared.storage.leftovers import sweep


def test_only_old_things_of_that_prefix_go_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "work").write_text("x")
    old_folder, old_file, link = tmp_path / "up-a", tmp_path / "up-b", tmp_path / "up-link"
    old_folder.mkdir()
    (old_folder / "page.jpg").write_text("x")
    old_file.write_text("x")
    link.symlink_to(kept)
    for path in (old_folder, old_file, link):
        os.utime(path, (time.time() - 100,) * 2, follow_symlinks=False)
    (tmp_path / "up-new").write_text("x")
    assert sweep(tmp_path, "up-", older_than=50) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "up-new"]
    assert (kept / "work").exists()
    assert sweep(tmp_path / "absent", "up-", older_than=0) == 0
