"""The options of chats: texts as user messages, a system prompt, tools, and template variables."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sstool.prompts import PromptRecord

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """The values of the chat options.

    Attributes:
        chat: whether a text becomes a user message.
        system: system prompt of each chat that has none; None for none.
        tools: tools of each chat that gives none; None for none.
        variables: variables of the chat template; those of a prompt come first.
    """

    chat: bool
    system: str | None
    tools: Sequence[Mapping[str, object]] | None
    variables: Mapping[str, object]

    def apply(self, records: Sequence[PromptRecord]) -> list[PromptRecord]:
        """Returns the prompts with the options applied to each chat.

        Raises:
            UsageError: if there are options for chats, but no prompt is a chat.
        """
        from ssruntime.text.prompt import Chat

        applied = [dataclasses.replace(record, prompt=self._applied(record.prompt)) for record in records]
        is_used = self.system is not None or self.tools is not None or self.variables
        if is_used and not any(isinstance(record.prompt, Chat) for record in applied):
            raise click.UsageError("--system, --tools and --template-variable are for chats: pass --chat, or prompts with messages")
        return applied

    def _applied(self, prompt: Any) -> Any:
        from ssruntime.text.prompt import Chat

        if self.chat and isinstance(prompt, str):
            prompt = Chat(messages=[{"role": "user", "content": prompt}])
        if not isinstance(prompt, Chat):
            return prompt
        needs_system = self.system is not None and prompt.messages[0]["role"] != "system"
        return dataclasses.replace(
            prompt,
            messages=[{"role": "system", "content": self.system}, *prompt.messages] if needs_system else prompt.messages,
            tools=self.tools if prompt.tools is None else prompt.tools,
            variables={**self.variables, **prompt.variables},
        )


_OPTIONS = (
    click.option("--chat", is_flag=True, help="Format each text as a user message with the model's chat template."),
    click.option("--system", metavar="TEXT", help="System prompt of each chat that has none."),
    click.option("--tools", metavar="FILE", type=click.Path(path_type=Path), help="JSON list of tools, for each chat that gives none."),
    click.option(
        "--template-variable",
        "variables",
        metavar="NAME=VALUE",
        multiple=True,
        help="Variable of the chat template, such as enable_thinking=false (JSON or text); may be repeated.",
    ),
)


def chat_options(command: F) -> F:
    """Adds the chat options to a command, which receives them as `chats: ChatOptions`."""

    @functools.wraps(command)
    def gather(*args: object, chat: bool, system: str | None, tools: Path | None, variables: tuple[str, ...], **rest: Any) -> object:
        from sstool.prompts import check_text

        options = ChatOptions(
            chat=chat,
            system=None if system is None else check_text(system, where="--system"),
            tools=None if tools is None else _read_tools(tools),
            variables=dict(_variable(text) for text in variables),
        )
        return command(*args, chats=options, **rest)

    decorated: Any = gather
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def _variable(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.UsageError(f"--template-variable needs NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read_tools(path: Path) -> list[Mapping[str, object]]:
    from ssruntime.errors import PromptError
    from ssruntime.strict_reader import parse_json

    try:
        tools = parse_json(path.read_bytes())
    except OSError as err:
        raise PromptError(f"cannot read tools from {path}: {err.strerror or err}", "pass a file that holds a JSON list") from err
    except ValueError as err:
        raise PromptError(f"{path} is not JSON: {err}", "pass a file that holds a JSON list of tools") from err
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise PromptError(f"{path} does not hold a JSON list of objects", "each tool is an object, as the chat template reads it")
    return tools
