"""Which tensors of a checkpoint its model reads.

Checkpoints hold more: heads of a training, buffers, masks. What the model does not read decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from sstool.checkpoint.quiet import quiet

logger = logging.getLogger(__name__)


def used_tensors(config: Any, names: Iterable[str]) -> set[str]:
    """Returns the names of the tensors that transformers would load into the model.

    The model is built without memory for its weights. If transformers cannot tell, all tensors count as used.

    Args:
        config: the checkpoint's config as transformers reads it.
        names: names of the tensors in the weight files.
    """
    listed = list(names)
    try:
        with quiet():
            return _loaded(config, listed)
    except Exception:  # transformers lets any exception of its model code through
        logger.debug("transformers cannot say which tensors are used", exc_info=True)
        return set(listed)


def _loaded(config: Any, names: Iterable[str]) -> set[str]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    parameters = model.state_dict()
    mapping = get_model_conversion_mapping(model) or []
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    return {n for n in names if rename_source_key(n, renamings, converters, model.base_model_prefix, parameters)[0] in parameters}
