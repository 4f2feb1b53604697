"""The one list of what work exists. The gateway accepts by it, and workers are checked against it."""

from .contract import JobType, Policy, Registry
from .grading import GradingPayload, QuizResult
from .notifications import EmailPayload, EmailResult, WebhookPayload, WebhookResult
from .reading import OcrPayload, OcrResult

__all__ = ["GRADING_QUIZ", "JOB_TYPES", "NOTIFY_EMAIL", "NOTIFY_WEBHOOK", "OCR_DOCUMENT"]

JOB_TYPES = Registry()

OCR_DOCUMENT = JOB_TYPES.declare(
    JobType("ocr.document", "ocr", OcrPayload, OcrResult, title="Reading", policy=Policy(time_limit=3600))
)
GRADING_QUIZ = JOB_TYPES.declare(
    JobType("grading.quiz", "grading", GradingPayload, QuizResult, title="Grading", policy=Policy(time_limit=600))
)
NOTIFY_WEBHOOK = JOB_TYPES.declare(
    JobType(
        "notify.webhook",
        "notify",
        WebhookPayload,
        WebhookResult,
        title="Webhook",
        # 5 s, 10 s, 20 s … 15 min: about 1.5 h of tries before a consumer's outage costs it an event.
        policy=Policy(time_limit=30, max_retries=11, backoff_base=5),
        public=False,
    )
)
NOTIFY_EMAIL = JOB_TYPES.declare(
    JobType(
        "notify.email",
        "notify",
        EmailPayload,
        EmailResult,
        title="Mail",
        policy=Policy(time_limit=60, max_retries=8, backoff_base=10),
        public=False,
    )
)
