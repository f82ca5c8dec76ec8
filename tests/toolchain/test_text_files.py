"""The artifact's tokenizer and chat template give the token ids that transformers gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ssruntime.artifact import TOKENIZER
from ssruntime.errors import UnsupportedModelError
from ssruntime.text.codec import PromptCodec
from ssruntime.text.prompt import Chat
from sstool.artifact_files import text_files
from sstool.artifact_files.text_files import write_text_files
from sstool.checkpoint.describe import describe_checkpoint
from sstool.checkpoint.tokenizer import ReferenceTokenizer, reference_tokenizer
from tests.conftest import DEMO_MODEL

VOCAB = 640
NEW = 600
"""Id of a token that `tokenizer.json` does not have."""
TEXTS = ("<|end|>", "say <|end|> now", "a<|end|>b", "  two  spaces", "café 😀")
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(data | changes), encoding="utf-8")


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True} | flags


def written(checkpoint: Path, folder: Path) -> PromptCodec:
    """Returns the runtime's codec over the text files of a checkpoint."""
    folder.mkdir()
    described = dataclasses.replace(describe_checkpoint(checkpoint), vocab_size=VOCAB)
    write_text_files(described, folder)
    return PromptCodec(folder, VOCAB)


def in_added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|end|>": NEW}), encoding="utf-8")


def in_tokenizer_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(NEW): token("<|end|>")})


def with_other_flags(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(NEW): token("<|end|>", lstrip=True, rstrip=True)})


@pytest.mark.parametrize("define", [in_added_tokens, in_tokenizer_config, with_other_flags])
def test_tokens_that_other_files_define_are_one_token(tiny_copy: Path, tmp_path: Path, define: Any) -> None:
    before = describe_checkpoint(tiny_copy)
    define(tiny_copy)
    codec = written(tiny_copy, tmp_path / "out")
    reference = reference_tokenizer(tiny_copy)
    assert reference is not None
    for text in TEXTS:
        assert codec.encode(text) == reference.encode(text), text
    assert len(codec.encode("<|end|>")) < len(PromptCodec(before.folder, VOCAB).encode("<|end|>"))


def test_a_tokenizer_that_already_agrees_is_copied(tmp_path: Path) -> None:
    written(DEMO_MODEL, tmp_path / "out")
    assert (tmp_path / "out" / TOKENIZER).read_bytes() == (DEMO_MODEL / TOKENIZER).read_bytes()


def test_special_tokens_of_any_file_reach_the_chat_template(tiny_copy: Path, tmp_path: Path) -> None:
    config = tiny_copy / "tokenizer_config.json"
    data = json.loads(config.read_text(encoding="utf-8"))
    named = {key: data.pop(key) for key in ("bos_token", "eos_token")}
    config.write_text(json.dumps(data | {"chat_template": TEMPLATE}), encoding="utf-8")
    (tiny_copy / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    codec = written(tiny_copy, tmp_path / "out")
    begin, end = (t["content"] if isinstance(t, dict) else t for t in named.values())
    assert codec.render(Chat(messages=[{"role": "user", "content": "hi"}])) == f"{begin}[user]hi{end}"
    assert codec.turn_end == {codec.tokenizer.token_to_id(end)}


class Other(ReferenceTokenizer):
    """A reference that no `tokenizer.json` can follow."""

    def encode(self, text: str) -> list[int]:
        """Returns one token too many."""
        return [*super().encode(text), 0]


def test_a_tokenizer_that_cannot_be_followed_is_refused(tiny_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reference_tokenizer(tiny_copy)
    assert real is not None
    monkeypatch.setattr(text_files, "reference_tokenizer", lambda _folder: Other(real._tokenizer))
    with pytest.raises(UnsupportedModelError, match=r"this tokenizer cannot be exported: the text 'Hello, world!' has the tokens \["):
        written(tiny_copy, tmp_path / "out")


def test_a_chat_template_that_renders_otherwise_is_refused(tiny_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_copy / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    monkeypatch.setattr(PromptCodec, "render", lambda _self, chat: str(len(chat.messages)))
    with pytest.raises(UnsupportedModelError, match=r"the chat template gives '1' where transformers gives '.*\[user\]What is"):
        written(tiny_copy, tmp_path / "out")


def test_a_tokenizer_that_transformers_cannot_read_is_used_as_it_is(
    tiny_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_copy / "tokenizer_config.json", tokenizer_class="NoSuchTokenizer", auto_map={"AutoTokenizer": ["x.Y", None]})
    written(tiny_copy, tmp_path / "out")
    assert "tokenizer.json is used as it is" in caplog.text
