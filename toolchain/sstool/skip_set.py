"""Skip sets: read strictly from flags or a file, checked against the model, and the default skip set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from ssruntime.artifact import DRAFT_GRAPH, DraftEntry, LowBitSet, SkipSet
from ssruntime.config import GenerationConfig
from ssruntime.errors import ConfigError, RecipeError, SelfSpecError, did_you_mean
from ssruntime.registry import STOPPING_RULES
from ssruntime.stopping import StoppingRule, rule_class
from ssruntime.stopping.base import TAG
from ssruntime.strict_reader import parse_json, read_record

_LIST_HINT: Final = "give layer numbers, counted from 0, such as 3,5,7"
_FILE_HINT: Final = 'write a JSON object such as {"attention": [3, 5], "mlp": [4]}'


@dataclass(frozen=True, kw_only=True)
class _OwnKeys:
    """The keys of a skip-set file that are not settings of the stopping rule."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    int4: LowBitSet | None = None
    max_alternatives: int | None = None
    mode: str | None = None


@dataclass(frozen=True, kw_only=True)
class SkipSpec(_OwnKeys):
    """A skip set as a user writes it, with the stopping rule it was tuned for.

    In a file, the settings of the stopping rule stand beside the other keys.

    Attributes:
        attention: layers whose attention the draft skips, counted from 0.
        mlp: layers whose MLP the draft skips, counted from 0.
        int4: parts for which the draft has weights of its own, of 4 bits; None for none.
        stopping: stopping rule of the draft; None leaves the runtime's default.
        max_alternatives: largest number of alternatives verified beside each drafted token, 0 to 3. An
            alternative is a side branch of the token tree, one token long.
        mode: default decoding mode of the artifact; `plain` (autoregressive decoding) if a search found no
            draft that is faster.
    """

    stopping: StoppingRule | None = None

    @staticmethod
    def keys() -> tuple[str, ...]:
        """Returns the keys of a skip-set file."""
        of_rules = sorted({key for name in STOPPING_RULES.names() for key in rule_class(name).settings()})
        return ("attention", "mlp", "int4", TAG, *of_rules, "max_alternatives", "mode")

    def skip(self) -> SkipSet:
        """Returns the skipped sublayers, layers ascending."""
        return SkipSet(attention=tuple(sorted(self.attention)), mlp=tuple(sorted(self.mlp)))

    def low_bit(self) -> LowBitSet:
        """Returns the parts with weights of 4 bits, layers ascending."""
        parts = self.int4 or LowBitSet()
        return LowBitSet(attention=tuple(sorted(parts.attention)), mlp=tuple(sorted(parts.mlp)), head=parts.head)

    @classmethod
    def read(cls, data: object, *, where: str, error: type[SelfSpecError]) -> SkipSpec:
        """Returns the skip set that a mapping holds.

        Raises:
            SelfSpecError: of class `error`, if a key is unknown, or a value has the wrong type or range.
        """
        if not isinstance(data, Mapping):
            raise error(f"{where}: expected an object with keys", _FILE_HINT)
        own, known = [f.name for f in fields(_OwnKeys)], cls.keys()
        for key in data:
            if key not in known:
                raise error(f"{where}: unknown key {key!r}", did_you_mean(str(key), known))
        given = {key: value for key, value in data.items() if key not in own and value is not None}
        spec = read_record(_OwnKeys, {key: value for key, value in data.items() if key in own}, where=where, error=error)
        rule = StoppingRule.read(given, where=where, error=error) if given else None
        return cls(stopping=rule, **vars(spec))

    def to_json(self) -> dict[str, object]:
        """Returns what `read` reads."""
        rule = {} if self.stopping is None else asdict(self.stopping)
        own = {} if self.int4 is None else {"int4": asdict(self.int4)}
        return {"attention": self.attention, "mlp": self.mlp, **own, **rule, "max_alternatives": self.max_alternatives, "mode": self.mode}

    def draft_entry(self, dtype: str) -> DraftEntry:
        """Returns the manifest entry of a draft with this skip set."""
        return DraftEntry(
            name="draft",
            graph=DRAFT_GRAPH,
            dtype=dtype,
            skip=self.skip(),
            int4=self.low_bit(),
            stopping=self.stopping,
            max_alternatives=self.max_alternatives,
            mode=self.mode or DraftEntry.mode,
        )


