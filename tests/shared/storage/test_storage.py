"""What every store promises, asked of a folder and of a bucket behind a real socket."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import moto.server
import pytest
from pydantic import SecretStr

from shared import storage as st
from shared.settings import Settings

PNG = "image/png"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    ).create_bucket(Bucket="gradeline")
    yield url
    server.stop()


def _s3(endpoint: str, **kwargs: float) -> st.S3Storage:
    return st.S3Storage(
        "gradeline",
        endpoint_url=endpoint,
        access_key_id="k",
        secret_access_key="s",
        **kwargs,  # type: ignore[arg-type]
    )


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> st.Storage:
    if request.param == "local":
        return st.LocalStorage(tmp_path / "root")
    return _s3(request.getfixturevalue("s3_endpoint"))


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"org/{abs(hash(request.node.nodeid))}/page-1.png"


def test_what_is_put_is_read_back(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"\x89PNG\x00data", PNG)
    assert store.read(key, 100) == b"\x89PNG\x00data"
    with store.open_local(key) as path:
        assert path.read_bytes() == b"\x89PNG\x00data"


def test_an_empty_object_is_an_object(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"", PNG)
    assert store.read(key, 0) == b""
    assert store.exists(key)


def test_putting_again_replaces(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"a longer first one", PNG)
    store.put_bytes(key, b"second", PNG)
    assert store.read(key, 100) == b"second"


def test_put_file_leaves_the_file_unless_consumed(store: st.Storage, key: str, tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(b"x" * 300_000)
    store.put_file(key, source, PNG)
    assert source.read_bytes() == b"x" * 300_000
    store.put_file(key, source, PNG, consume=True)
    assert not source.exists()
    assert store.stat(key).size == 300_000


def test_a_file_that_could_not_be_stored_is_not_consumed(store: st.Storage, tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(b"x")
    with pytest.raises(st.InvalidKey):
        store.put_file("../x", source, PNG, consume=True)
    assert source.exists()


def test_a_source_that_is_absent_is_not_a_missing_object(store: st.Storage, key: str, tmp_path: Path) -> None:
    for consume in (False, True):
        with pytest.raises(st.StorageUnavailable):
            store.put_file(key, tmp_path / "nowhere", PNG, consume=consume)


def test_stat_says_size_and_time(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"12345", PNG)
    s = store.stat(key)
    assert (s.key, s.size) == (key, 5)
    assert abs(s.modified_at - datetime.now(UTC)) < timedelta(seconds=10)


def test_missing_is_said_by_every_reader(store: st.Storage) -> None:
    for call in (lambda: store.read("no/such", 10), lambda: store.stat("no/such")):
        with pytest.raises(st.ObjectMissing):
            call()
    with pytest.raises(st.ObjectMissing), store.open_local("no/such"):
        pass
    assert not store.exists("no/such")


def test_a_folder_is_not_an_object(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"1", PNG)
    folder = key.rpartition("/")[0]
    assert not store.exists(folder)
    with pytest.raises(st.ObjectMissing):
        store.read(folder, 10)


def test_read_refuses_more_than_the_limit(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"x" * 11, PNG)
    assert store.read(key, 11) == b"x" * 11
    with pytest.raises(st.ObjectTooLarge):
        store.read(key, 10)


def test_delete_takes_many_and_minds_no_absent_one(store: st.Storage, key: str) -> None:
    keys = [f"{key}.{i}" for i in range(5)]
    for k in keys[:3]:
        store.put_bytes(k, b"x", PNG)
    store.delete(keys)
    store.delete(keys)
    store.delete([])
    assert not any(store.exists(k) for k in keys)


def test_delete_checks_all_keys_before_any_is_gone(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"x", PNG)
    with pytest.raises(st.InvalidKey):
        store.delete([key, "../../etc/passwd"])
    assert store.exists(key)


def test_the_callers_error_passes_through_and_the_object_stays(store: st.Storage, key: str) -> None:
    store.put_bytes(key, b"x", PNG)
    with pytest.raises(FileNotFoundError), store.open_local(key):
        raise FileNotFoundError("the caller's own")
    assert store.exists(key)


def test_writers_of_one_key_never_mix(store: st.Storage, key: str) -> None:
    bodies = [bytes([65 + i]) * 200_000 for i in range(6)]
    threads = [threading.Thread(target=store.put_bytes, args=(key, b, PNG)) for b in bodies]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert store.read(key, 200_000) in bodies


@pytest.mark.parametrize(
    "bad",
    [
        "", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.hidden", "a\\b", "a b", "ä", "a\x00b",
        "a\n", "-rf", "x" * 201, "a/" * 300 + "a", "~/x", "a/b?c",
    ],
)  # fmt: skip
def test_odd_keys_are_refused_and_not_repeated(store: st.Storage, bad: str) -> None:
    with pytest.raises(st.InvalidKey) as caught:
        store.put_bytes(bad, b"x", PNG)
    assert not bad or bad not in str(caught.value) or len(bad) < 2
    for call in (store.exists, store.stat, lambda k: store.read(k, 1), lambda k: store.delete([k])):
        with pytest.raises(st.InvalidKey):
            call(bad)


# -- the folder ------------------------------------------------------------------------------------------


def test_files_are_private_whatever_the_umask_and_the_source(tmp_path: Path) -> None:
    store = st.LocalStorage(tmp_path / "root")
    source = tmp_path / "upload"
    source.write_bytes(b"x")
    source.chmod(0o644)
    old = os.umask(0)
    try:
        store.put_bytes("a/b/one", b"x", PNG)
        store.put_file("a/b/two", source, PNG, consume=True)
    finally:
        os.umask(old)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "root", *(tmp_path / "root").rglob("*")]}
    assert modes == {"root": 0o700, ".incoming": 0o700, "a": 0o700, "b": 0o700, "one": 0o600, "two": 0o600}


def test_consuming_renames_within_a_file_system(tmp_path: Path) -> None:
    store = st.LocalStorage(tmp_path / "root")
    source = tmp_path / "upload"
    source.write_bytes(b"x")
    inode = source.stat().st_ino
    store.put_file("k", source, PNG, consume=True)
    assert (tmp_path / "root" / "k").stat().st_ino == inode


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_consuming_copies_across_file_systems(tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"gradeline-{os.getpid()}"
    source.write_bytes(b"x")
    if source.stat().st_dev == tmp_path.stat().st_dev:
        source.unlink()
        pytest.skip("one file system only")
    store = st.LocalStorage(tmp_path / "root")
    store.put_file("k", source, PNG, consume=True)
    assert not source.exists()
    assert store.read("k", 1) == b"x"


@pytest.mark.parametrize("consume", [True, False])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_taken(store: st.Storage, key: str, kind: str, consume: bool, tmp_path: Path) -> None:
    """Not what a link names, which may be a secret; and a pipe would be waited for without end."""
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(st.StorageUnavailable):
        store.put_file(key, tmp_path / kind, PNG, consume=consume)
    assert not store.exists(key)


def test_copies_of_objects_that_a_killed_process_left_are_removed(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = _s3(s3_endpoint)
    store.put_bytes("sweep/k", b"x", PNG)
    with store.open_local("sweep/k") as path:
        in_use = path
        left = path.with_name(f"{path.name}-left")
        left.write_bytes(b"student work")
        os.utime(left, (0, 0))
        with _s3(s3_endpoint).open_local("sweep/k"):
            assert not left.exists()
            assert in_use.exists()
    assert list(tmp_path.iterdir()) == []


def test_deleting_the_last_object_removes_its_folders_but_not_the_root(tmp_path: Path) -> None:
    store = st.LocalStorage(tmp_path / "root")
    store.put_bytes("a/b/c", b"x", PNG)
    store.put_bytes("a/d", b"x", PNG)
    store.delete(["a/b/c"])
    assert not (tmp_path / "root/a/b").exists()
    assert store.exists("a/d")
    store.delete(["a/d"])
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".incoming"]


def test_writing_and_pruning_the_same_folder_never_fails(tmp_path: Path) -> None:
    store = st.LocalStorage(tmp_path / "root")
    failures: list[BaseException] = []

    def churn(n: int) -> None:
        try:
            for _ in range(60):
                store.put_bytes(f"a/b/{n}", b"x", PNG)
                store.delete([f"a/b/{n}"])
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_nothing_half_written_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = st.LocalStorage(tmp_path / "root")
    store.put_bytes("k", b"old", PNG)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(st.StorageUnavailable, match="No space left") as caught:
        store.put_bytes("k", b"new", PNG)
    assert str(tmp_path) not in str(caught.value)
    monkeypatch.undo()
    assert store.read("k", 10) == b"old"
    assert list((tmp_path / "root/.incoming").iterdir()) == []


def test_leftovers_of_a_dead_process_are_swept_and_live_ones_kept(tmp_path: Path) -> None:
    incoming = tmp_path / "root/.incoming"
    incoming.mkdir(parents=True)
    (incoming / "old").write_bytes(b"student work")
    os.utime(incoming / "old", (time.time() - 7200, time.time() - 7200))
    (incoming / "fresh").write_bytes(b"being written")
    st.LocalStorage(tmp_path / "root").put_bytes("k", b"x", PNG)
    assert [p.name for p in incoming.iterdir()] == ["fresh"]


# -- the bucket ------------------------------------------------------------------------------------------


def test_the_download_is_removed_afterwards(s3_endpoint: str, key: str) -> None:
    store = _s3(s3_endpoint)
    store.put_bytes(key, b"x", PNG)
    with store.open_local(key) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), store.open_local(key) as path:
        raise ZeroDivisionError
    assert not path.exists()


def test_the_media_type_travels(s3_endpoint: str, key: str) -> None:
    _s3(s3_endpoint).put_bytes(key, b"x", PNG)
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    assert client.head_object(Bucket="gradeline", Key=key)["ContentType"] == PNG


def test_an_object_that_changed_in_the_bucket_is_noticed(s3_endpoint: str, key: str) -> None:
    store = _s3(s3_endpoint)
    store.put_bytes(key, b"genuine", PNG)
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    kept = client.head_object(Bucket="gradeline", Key=key)["Metadata"]
    client.put_object(Bucket="gradeline", Key=key, Body=b"altered", Metadata=kept)
    with pytest.raises(st.ObjectCorrupt):
        store.read(key, 100)
    with pytest.raises(st.ObjectCorrupt), store.open_local(key):
        pass


def test_more_than_a_thousand_deletes_go_in_batches(s3_endpoint: str) -> None:
    store = _s3(s3_endpoint)
    store.put_bytes("many/1040", b"x", PNG)
    store.delete(f"many/{i}" for i in range(1041))
    assert not store.exists("many/1040")


def test_a_missing_bucket_is_not_a_missing_object(s3_endpoint: str) -> None:
    store = st.S3Storage("nobody", endpoint_url=s3_endpoint, access_key_id="k", secret_access_key="s")
    with pytest.raises(st.StorageUnavailable, match="NoSuchBucket"):
        store.read("k", 1)


def test_a_server_that_is_down_is_unavailable_in_bounded_time(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    store = _s3(f"http://127.0.0.1:{port}")
    source = tmp_path / "upload"
    source.write_bytes(b"x")
    began = time.monotonic()
    with pytest.raises(st.StorageUnavailable):
        store.exists("k")
    with pytest.raises(st.StorageUnavailable):
        store.put_file("k", source, PNG, consume=True)
    assert time.monotonic() - began < 15
    assert source.exists()


def test_a_server_that_accepts_and_stays_silent_is_unavailable_in_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        store = _s3(f"http://127.0.0.1:{server.getsockname()[1]}", connect_timeout=0.3, read_timeout=0.3, attempts=2)
        began = time.monotonic()
        with pytest.raises(st.StorageUnavailable):
            store.read("k", 1)
        assert time.monotonic() - began < 10


def test_a_server_that_breaks_off_in_mid_object_is_unavailable() -> None:
    def serve(server: socket.socket) -> None:
        for _ in range(3):
            try:
                conn, _ = server.accept()
            except OSError:
                return
            with conn:
                conn.recv(65536)
                conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: "x"\r\n\r\nonly this')

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        store = _s3(f"http://127.0.0.1:{server.getsockname()[1]}", read_timeout=2)
        with pytest.raises(st.StorageUnavailable):
            store.read("k", 1000)


# -- choosing --------------------------------------------------------------------------------------------


def test_settings_choose_the_store(tmp_path: Path, s3_endpoint: str) -> None:
    assert isinstance(st.from_settings(Settings(storage_dir=tmp_path)), st.LocalStorage)
    bucket = st.from_settings(
        Settings(
            s3_bucket="gradeline",
            s3_endpoint_url=s3_endpoint,
            s3_access_key_id=SecretStr("k"),
            s3_secret_access_key=SecretStr("s"),
        )
    )
    bucket.put_bytes("chosen", b"x", PNG)
    assert bucket.exists("chosen")


def test_local_storage_never_imports_boto3(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from shared.settings import Settings; from shared import storage\n"
        f"s = storage.from_settings(Settings(storage_dir=pathlib.Path({str(tmp_path)!r})))\n"
        "s.put_bytes('k', b'x', 'image/png'); s.read('k', 9); s.delete(['k'])\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)


def test_walk_meets_every_object_of_a_folder_and_no_other(store: st.Storage, key: str) -> None:
    root = key.rpartition("/")[0]
    keys = {f"{root}/{name}" for name in ("a/1.jpg", "a/b/2.jpg", "a/b/c.d/3.jpg", "a-4.jpg", "z")}
    for k in keys:
        store.put_bytes(k, b"x", PNG)
    store.put_bytes(f"{root}b/other", b"x", PNG)
    found = list(store.walk(root))
    assert sorted(o.key for o in found) == sorted(keys)
    assert all(o.size == 1 and o.modified_at.tzinfo is not None for o in found)
    assert {o.key for o in store.walk(f"{root}/a")} == {k for k in keys if k.startswith(f"{root}/a/")}
    assert list(store.walk(f"{root}/none")) == []
    with pytest.raises(st.InvalidKey):
        list(store.walk("../etc"))


def test_walk_goes_on_while_what_it_meets_is_deleted(store: st.Storage, key: str) -> None:
    root = key.rpartition("/")[0]
    keys = {f"{root}/{n}/page.jpg" for n in range(5)}
    for k in keys:
        store.put_bytes(k, b"x", PNG)
    met = set()
    for found in store.walk(root):
        met.add(found.key)
        store.delete([found.key])
    assert met == keys
