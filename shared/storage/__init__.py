"""Object storage for uploads and page images: a local folder, or a bucket that speaks S3.

Keys are relative paths such as ``org/…/doc/…/original``. An object is whole or absent: a reader never sees
half of one. boto3 is imported by the first call on an ``S3Storage`` and by nothing else.
"""

from __future__ import annotations

from shared.settings import Settings

from ._errors import InvalidKey, ObjectCorrupt, ObjectMissing, ObjectTooLarge, StorageError, StorageUnavailable
from ._keys import check_key
from ._local import LocalStorage
from ._protocol import ObjectStat, Storage
from ._s3 import S3Storage

__all__ = [
    "InvalidKey",
    "LocalStorage",
    "ObjectCorrupt",
    "ObjectMissing",
    "ObjectStat",
    "ObjectTooLarge",
    "S3Storage",
    "Storage",
    "StorageError",
    "StorageUnavailable",
    "check_key",
    "from_settings",
]


def from_settings(settings: Settings) -> Storage:
    """The bucket named by ``s3_bucket``, else the folder ``storage_dir``. Opens no connection."""
    if settings.s3_bucket is None:
        return LocalStorage(settings.storage_dir)
    return S3Storage(
        settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id.get_secret_value() if settings.s3_access_key_id else None,
        secret_access_key=settings.s3_secret_access_key.get_secret_value() if settings.s3_secret_access_key else None,
    )
