"""Resolves a model's name to a local folder; downloads its own weights, config and tokenizer only.

Repositories hold more: the same weights in other formats, checkpoints of the training, adapters. Which weight
files are the model's own is what its index says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.artifact import CHAT_TEMPLATE, CHECKPOINT_CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.errors import CheckpointError
from sstool.checkpoint.mistaken_folders import ADAPTER_CONFIG
from sstool.checkpoint.safetensors_files import WEIGHT_INDEX, weight_files

_SMALL: Final = (
    CHECKPOINT_CONFIG,
    GENERATION_CONFIG,
    WEIGHT_INDEX,
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    ADAPTER_CONFIG,
)
"""Files beside the weights; `ADAPTER_CONFIG` because a model with an adapter is refused."""
_OWN_FOLDER_HINT: Final = "pass a checkpoint folder on disk: --model PATH"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A checkpoint's folder and its origin.

    Attributes:
        source: hub id, or the name of the user's folder without the path before it.
        folder: folder that holds the checkpoint's files.
        revision: hub commit; None for a folder of the user.
    """

    source: str
    folder: Path
    revision: str | None


def resolve(model: str | Path, revision: str | None = None) -> ResolvedModel:
    """Returns the local folder of a model, after downloading a hub snapshot if needed.

    Runs no code of the model and downloads no pickle file.

    Args:
        model: folder, or hub id such as `org/name`.
        revision: hub branch, tag or commit; only with a hub id.

    Raises:
        CheckpointError: if the folder does not exist, the hub has no such model, or it cannot be reached.
    """
    name = str(model)
    if not name.strip():
        raise CheckpointError("no model folder at '': the name is empty", "pass a folder, or a hub id such as org/name")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name} is a folder, which has no revision {revision!r}", "leave out the revision, or pass a hub id")
        return ResolvedModel(source=folder.resolve().name, folder=folder, revision=None)
    if folder.exists():
        raise CheckpointError(f"{name} is a file, not a model folder", "pass the folder that holds config.json")
    if _is_path(name, folder):
        raise CheckpointError(f"no model folder at {name}", "check the path, or pass a hub id such as org/name")
    return _download(name, revision)


def _is_path(name: str, folder: Path) -> bool:
    """Returns whether a name must be a path.

    A hub id has at most one slash, and the part before the slash is not the name of a local folder.
    """
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith("/"):
        return True
    return "/" in name and folder.parent.is_dir()


def _download(name: str, revision: str | None) -> ResolvedModel:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_SMALL)))
        # The same commit, which names the folder, although the branch may have moved since.
        huggingface_hub.snapshot_download(name, revision=folder.name, allow_patterns=weight_files(folder))
    except errors.HFValidationError as err:
        raise CheckpointError(
            f"no model folder at {name}, and the name is not a valid hub id", "check the path, or pass a hub id such as org/name"
        ) from err
    except errors.GatedRepoError as err:
        raise CheckpointError(
            f"hub model {name} is gated: downloads need permission", "accept its terms on the hub and log in: hf auth login"
        ) from err
    except errors.RepositoryNotFoundError as err:
        raise CheckpointError(f"no model folder at {name}, and the hub has no model of that name", _OWN_FOLDER_HINT) from err
    except errors.RevisionNotFoundError as err:
        raise CheckpointError(f"hub model {name} has no revision {revision!r}", "pass a branch, tag or commit of the model") from err
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError, errors.OfflineModeIsEnabled) as err:
        raise CheckpointError(
            f"no model folder at {name}, and the hub model{at} cannot be fetched: no network, or offline mode", _OWN_FOLDER_HINT
        ) from err
    except (errors.HfHubHTTPError, OSError, ValueError) as err:
        reason = str(err).partition("\n")[0]
        raise CheckpointError(f"hub model {name}{at} cannot be fetched: {reason}", _OWN_FOLDER_HINT) from err
    return ResolvedModel(source=name, folder=folder, revision=folder.name)
