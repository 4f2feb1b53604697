"""Job types and the models that cross process boundaries. Imports pydantic only.

Declaring a type in ``job_types`` and adding its folder under a service is all a new type takes.
"""

from .contract import Contract, JobType, Policy, Registry, UnknownJobType
from .grading import GivenAnswer, GradingPayload, MatchKind, QuestionMark, QuizResult
from .job_types import GRADING_QUIZ, JOB_TYPES, NOTIFY_EMAIL, NOTIFY_WEBHOOK, OCR_DOCUMENT
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
