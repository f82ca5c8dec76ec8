"""Prompts of every kind become token ids as the checkpoint defines, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, processors

from ssruntime import ArtifactError, ContextOverflowError, PromptError
from ssruntime.text.chat import ChatTemplate, read_special_tokens
from ssruntime.text.codec import PromptCodec
from ssruntime.text.prompt import Chat
from tests.runtime.scripted import every_byte

VOCAB = 258
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [{"role": "user", "content": " hi "}]


def with_bos() -> Tokenizer:
    """Returns a tokenizer that puts `<s>` before every text."""
    tokenizer = every_byte()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def codec(folder: Path, *, template: str | None = TEMPLATE, config: object = None, vocab: int = VOCAB) -> PromptCodec:
    folder.mkdir(exist_ok=True)
    with_bos().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(named if config is None else config))
    return PromptCodec(folder, vocab)


def byte_ids(text: str) -> list[int]:
    return [b + 2 for b in text.encode()]


def test_texts_get_the_tokenizers_own_special_tokens(tmp_path: Path) -> None:
    prompt_codec = codec(tmp_path)
    assert prompt_codec.encode("hé") == [1, *byte_ids("hé")]
    assert prompt_codec.encode("a<s>b") == [1, *byte_ids("a"), 1, *byte_ids("b")]
    assert prompt_codec.encode("\0") == [1, 2]
    assert len(prompt_codec.encode("x" * 200_000)) == 200_001  # no truncation


def test_truncation_and_padding_of_the_tokenizer_file_are_ignored(tmp_path: Path) -> None:
    codec(tmp_path)
    tokenizer = with_bos()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert PromptCodec(tmp_path, VOCAB).encode("abcdefgh") == [1, *byte_ids("abcdefgh")]


def test_messages_get_no_second_bos(tmp_path: Path) -> None:
    expected = [1, *byte_ids("[user]hi"), 0, *byte_ids("[assistant]")]
    prompt_codec = codec(tmp_path)
    assert prompt_codec.encode(MESSAGES) == expected
    assert prompt_codec.encode(tuple(MESSAGES)) == expected


def test_token_ids_are_used_unchanged(tmp_path: Path) -> None:
    prompt_codec = codec(tmp_path)
    assert prompt_codec.encode([5, 0, 257]) == [5, 0, 257]
    assert prompt_codec.encode((5,)) == [5]
    for array in (
        list(np.array([3, 4])),
        np.array([3, 4], dtype=np.uint16),
        np.array([[3, 4]]),
        torch.tensor([3, 4]),
        torch.tensor([[3, 4]]),
    ):
        numbers = prompt_codec.encode(array)
        assert numbers == [3, 4]
        assert all(type(i) is int for i in numbers)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ((), "the prompt is empty"),
        ("a\ud800b", "not valid Unicode: surrogates not allowed at character 1"),
        ([258], "258 is not a token id"),
        ([1, -1], "-1 is not a token id"),
        ([10**30], "is not a token id"),
        ([1.0], "1.0 is not a token id"),
        ([True], "True is not a token id"),
        (["a"], "'a' is not a token id"),
        ([None], "None is not a token id"),
        ([{"role": "user", "content": "x"}, 5], "is not a token id"),
        (7, "a prompt of type int"),
        (None, "a prompt of type NoneType"),
        ({"role": "user", "content": "x"}, "a prompt of type dict"),
        (np.array([[1], [2]]), r"an array of the shape \(2, 1\) is not one prompt"),
        (np.array([1.0, 2.0]), "1.0 is not a token id"),
        (np.array([], dtype=np.int64), "the prompt is empty"),
        (b"abc", "a prompt of type bytes"),
        ([*MESSAGES, "x"], "is not a token id"),
        ([{"content": "x"}], "message 0 lacks a role or content"),
        ([{"role": "user"}], "message 0 lacks a role or content"),
        ([*MESSAGES, {"role": 5, "content": "x"}], "message 1 lacks a role or content"),
    ],
)
def test_wrong_prompts_are_refused(tmp_path: Path, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        codec(tmp_path).encode(prompt)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_text_without_tokens_is_refused_as_empty(tmp_path: Path) -> None:
    codec(tmp_path)
    tokenizer = every_byte()
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PromptError, match="empty"):
        PromptCodec(tmp_path, VOCAB).encode("   ")


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="257 is not a token id of this model"):
        codec(tmp_path, vocab=257).encode([257])
    tokenizer = with_bos()
    tokenizer.add_tokens(["beyond"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt_codec = PromptCodec(tmp_path, VOCAB)
    assert prompt_codec.encode("fine")
    with pytest.raises(PromptError, match="258 is not a token id of this model"):
        prompt_codec.encode("it goes beyond")


def test_messages_are_refused_without_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no chat template"):
        codec(tmp_path, template=None).encode(MESSAGES)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model": {}}', "\x80"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        PromptCodec(tmp_path, VOCAB)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json cannot be read"),
        ("tokenizer_config.json", b"[" * 200_000, "tokenizer_config.json cannot be read"),
        ("tokenizer_config.json", b"[1]", "does not hold a JSON object"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja cannot be read"),
        ("chat_template.jinja", b"{% for %}", "the chat template does not compile"),
        ("chat_template.jinja", b"{{ x | nosuchfilter }}", "the chat template does not compile"),
    ],
)
def test_damaged_chat_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    codec(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        PromptCodec(tmp_path, VOCAB)


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ raise_exception.__code__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ('{0.__class__}'|attr('format'))(messages) }}",
        "{{ self._TemplateReference__context.environment.filters.clear() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% set _ = messages.clear() %}",
        "{% include '/etc/passwd' %}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_a_template_cannot_escape_its_sandbox(escape: str) -> None:
    messages = [dict(m) for m in MESSAGES]
    try:
        text = ChatTemplate(escape, {}).render(Chat(messages=messages))
    except PromptError:
        text = ""
    assert not any(word in text for word in ("class", "module", "built-in", "root", "uid"))
    assert messages == MESSAGES


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "refuses"),
        ("{{ messages[9].content.text }}", "refuses"),
        ("{{ nothing.at.all }}", "refuses"),
        ("{{ [] | first | int + {} }}", "refuses"),
        ("{{ '%d' % 'x' }}", "refuses"),
        ("{{ messages | tojson(indent='x'.y.z) }}", "refuses"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses"),
    ],
)
def test_messages_are_refused_if_the_template_fails(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        ChatTemplate(template, {}).render(Chat(messages=MESSAGES))
    assert "the chat template refuses these messages" in caught.value.message


@pytest.mark.parametrize(
    "template",
    [
        "{% for n in range(1000) %}{{ messages[0].content }}{% endfor %}",
        "{{ messages | tojson(indent=4) }}",
        "{% set text = messages | tojson(indent=4) %}",
        "{{ messages | tojson }}",
    ],
)
def test_what_a_template_writes_is_bounded(template: str) -> None:
    deep: list[Any] = [0] * 1000
    for _ in range(20):
        deep = [deep]
    chat = Chat(messages=[{"role": "user", "content": "x" * 100, "deep": deep}])
    with pytest.raises(ContextOverflowError, match="more than 2000 characters"):
        ChatTemplate(template, {}).render(chat, 2000)
    assert ChatTemplate(template, {}).render(chat) is not None


def test_a_prompt_that_cannot_fit_is_not_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt_codec = codec(tmp_path, template="{% for n in range(9999) %}{{ messages[0].content }}{% endfor %}")
    assert len(prompt_codec.encode("x" * 8, context=10)) == 9
    monkeypatch.setattr(prompt_codec, "tokenizer", None)
    with pytest.raises(ContextOverflowError, match="41 characters"):
        prompt_codec.encode("x" * 41, context=10)  # the longest token is </s>
    with pytest.raises(ContextOverflowError, match="more than 40 characters"):
        prompt_codec.encode(MESSAGES, context=10)
    with pytest.raises(ContextOverflowError, match="the prompt has 10 tokens"):
        prompt_codec.encode([5] * 10, context=10)


def test_other_threads_go_on_while_a_long_text_is_encoded_or_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's functions for lists of texts release Python's lock, those for one text do not."""
    prompt_codec = codec(tmp_path)
    text = "aé</s> 日本 " * 1000
    ids = prompt_codec.tokenizer.encode(text).ids
    lists_only = mock.Mock(spec_set=["encode_batch_fast", "decode_batch"], wraps=prompt_codec.tokenizer)
    monkeypatch.setattr(prompt_codec, "tokenizer", lists_only)
    assert prompt_codec.encode(text) == ids
    assert prompt_codec.decode(ids) == f"<s>{text}"


