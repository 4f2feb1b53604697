"""Settings of all services, read from the environment once, in ``main()``. Nothing is read at import."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]


class Settings(BaseSettings):
    """Every field is an environment variable of the same name in upper case. Seconds and bytes throughout."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    database_url: SecretStr = SecretStr("postgresql://localhost/gradeline")
    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    db_pool_size: int = Field(default=8, ge=1)
    # Signs short-lived links and derives each organisation's webhook secret. Rotate with care: it voids both.
    secret_key: SecretStr = SecretStr("")
    public_url: str = "http://127.0.0.1:8080"
    environment: str = "local"
    log_level: str = "INFO"
    sentry_dsn: SecretStr | None = None

    # Gateway
    api_host: str = "127.0.0.1"
    port: int = 8080
    api_workers: int = Field(default=2, ge=1)

    # Object storage: S3 when a bucket is named, else a local folder.
    storage_dir: Path = Path("var/storage")
    s3_bucket: str | None = None
    s3_endpoint_url: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None

    smtp_url: SecretStr | None = None  # smtp://user:password@host:port, smtps:// for TLS from the start
    mail_from: str = "Gradeline <no-reply@gradeline.example>"

    # Webhooks go to public https addresses only, unless a network is allowed here (comma-separated CIDRs).
    webhook_allow_networks: str = ""
    webhook_timeout: float = 10.0

    # Uploads
    max_file_bytes: int = 25 * 1024 * 1024
    max_files: int = 50
    max_pages: int = 200
    upload_seconds: float = Field(default=300.0, gt=0)  # for an upload to arrive whole
    request_seconds: float = Field(default=30.0, gt=0)  # for any other request's body

    # Worker runtime
    worker_concurrency: int = Field(default=3, ge=1)
    worker_start_rate: float = Field(default=10.0, ge=0)  # job starts a second and process; 0: no limit
    lease_seconds: float = Field(default=15.0, gt=0)
    heartbeat_seconds: float = Field(default=1.0, gt=0)
    shutdown_grace_seconds: float = 25.0
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    ocr_processes: int = Field(default=0, ge=0)  # 0: one a core
    ocr_memory_bytes: int = 3 * 1024**3  # address space of one OCR child

    # Scheduler
    rescue_seconds: float = 5.0
    rewake_seconds: float = 1.0
    prune_seconds: float = Field(default=30.0, gt=0)

    # Retention: how long what has ended is kept, and how many ended jobs an organisation keeps (0: all of them).
    # An organisation's own columns come first. Results go with their jobs; readings, submissions and gradings stay.
    retention_hours: float = Field(default=24.0, ge=0)  # completed and cancelled jobs
    dead_letter_hours: float = Field(default=168.0, ge=0)  # failed ones
    retention_count: int = Field(default=0, ge=0)
    file_retention_hours: float = Field(default=24.0, ge=0)  # uploads and page images
    file_review_days: float = Field(default=30.0, ge=0)  # those of work that a teacher has yet to look at

    def signing_key(self) -> bytes:
        """The secret key as bytes. Raises ValueError when it is missing, with the remedy."""
        key = self.secret_key.get_secret_value()
        if len(key) < 32:
            raise ValueError(
                "SECRET_KEY must be set to at least 32 characters, for example "
                "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        return key.encode()

    @staticmethod
    def new_secret_key() -> str:
        return secrets.token_urlsafe(48)
