"""The options of an export with quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.artifact import ANY_PROCESSOR, QUANTIZED, VNNI
from ssruntime.checks import check_choice, check_float
from ssruntime.errors import ConfigError
from sstool.prompts import BUILT_IN_CALIBRATION, PromptRecord, read_prompts

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
        calibration: JSON Lines file of prompts; None for those that sstool ships.
    """

    max_kl: float | None = None
    cpu: str | None = None
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
        if dtype not in QUANTIZED:
            for name, value in (("max_kl", self.max_kl), ("cpu", self.cpu)):
                if value is not None:
                    what = "the checkpoint's own dtype" if dtype is None else f"dtype {dtype}"
                    raise ConfigError(f"{name} has no meaning for {what}", f"--dtype {QUANTIZED[0]}")
            return
        if self.max_kl is not None:
            check_float("max_kl", self.max_kl, 0.0, None)
        if self.cpu is not None:
            check_choice("cpu", self.cpu, CPUS)
        self.prompts()

    def prompts(self) -> list[PromptRecord]:
        """Returns the calibration prompts.

        Raises:
            PromptError: if the file cannot be read.
        """
        return read_prompts(BUILT_IN_CALIBRATION if self.calibration is None else Path(self.calibration))
