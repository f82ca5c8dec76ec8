"""The prompts that a check decodes: the caller's files, or a few built-in prompts that suit any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sstool.prompts import PromptRecord


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """The prompts of one file, in its order; the seed of a prompt derives from its index."""

    name: str
    prompts: Sequence[PromptRecord]


_TEXTS: Final = {
    "story": "Once upon a time there was a little girl who lived with her father in a house near the sea. One morning she",
    "question": "Question: A baker has 24 rolls. She sells 9 in the morning and half of the rest at noon. How many are left?\nAnswer:",
    "function": "def largest(values):\n    best = values[0]\n    for value in values[1:]:",
    "letter": "Dear Anna,\n\nThank you for the book. I have read the first two chapters, and what I like most is",
    "list": "Things to take on the walk:\n1. a bottle of water\n2. bread and cheese\n3.",
    "class": "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):",
    "facts": "Water freezes at 0 degrees and boils at 100 degrees. When it rains, the water in the river",
    "talk": '"Where have you been?" asked the old man. "I was looking for my hat," said the boy. "It was',
}


def built_in_prompts() -> PromptFile:
    """Returns eight short prompts of different kinds, written for this check."""
    return PromptFile(
        name="built-in", prompts=[PromptRecord(id=name, prompt=text, index=i) for i, (name, text) in enumerate(_TEXTS.items())]
    )
