"""Job types and the models that cross process boundaries. Imports pydantic only.

``JOB_TYPES`` is the one list of what work exists: the gateway accepts by it, workers are checked
against it. Declaring a type here and adding its folder under a service is all a new type takes.
"""

from .grading import GivenAnswer, GradingPayload, MatchKind, QuestionMark, QuizResult
from .jobtype import Contract, JobType, Policy, Registry, UnknownJobType
from .notifications import EmailPayload, EmailResult, EventType, WebhookEvent, WebhookPayload, WebhookResult
from .reading import Box, Confidence, Line, OcrPayload, OcrProvider, OcrResult, Page, PageSummary, Word
from .standards import (
    AnswerKey,
    ListQuestion,
    MultipleChoice,
    Numeric,
    Question,
    ShortText,
    SingleChoice,
    Tolerance,
    TrueFalse,
)

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

__all__ = [
    "GRADING_QUIZ",
    "JOB_TYPES",
    "NOTIFY_EMAIL",
    "NOTIFY_WEBHOOK",
    "OCR_DOCUMENT",
    "AnswerKey",
    "Box",
    "Confidence",
    "Contract",
    "EmailPayload",
    "EmailResult",
    "EventType",
    "GivenAnswer",
    "GradingPayload",
    "JobType",
    "Line",
    "ListQuestion",
    "MatchKind",
    "MultipleChoice",
    "Numeric",
    "OcrPayload",
    "OcrProvider",
    "OcrResult",
    "Page",
    "PageSummary",
    "Policy",
    "Question",
    "QuestionMark",
    "QuizResult",
    "Registry",
    "ShortText",
    "SingleChoice",
    "Tolerance",
    "TrueFalse",
    "UnknownJobType",
    "WebhookEvent",
    "WebhookPayload",
    "WebhookResult",
    "Word",
]
