"""Reads JSON; reads mappings into frozen dataclasses and refuses unknown, missing or mistyped keys."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from ssruntime.errors import SelfSpecError, did_you_mean

T = TypeVar("T")

_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 2


def parse_json(text: str | bytes, *, number: Callable[[str], float] | None = None) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: the text; bytes in UTF-8.
        number: reader of floating-point numbers, `NaN` and infinities; by default Python's own.

    Raises:
        ValueError: if the text is not JSON, is not UTF-8, or is nested too deeply to be read.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, parse_float=number, parse_constant=number)
    except RecursionError as err:
        raise ValueError("brackets are nested too deeply") from err


def read_content(path: Path, *, error: type[SelfSpecError]) -> bytes:
    """Returns the content of a file.

    Raises:
        SelfSpecError: of class `error`, if the system refuses to read it.
    """
    try:
        return path.read_bytes()
    except OSError as err:
        raise error(f"{path} cannot be read: {err.strerror or err}", "check that this is a file, and its permissions") from err


def read_json_object(path: Path, *, error: type[SelfSpecError], hint: str) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        SelfSpecError: of class `error`, if the file cannot be read, or, with this hint, holds no JSON object.
    """
    content = read_content(path, error=error)
    try:
        data = parse_json(content)
    except ValueError as err:
        raise error(f"{path} cannot be read: {err}", hint) from err
    if not isinstance(data, dict):
        raise error(f"{path} does not hold a JSON object", hint)
    return data


def read_record(cls: type[T], data: object, *, where: str, error: type[SelfSpecError]) -> T:
    """Returns an instance of a dataclass, made from a mapping.

    Args:
        cls: a dataclass; its field types may be scalars, `X | None`, `tuple[X, ...]`, `dict[str, X]`, or
            dataclasses. A type with a class method `read` (with the arguments of this function after `cls`)
            reads its own values.
        data: the parsed content of the file.
        where: name of the place in error messages, for example `manifest.json`.
        error: the error class to raise.

    Raises:
        SelfSpecError: of class `error`, if a key is unknown (the hint names the closest known one) or
            missing, or a value has another type.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where}: expected an object with keys, found {_kind(data)}", "correct this value")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in data:
        if key not in fields:
            raise error(f"{where}: unknown key {key!r}", did_you_mean(key, fields))
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], where=f"{where}: {name}", error=error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{where}: key {name!r} is missing", "add it")
    return cls(**values)


def _convert(hint: Any, value: object, *, where: str, error: type[SelfSpecError]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _convert(inner[0], value, where=where, error=error)
    if origin is typing.Literal:
        if value not in args:
            raise error(f"{where}: expected one of {', '.join(map(str, args))}, found {_kind(value)}", "correct this value")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise error(f"{where}: expected a list, found {_kind(value)}", "correct this value")
        return tuple(_convert(args[0], v, where=f"{where}[{i}]", error=error) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected an object with keys, found {_kind(value)}", "correct this value")
        return {str(k): _convert(args[1], v, where=f"{where}.{k}", error=error) for k, v in value.items()}
    if hasattr(hint, "read"):
        return hint.read(value, where=where, error=error)
    if dataclasses.is_dataclass(hint):
        return read_record(typing.cast(type[Any], hint), value, where=where, error=error)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise error(f"{where}: {_kind(value)} is too large") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise error(f"{where}: expected {hint.__name__}, found {_kind(value)}", "correct this value")
    return value


def _kind(value: object) -> str:
    # Lists and mappings are shortened: with YAML aliases, a small file can hold one that prints without end.
    shown = repr(value) if value is None or isinstance(value, str | int | float) else _SHORT.repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
