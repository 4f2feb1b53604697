"""The parts of finding answers on pages: reading order, question starts, and the answer within a question's block."""

from .block import answer_in_block
from .fragments import Fragment, Piece, answer_from, reading_order
from .starts import find_starts

__all__ = ["Fragment", "Piece", "answer_from", "answer_in_block", "find_starts", "reading_order"]
