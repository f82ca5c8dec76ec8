"""A skip set of the demo model, draft sequences over calibration texts, and hand-made latency tables."""

from __future__ import annotations

from ssruntime.acceptance import make_acceptance
from ssruntime.artifact import SkipSet
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.log.records import FORMAT, LatencyRow, LatencyTable
from sstool.search.scoring.draft_sequences import DraftedText
from sstool.search.texts.make import CachedText
from tests.search.conftest import SETTINGS

SKIP = SkipSet(attention=(1, 2, 3, 6, 12, 14, 15), mlp=(1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14))
"""A skip set of the demo model whose draft is often accepted, but not always."""


def drafted(builder: DraftBuilder, cached: CachedText, skip: SkipSet) -> DraftedText:
    """Returns the draft sequences of a skip set over a calibration text."""
    text = cached.text
    cached.slot.use_draft(builder.open(skip))
    settings = builder.engine.settings(SETTINGS.decoding(text.kind, text.seed))
    end = len(text.prompt) + len(text.tokens)
    acceptance = make_acceptance(settings, len(text.prompt))
    return DraftedText(cached.slot, text, acceptance, max_alternatives=settings.max_alternatives, alternatives_end=end)


def table(*rows: LatencyRow) -> LatencyTable:
    """Returns a latency table of these rows."""
    return LatencyTable(format=FORMAT, weights_sha256="w", verify_sha256="v", cpu="c", threads=1, onnxruntime="1", rows=rows, fit_error=0.0)
