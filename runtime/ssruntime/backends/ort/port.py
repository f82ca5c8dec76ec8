"""A session whose passes can be stopped: in a forked process, or while the process ends."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime as ort

from ssruntime.errors import BackendUnavailableError


class Port:
    """A session, and the call that runs a pass of it.

    Attributes:
        session: the session.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        """Takes an open session."""
        self.session = session
        self._run: Callable[[ort.IOBinding], None] = session.run_with_iobinding

    def abandon(self, refusal: BackendUnavailableError) -> ort.InferenceSession:
        """Makes every later pass raise this error; returns the session."""

        def refuse(_binding: ort.IOBinding) -> None:
            raise refusal

        self._run = refuse
        return self.session

    def intercept(self, before: Callable[[], None]) -> None:
        """Makes every later pass call a function first."""
        run = self._run

        def intercepted(binding: ort.IOBinding) -> None:
            before()
            run(binding)

        self._run = intercepted
