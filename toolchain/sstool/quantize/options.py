"""The options of an export with quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.artifact import ANY_PROCESSOR, QUANTIZED, VNNI
from ssruntime.checks import check_choice, check_float
from ssruntime.errors import ConfigError
from sstool.prompts import BUILT_IN_CALIBRATION, PromptRecord, read_prompts
from sstool.quantize.precisions import BLOCKS, EXACT_BLOCK, Quantization, quantization_of

INT4: Final = "int4"
DEFAULT_MAX_KL: Final = 0.02
CPUS: Final = (ANY_PROCESSOR, VNNI)


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """What a user may set.

    Attributes:
        max_kl: largest mean KL divergence, in nats, of the quantized model's predictions from those in fp32;
            None for `DEFAULT_MAX_KL`.
        cpu: `any`: weights of 7 bits, whose products are exact on every processor. `vnni`: weights of 8 bits,
            for processors with VNNI or AMX. None: `vnni` where this machine's products are exact, else `any`.
        block_size: int4: rows of a block of weights; None for 32.
        calibration: JSON Lines file of prompts; None for those that sstool ships.
    """

    max_kl: float | None = None
    cpu: str | None = None
    block_size: int | None = None
    calibration: str | None = None

    @property
    def largest_kl(self) -> float:
        """`max_kl`, or its default."""
        return DEFAULT_MAX_KL if self.max_kl is None else self.max_kl

    def check(self, dtype: str | None) -> None:
        """Checks the options before anything is built.

        Args:
            dtype: data type of the export; None for the checkpoint's.

        Raises:
            ConfigError: if a value is out of its range, or has no meaning for the data type.
            PromptError: if the calibration file cannot be read.
        """
        for name, value, dtypes in (
            ("max_kl", self.max_kl, QUANTIZED),
            ("cpu", self.cpu, QUANTIZED),
            ("block_size", self.block_size, (INT4,)),
        ):
            if value is not None and dtype not in dtypes:
                what = "the checkpoint's own dtype" if dtype is None else f"dtype {dtype}"
                raise ConfigError(f"{name} has no meaning for {what}", f"--dtype {' or '.join(dtypes)}")
        if dtype not in QUANTIZED:
            return
        if self.max_kl is not None:
            check_float("max_kl", self.max_kl, 0.0, None)
        if self.cpu is not None:
            check_choice("cpu", self.cpu, CPUS)
        if self.block_size is not None and self.block_size not in BLOCKS:
            raise ConfigError(f"block_size must be one of {', '.join(map(str, BLOCKS))}, found {self.block_size}", "--block-size 32")
        self.prompts()

    @property
    def block(self) -> int:
        """`block_size`, or its default."""
        return EXACT_BLOCK if self.block_size is None else self.block_size

    def formats(self, dtype: str, *, levels: int) -> Quantization:
        """Returns the formats of a quantized data type; `levels` is the largest integer of int8."""
        return quantization_of(dtype, levels=levels, block=self.block)

    def prompts(self) -> list[PromptRecord]:
        """Returns the calibration prompts.

        Raises:
            PromptError: if the file cannot be read.
        """
        return read_prompts(BUILT_IN_CALIBRATION if self.calibration is None else Path(self.calibration))
