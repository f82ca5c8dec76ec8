"""The engines that a bench can compare with: what each needs, which precisions it has, how it is set."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.cache_folder import cache_folder
from ssruntime.errors import ConfigError

_WORKERS: Final = Path(__file__).with_name("workers")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An engine to compare with, with or without its own lookup.

    Attributes:
        engine: name of the engine; peers of one engine share an environment and a converted model.
        worker: file name of the program that runs it.
        package: name of the package whose version is reported.
        requirements: what its environment needs, for pip.
        unwanted: what pip installs with them and the engine cannot be imported beside.
        dtypes: data types of weights that it can be compared in.
        looks_up: whether it proposes tokens from the text (prompt lookup, n-grams).
    """

    engine: str
    worker: str
    package: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    dtypes: frozenset[str]
    looks_up: bool = False

    @property
    def program(self) -> Path:
        """The program that runs the engine."""
        return _WORKERS / self.worker

    @property
    def folder(self) -> Path:
        """The folder of its environment and its converted models."""
        return cache_folder() / "peers" / self.engine

    @property
    def python(self) -> Path:
        """The Python interpreter of its environment."""
        return Path(sys.executable) if not self.requirements else self.folder / "environment" / "bin" / "python"

    @property
    def setup_command(self) -> str:
        """The command that makes its environment."""
        folder = shlex.quote(str(self.folder / "environment"))
        install = f"python3 -m venv {folder} && {folder}/bin/pip install {shlex.join(self.requirements)}"
        return f"{install} && {folder}/bin/pip uninstall -y {shlex.join(self.unwanted)}" if self.unwanted else install


_TRANSFORMERS: Final = Peer(
    engine="transformers", worker="with_transformers.py", package="transformers", requirements=(), dtypes=frozenset({"fp32"})
)
_GENAI: Final = Peer(
    engine="onnxruntime-genai",
    worker="with_genai.py",
    package="onnxruntime-genai",
    requirements=("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx", "onnx-ir", "transformers", "torch==2.13.0"),
    dtypes=frozenset({"fp32", "int4"}),
)
_OPENVINO: Final = Peer(
    engine="openvino-genai",
    worker="with_openvino.py",
    package="openvino-genai",
    requirements=("openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0", "torch==2.13.0"),
    unwanted=("torchvision",),
    dtypes=frozenset({"fp32", "int8", "int4"}),
)
_LLAMACPP: Final = Peer(
    engine="llama-cpp-python",
    worker="with_llamacpp.py",
    package="llama-cpp-python",
    requirements=("llama-cpp-python==0.3.36", "gguf==0.19.0"),
    dtypes=frozenset({"fp32", "int8"}),
)


PEERS: Final[Mapping[str, Peer]] = {
    "hf": _TRANSFORMERS,
    "hf-lookup": dataclasses.replace(_TRANSFORMERS, looks_up=True),
    "genai": _GENAI,
    "genai-ngram": dataclasses.replace(_GENAI, looks_up=True),
    "openvino": _OPENVINO,
    "openvino-lookup": dataclasses.replace(_OPENVINO, looks_up=True),
    "llamacpp": _LLAMACPP,
}
"""The peers by name."""


def parse_peers(text: str) -> tuple[str, ...]:
    """Returns the names in a comma-separated list.

    Raises:
        ConfigError: if a name is unknown, empty or given twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in PEERS]
    if unknown or len(set(names)) < len(names):
        what = f"unknown peer {unknown[0]!r}" if unknown else f"a peer is named twice: {text!r}"
        raise ConfigError(what, f"known: {', '.join(PEERS)}")
    return names