def test_templates_are_rendered_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    templates = [
        TEMPLATE,
        (
            "{% for m in messages %}\n  {%- if loop.first %}A{% endif %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
            "{{ m.content }}\n{% endfor %}\n"
        ),
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
        "{{ {'b': 1, 'a': '<é>'} | tojson(separators=(',', ':'), sort_keys=True) }}",
        "{{ messages | tojson(ensure_ascii=True) }}",
        "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}{{ tools is defined }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ undefined_name }}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content.strip().upper() }}{% break %}{% endif %}{% endfor %}",
    ]
    messages = [{"role": "system", "content": "<be 'good' & ñ>"}, {"role": "user", "content": " hi\n", "name": "x"}]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for template in templates:
        expected, _ = transformers.render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=True, **special
        )
        assert ChatTemplate(template, special).render(Chat(messages=messages)) == expected[0], template


def test_the_date_is_available_to_templates() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}).render(Chat(messages=MESSAGES))) == 10


def test_special_tokens_are_read_as_strings_or_as_objects(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    assert read_special_tokens(path) == {}
    path.write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null, "add_bos_token": true, "x": "y"}')
    assert read_special_tokens(path) == {"bos_token": "<s>", "eos_token": "</s>"}


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_a_chat_gives_its_template_tools_documents_and_variables(tmp_path: Path) -> None:
    template = (
        "{{ tools | tojson }}|{{ documents | length if documents else 'no documents' }}|{{ enable_thinking }}|{{ messages[0].content }}"
    )
    prompt_codec = codec(tmp_path, template=template)
    chat = Chat(messages=MESSAGES, tools=TOOLS, documents=[{"text": "x"}], variables={"enable_thinking": False})
    assert prompt_codec.render(chat) == f"{json.dumps(TOOLS)}|1|False| hi "
    assert prompt_codec.render(Chat(messages=MESSAGES)) == "null|no documents|| hi "
    assert prompt_codec.encode(chat) == byte_ids(prompt_codec.render(chat))


def test_a_call_of_a_tool_needs_no_content(tmp_path: Path) -> None:
    calls = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    prompt_codec = codec(
        tmp_path, template="{% for m in messages %}{{ m.tool_calls[0].function.name if m.tool_calls else m.content }};{% endfor %}"
    )
    assert prompt_codec.render(Chat(messages=[*MESSAGES, calls])) == " hi ;add;"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"messages": []}, "the chat has no messages"),
        ({"messages": "hi"}, "messages must be a list of objects, found 'hi'"),
        ({"messages": {"role": "user"}}, "messages must be a list of objects"),
        ({"messages": MESSAGES, "tools": "add"}, "tools must be a list of objects"),
        ({"messages": MESSAGES, "tools": [abs]}, "tools must be a list of objects"),
        ({"messages": MESSAGES, "documents": [1]}, "documents must be a list of objects"),
        ({"messages": MESSAGES, "variables": ["x"]}, "variables must be an object"),
        ({"messages": MESSAGES, "variables": {"tools": []}}, "tools cannot be a variable of the template"),
    ],
)
def test_wrong_chats_are_refused(given: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        Chat(**given)
    assert caught.value.hint
