"""Answers requests, one JSON object a line. Runs in the environment of a peer: standard library only."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Decode = Callable[[dict[str, Any]], dict[str, Any]]


def serve(open_model: Callable[[dict[str, Any]], Decode]) -> None:
    """Answers the first line after opening the model that it names, and each other line with a completion.

    Args:
        open_model: takes the first request; returns the function that completes a prompt.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the engine prints must not come between answers
    decode: Decode | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if decode is None:
                decode = open_model(request)
                answer: dict[str, Any] = {"version": importlib.metadata.version(request["package"])}
            else:
                answer = decode(request)
        except Exception as err:  # noqa: BLE001 - whatever it is, the bench reports it in this peer's row
            answer = {"error": f"{type(err).__name__}: {err}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def converted(request: dict[str, Any], command: Callable[[str], list[str]]) -> str:
    """Returns the folder of the converted model, which it makes with a command if there is none.

    Args:
        request: the first request.
        command: takes the folder to write to; returns the command line.
    """
    folder = Path(request["converted"])
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        done = subprocess.run(command(str(scratch)), capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(scratch, ignore_errors=True)
            raise RuntimeError(f"cannot convert the checkpoint: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        try:
            scratch.rename(folder)
        except OSError:  # another process was sooner
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder)
