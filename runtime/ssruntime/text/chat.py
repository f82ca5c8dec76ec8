"""Chat templates, rendered in a sandbox because they come with the checkpoint and are not trusted."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from ssruntime.errors import ArtifactError, ContextOverflowError, PromptError
from ssruntime.strict_reader import read_json_object
from ssruntime.text.prompt import Chat

MAX_RENDERED: Final = 2**22
"""Most characters that a template may write, if no other limit is given."""
_MOST: Final = "most characters"
"""Variable with the limit for the filters; no template can name it."""


class _GenerationBlock(jinja2.ext.Extension):
    """Renders the content of `{% generation %}...{% endgeneration %}`; the tags mark text for training."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns the statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders chat messages as text in the format that the model was trained on."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles a template.

        Args:
            source: Jinja2 source text of the template, as in `chat_template.jinja`.
            special_tokens: special tokens by name (`bos_token`, `eos_token`, ...), which templates refer to.

        Raises:
            ArtifactError: if the template does not compile.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as err:
            raise ArtifactError(
                f"the chat template does not compile: {err}", "correct chat_template.jinja in the checkpoint, then export again"
            ) from err

    def render(self, chat: Chat, most: int = MAX_RENDERED) -> str:
        """Returns the text of a conversation up to the assistant's next turn, special tokens included.

        Args:
            chat: the conversation.
            most: most characters of the text.

        Raises:
            PromptError: if the template refuses the messages.
            ContextOverflowError: if the text becomes longer.
        """
        # As in transformers, absent tools and documents are None, which templates test for.
        given = {
            "add_generation_prompt": True,
            **self._special_tokens,
            **chat.variables,
            "messages": list(chat.messages),
            "tools": chat.tools,
            "documents": chat.documents,
            _MOST: most,
        }
        try:
            return _joined(self._template.generate(given), most)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as err:
            raise PromptError(f"the chat template refuses these messages: {err}", "see the model card for the messages it accepts") from err


def read_special_tokens(tokenizer_config: Path) -> dict[str, str]:
    """Returns the special tokens in `tokenizer_config.json` by name (`bos_token`, ...).

    Without the file there are none.

    Raises:
        ArtifactError: if the file exists but does not hold a JSON object.
    """
    if not tokenizer_config.exists():
        return {}
    data = read_json_object(tokenizer_config, error=ArtifactError, hint="export the model again")
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in data.items() if k.endswith("_token")}
    return {k: v for k, v in named.items() if isinstance(v, str)}


def _joined(pieces: Iterable[str], most: int) -> str:
    """Returns the text of pieces, which may be endless: one too many is an error at once."""
    kept: list[str] = []
    left = most
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise ContextOverflowError(f"the chat template writes more than {most} characters for this prompt", "shorten the prompt")
        kept.append(piece)
    return "".join(kept)


@jinja2.pass_context
def _to_json(
    context: jinja2.runtime.Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja2's own filter escapes HTML, which chat templates do not expect. The parameters are those of
    # transformers' filter.
    if indent is None:  # the fast way; its length is bounded by the value's
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined(encoder.iterencode(value), context[_MOST])


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)
