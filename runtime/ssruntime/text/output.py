"""The text of one request: takes tokens, returns the text that may be shown, and detects stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer

from ssruntime.text.incremental import IncrementalText
from ssruntime.text.stop import StopScanner


class OutputText:
    """Turns committed tokens into text.

    With stop strings, the text of each token is needed at once, to know whether it ends the text; the
    sequence then gives every token to `push`. Without them, tokens are turned into text when it is taken.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        stops: Sequence[str],
        special_tokens: Mapping[int, str],
        skip_special_tokens: bool,
    ) -> None:
        """Begins a text.

        Args:
            tokenizer: tokenizer of the model.
            prompt_ids: token ids of the prompt.
            stops: strings that end the text. They may include special tokens.
            special_tokens: text of the tokenizer's special tokens by id.
            skip_special_tokens: whether the text does not include special tokens.
        """
        self._pieces = IncrementalText(tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens)
        self._scanner = StopScanner(stops)
        self._hidden = special_tokens if skip_special_tokens else {}
        self._shown: list[str] = []
        self.has_stops = bool(stops)
        """Whether every token must be given to `push`."""

    def push(self, token: int) -> bool:
        """Adds a token; returns whether a stop string is complete with it."""
        hidden = self._hidden.get(token)
        if hidden is None:
            self._shown.append(self._scanner.push(self._pieces.push(token)))
        else:
            self._shown.append(self._scanner.push(hidden, is_shown=False))
        return self._scanner.stopped

    def take(self, tokens: Iterable[int] = ()) -> str:
        """Returns the text that may be shown and has not been taken yet.

        Args:
            tokens: tokens that were committed since the last call; of no effect if `push` was given them.
        """
        if not self.has_stops:
            self._shown.extend(map(self._pieces.push, tokens))
        text = "".join(self._shown)
        self._shown.clear()
        return text

    def finish(self, tokens: Iterable[int] = ()) -> str:
        """Returns the rest of the text, including text that was held back. No token may follow.

        Args:
            tokens: as for `take`.
        """
        text = self.take(tokens)
        if not self._scanner.stopped:
            text += self._scanner.push(self._pieces.finish()) + self._scanner.finish()
        return text