def parse_layers(text: str, *, flag: str) -> tuple[int, ...]:
    """Returns the layer numbers of a comma-separated list; an empty text gives none.

    Raises:
        RecipeError: if an entry is not a whole number.
    """
    layers = []
    for part in text.split(",") if text.strip() else []:
        try:
            layers.append(int(part))
        except ValueError:
            raise RecipeError(f"{flag}: {part.strip()!r} is not a layer number", _LIST_HINT) from None
    return tuple(layers)


def read_skip_file(path: Path) -> SkipSpec:
    """Returns the content of a skip-set file: a JSON object like `{"attention": [3], "mlp": [4]}`.

    Its keys are `SkipSpec.keys()`, all of them optional.

    Raises:
        RecipeError: if the file is missing or not JSON, or holds an unknown key or a value of the wrong type.
    """
    try:
        data = parse_json(path.read_bytes())
    except OSError as err:
        raise RecipeError(f"skip set {path} cannot be read: {err.strerror}", _FILE_HINT) from err
    except ValueError as err:
        raise RecipeError(f"skip set {path} is not JSON: {err}", _FILE_HINT) from err
    return SkipSpec.read(data, where=str(path), error=RecipeError)


def check_skip_spec(spec: SkipSpec, num_layers: int, *, where: str = "skip set") -> None:
    """Checks a skip set against a model of `num_layers` layers, and its settings.

    Raises:
        RecipeError: if a layer is negative, beyond the model or named twice, if every sublayer is skipped, or
            none while all weights are shared, or if `mode` or `max_alternatives` is out of its range.
    """
    low_bit = spec.low_bit()
    lists = (("attention", spec.attention), ("mlp", spec.mlp), ("int4 attention", low_bit.attention), ("int4 mlp", low_bit.mlp))
    for name, layers in lists:
        for layer in layers:
            if not 0 <= layer < num_layers:
                raise RecipeError(f"{where}: {name} layer {layer} does not exist", f"the model's layers are 0 to {num_layers - 1}")
            if layers.count(layer) > 1:
                raise RecipeError(f"{where}: {name} layer {layer} is named twice", "list each layer once")
    for name, left_out, copied in (("attention", spec.attention, low_bit.attention), ("mlp", spec.mlp, low_bit.mlp)):
        if both := sorted({*left_out} & {*copied}):
            raise RecipeError(
                f"{where}: {name} layer {both[0]} is skipped, so it has no weights in int4", "remove it from one of the two lists"
            )
    skipped = len(spec.attention) + len(spec.mlp)
    if skipped == 0 and not low_bit:
        raise RecipeError(
            f"{where}: no sublayer is skipped, so the draft would be the whole model", "list layers to skip, or omit the skip set"
        )
    if skipped == 2 * num_layers:
        raise RecipeError(f"{where}: all {skipped} sublayers are skipped, so nothing is left to draft with", "keep some sublayers")
    try:
        GenerationConfig(mode=spec.mode, max_alternatives=spec.max_alternatives)
    except ConfigError as err:
        raise RecipeError(f"{where}: {err.message}", err.hint) from err


def default_skip_set(num_layers: int) -> SkipSet:
    """Returns the skip set of an export that is given none.

    Of every three layers, one is kept whole, one loses its MLP and one loses both sublayers. The first and
    the last layer are kept whole. MLPs hold most of a layer's weights, and skipping two of three MLPs costs
    less acceptance than skipping the same number of bytes as whole layers. A search finds much better sets
    for a given model; this one is a starting point.
    """
    middle = range(1, num_layers - 1)
    if not middle:
        return SkipSet(mlp=(num_layers - 1,))
    return SkipSet(attention=tuple(n for n in middle if n % 3 == 1), mlp=tuple(n for n in middle if n % 3))
