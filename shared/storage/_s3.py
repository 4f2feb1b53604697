"""Objects in a bucket, by boto3, for anything that speaks S3 (AWS, MinIO, R2, Ceph …)."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ._errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge, StorageUnavailable
from ._files import open_regular
from ._keys import check_key
from ._protocol import ObjectStat
from .leftovers import sweep

__all__ = ["S3Storage"]

_DELETE_BATCH = 1000  # the most DeleteObjects takes (AWS API reference)
_CHUNK = 256 * 1024
_LOCAL_COPY = "gradeline-object-"
_STALE_SECONDS = 7200.0  # twice the longest time limit of a job, which is how long a copy may be in use
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Storage:
    """One bucket. Keys and secret may be None: then boto3's own chain (role, environment) finds them.

    Every object carries its SHA-256: the store checks it on arrival, and it is checked again on the way back.
    A call ends within about ``attempts`` × (``connect_timeout`` + ``read_timeout``) seconds of silence.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 15.0,
        attempts: int = 3,
    ) -> None:
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._region = region
        self._access_key_id = access_key_id
        self._secret_access_key = secret_access_key
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._attempts = attempts
        self._lock = threading.Lock()
        self._made: Any = None
        self._swept = False

    def put_file(self, key: str, path: Path, media_type: str, *, consume: bool = False) -> None:
        check_key(key)
        try:
            with open_regular(path) as f:
                digest = hashlib.file_digest(f, "sha256").digest()
                f.seek(0)
                self._put(key, f, digest, media_type)
        except OSError as e:
            raise StorageUnavailable(f"the file to store could not be read: {e.strerror or type(e).__name__}") from e
        if consume:
            path.unlink(missing_ok=True)

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        check_key(key)
        self._put(key, data, hashlib.sha256(data).digest(), media_type)

    @contextmanager
    def open_local(self, key: str) -> Iterator[Path]:
        check_key(key)
        self._sweep()
        fd, name = tempfile.mkstemp(prefix=_LOCAL_COPY)  # 0600
        path = Path(name)
        try:
            with os.fdopen(fd, "wb") as f:
                self._get(key, f)
            yield path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    def _sweep(self) -> None:
        """Once a process: remove the copies of objects that earlier processes left behind when they were killed."""
        with self._lock:
            swept, self._swept = self._swept, True
        if swept:
            return
        sweep(Path(tempfile.gettempdir()), _LOCAL_COPY, older_than=_STALE_SECONDS)

    def read(self, key: str, limit: int) -> bytes:
        check_key(key)
        with tempfile.SpooledTemporaryFile(max_size=limit + 1) as f:
            self._get(key, f, limit)
            f.seek(0)
            return f.read()

    def stat(self, key: str) -> ObjectStat:
        check_key(key)
        with self._errors(key):
            head = self._client.head_object(Bucket=self._bucket, Key=key)
        return ObjectStat(key, head["ContentLength"], head["LastModified"])

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissing:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        rest = iter([check_key(k) for k in keys])
        while batch := list(islice(rest, _DELETE_BATCH)):
            with self._errors():
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": k} for k in batch], "Quiet": True}
                )
            failed = [e for e in answer.get("Errors", []) if e.get("Code") not in _MISSING]
            if failed:
                raise StorageUnavailable(f"{len(failed)} objects were not deleted: {failed[0].get('Code')}")

    def walk(self, folder: str) -> Iterator[ObjectStat]:
        wanted: dict[str, Any] = {"Bucket": self._bucket, "Prefix": f"{check_key(folder)}/"}
        while True:
            with self._errors():
                answer = self._client.list_objects_v2(**wanted)
            for found in answer.get("Contents", ()):
                yield ObjectStat(found["Key"], found["Size"], found["LastModified"])
            if not answer.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = answer["NextContinuationToken"]

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                # Late, so that a service on local storage neither pays for boto3 nor needs it installed.
                import boto3
                from botocore.config import Config

                self._made = boto3.session.Session().client(
                    "s3",
                    region_name=self._region,
                    endpoint_url=self._endpoint_url,
                    aws_access_key_id=self._access_key_id,
                    aws_secret_access_key=self._secret_access_key,
                    config=Config(
                        connect_timeout=self._connect_timeout,
                        read_timeout=self._read_timeout,
                        retries={"mode": "standard", "total_max_attempts": self._attempts},
                        max_pool_connections=32,
                        # Our own SHA-256 rides on every object; boto's trailing CRC breaks on older S3 look-alikes.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        # Stores behind a custom endpoint seldom have a host name a bucket.
                        s3={"addressing_style": "path" if self._endpoint_url else "auto"},
                    ),
                )
            return self._made

    def _put(self, key: str, body: bytes | BinaryIO, digest: bytes, media_type: str) -> None:
        with self._errors():
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                ContentType=media_type,
                ChecksumSHA256=base64.b64encode(digest).decode(),
                Metadata={"sha256": digest.hex()},  # ours to check by, even where a store drops ChecksumSHA256
            )

    def _get(self, key: str, into: Any, limit: int | None = None) -> None:
        with self._errors(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
        body = answer["Body"]
        digest, size = hashlib.sha256(), 0
        try:
            if limit is not None and answer["ContentLength"] > limit:
                raise ObjectTooLarge(key, limit)
            with self._errors(key):
                while chunk := body.read(_CHUNK):
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise ObjectTooLarge(key, limit)
                    digest.update(chunk)
                    into.write(chunk)
        finally:
            body.close()
        if answer["Metadata"].get("sha256", digest.hexdigest()) != digest.hexdigest():
            raise ObjectCorrupt(key)

    @contextmanager
    def _errors(self, key: str | None = None) -> Iterator[None]:
        """botocore's errors as this package's; their texts stay behind, only the code goes on."""
        # From here and not at the top: a call is being made, so boto3 is needed anyhow.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as e:
            code = str(e.response.get("Error", {}).get("Code", ""))
            if key is not None and code in _MISSING:
                raise ObjectMissing(key) from None
            raise StorageUnavailable(f"object storage answered {code or 'an error without a code'}") from e
        except (BotoCoreError, OSError) as e:
            raise StorageUnavailable(f"object storage could not be reached: {type(e).__name__}") from e
