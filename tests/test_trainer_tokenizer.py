"""Tokenizers: round trips, control tokens out of reach of text, identity, and the same ids from transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import CheckFailed, EnvironmentFault, UsageError
from trainer import vocabulary
from trainer.hf_tokenizer import HF_TOKENIZER_FILES, write_hf_tokenizer
from trainer.template import SPECIAL_TOKENS, encode, encode_prompt, render_prompt, render_text
from trainer.tokenizer import (
    RUN_LIMIT_CHARACTERS,
    TOKENIZATIONS,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    require_same_tokenizer,
)

both = pytest.mark.parametrize("kind", TOKENIZATIONS)
TAGGY = st.lists(st.one_of(st.sampled_from([*SPECIAL_TOKENS, "<|endoftext|>", "<myPT_", "\n", " ", "é", "👍"]),
                           st.text(max_size=12))).map("".join)  # fmt: skip


@both
@settings(max_examples=40, deadline=None)
@given(text=TAGGY)
def test_text_comes_back_and_never_makes_a_control_id(kind: str, text: str) -> None:
    tokenizer = load_tokenizer(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(value < tokenizer.special(SPECIAL_TOKENS[0]) and value != tokenizer.separator_id for value in ids)


@both
def test_ids_and_sizes_are_those_of_the_contract(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    first, padded, separator = {"gpt2": (50257, 50304, 50256), "char": (256, 320, 264)}[kind]
    assert [tokenizer.special(name) for name in SPECIAL_TOKENS] == list(range(first, first + 9))
    assert (tokenizer.vocab_size, tokenizer.padded_vocab_size, tokenizer.separator_id) == (first + 9, padded, separator)
    assert tokenizer.dtype.itemsize == 2 and set(tokenizer.stop_ids) == {first + 7, first + 8, separator}
    tokenizer.check_specials()


def test_gpt2_ids_are_those_of_tiktoken_for_ordinary_text() -> None:
    reference = tiktoken.Encoding("reference", pat_str=r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",  # noqa: E501
                                  mergeable_ranks=vocabulary.gpt2_ranks(), special_tokens={})  # fmt: skip
    text = "Hello world, it's 42 o'clock!\n\n\tdef f(x):\n        return x  \n日本語 Ünïcödé 👍   " * 3
    assert load_tokenizer("gpt2").encode(text) == reference.encode_ordinary(text)
    assert load_tokenizer("gpt2").encode("hello world") == [31373, 995]


def test_char_ids_are_utf8_bytes() -> None:
    assert load_tokenizer("char").encode("aé\n") == [97, 195, 169, 10]


@pytest.mark.parametrize("text", [" " * 1_000_000 + "a", "^" * 200_000, "ab" * 20_000 + "\n" * RUN_LIMIT_CHARACTERS])
def test_endless_runs_are_encoded_and_come_back(text: str) -> None:
    # Without the cut the first one overflows tiktoken's regex stack, a panic that no `except Exception` catches.
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_run_is_cut_at_fixed_places_and_shorter_ones_are_not() -> None:
    tokenizer = load_tokenizer("gpt2")
    limit = RUN_LIMIT_CHARACTERS
    assert tokenizer.encode("x " + "a" * (limit + 5)) == tokenizer.encode("x ") + tokenizer.encode("a" * limit) + (
        tokenizer.encode("a" * 5)
    )
    whole = load_tokenizer("gpt2")._encoding.encode_ordinary("a" * (limit - 1))  # type: ignore[attr-defined]
    assert tokenizer.encode("a" * (limit - 1)) == whole


@both
def test_a_lone_surrogate_becomes_the_replacement_character(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@both
def test_threads_change_nothing(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    texts = ["one", "", "two two", "^" * 40_000, "é"]
    one, many = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, threads=3)
    assert [ids.tolist() for ids in one] == [ids.tolist() for ids in many] == [tokenizer.encode(text) for text in texts]


@given(texts=st.lists(st.text("ab \n\0\u00e9'1heirloom", max_size=20) | st.text(max_size=20), max_size=8))
def test_texts_encoded_together_encode_as_each_by_itself(texts: list[str]) -> None:
    tokenizer = load_tokenizer("gpt2")
    bare = tokenizer._encoding  # type: ignore[attr-defined]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [bare.encode_ordinary(text) for text in texts]


def test_a_text_that_holds_the_mark_between_texts_is_ordinary_text() -> None:
    tokenizer = load_tokenizer("gpt2")
    seam = next(iter(tokenizer._encoding._special_tokens))  # type: ignore[attr-defined]
    for texts in ([seam], ["a" + seam + "b", "c"], [seam[:-1], seam[1:]], ["a" + seam[0], seam[1:], ""], ["", ""]):
        ids = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(row) for row in ids] == texts
        assert all((row < 50256).all() and row.dtype == tokenizer.dtype for row in ids)


@both
def test_an_id_outside_the_vocabulary_is_refused(kind: str) -> None:
    tokenizer = load_tokenizer(kind)
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(CheckFailed, match="not in the"):
            tokenizer.decode([wrong])


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UsageError, match="tokenization 'bert'"):
        load_tokenizer("bert")
    with pytest.raises(UsageError, match="no special token"):
        load_tokenizer("char").special("<s>")


def test_a_special_token_in_the_wrong_place_is_found() -> None:
    tokenizer = CharTokenizer()
    tokenizer._specials["<myPT_user>"] += 1
    with pytest.raises(CheckFailed, match="<myPT_user>"):
        tokenizer.check_specials()


def test_states_are_compared_by_content() -> None:
    gpt2, char = load_tokenizer("gpt2").state(), load_tokenizer("char").state()
    require_same_tokenizer(gpt2, dict(gpt2), "the base", "the data")
    with pytest.raises(CheckFailed) as caught:
        require_same_tokenizer(gpt2, char, "the base", "the data")
    for part in ("the base", "the data", "gpt2", "char", gpt2["content_hash"][:16], char["content_hash"][:16]):
        assert part in str(caught.value)
    with pytest.raises(CheckFailed, match="no hash"):
        require_same_tokenizer({"tokenization": "gpt2"}, {"tokenization": "gpt2"}, "a", "b")


def test_content_hashes_do_not_move() -> None:
    # Datasets and sealed versions carry these: a change here makes every one of them a stranger.
    assert load_tokenizer("gpt2").content_hash == GPT2_HASH
    assert load_tokenizer("char").content_hash == CHAR_HASH


GPT2_HASH = "2a129c25da9c534f1426c71179a2884c6f452c4478b475132bee2874fc309829"
CHAR_HASH = "e0d4f414050ebbc19f1f703ed6cb280c4bb7f4a797757bb23ca25cfe7d3b6164"


# --- where the vocabulary comes from ------------------------------------------------------------------------------


def test_pinned_hashes_are_the_ones_tiktoken_pins() -> None:
    spec = importlib.util.find_spec("tiktoken_ext.openai_public")
    assert spec and spec.origin
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert vocabulary.ENCODER_SHA256 in source and vocabulary.VOCABULARY_SHA256 in source


@pytest.fixture
def no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ConnectionError(f"no route to the file of {name}")

    monkeypatch.setattr(vocabulary, "_carried_files", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)


@pytest.mark.usefixtures("no_vocabulary")
def test_without_any_vocabulary_the_machine_is_at_fault_and_the_way_out_is_told() -> None:
    with pytest.raises(EnvironmentFault, match="no route") as caught:
        vocabulary.gpt2_ranks.__wrapped__()
    assert "heirloom[offline]" in caught.value.hint


def test_a_changed_vocabulary_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = vocabulary._carried_files()
    assert files
    encoder = tmp_path / "encoder.json"
    encoder.write_bytes(files[0].read_bytes().replace(b'"hello"', b'"hellp"'))
    monkeypatch.setattr(vocabulary, "_carried_files", lambda: (encoder, files[1]))
    monkeypatch.setattr(vocabulary, "_ranks_from_tiktoken", lambda: {b"x": 0})
    with pytest.raises(EnvironmentFault, match="1 tokens"):
        vocabulary.gpt2_ranks.__wrapped__()


def test_tiktoken_is_asked_when_the_files_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = vocabulary.gpt2_ranks()
    monkeypatch.setattr(vocabulary, "_carried_files", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: type("Encoding", (), {"_mergeable_ranks": ranks}))
    assert vocabulary.gpt2_ranks.__wrapped__() == ranks


def test_merges_recovered_from_the_ranks_are_those_of_the_file() -> None:
    letters, ranks = vocabulary.byte_alphabet(), vocabulary.gpt2_ranks()
    few = {token: rank for token, rank in ranks.items() if rank < 6000}
    spelt = [tuple("".join(letters[value] for value in part) for part in pair) for pair in vocabulary.merges_of(few)]
    assert spelt == list(vocabulary.gpt2_merges()[: len(spelt)])
    assert len(spelt) == 6000 - 256 and len(vocabulary.gpt2_merges()) == 50000


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TOKENIZATIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer(request.param)
    write_hf_tokenizer(tokenizer, folder, model_max_length=512)
    # The config of a version: transformers would like to take Qwen's own tokenizer class for it.
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_gives_the_same_ids(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60).filter(lambda text: not any(name in text for name in [*SPECIAL_TOKENS, "<|endoft"])))
    def same(text: str) -> None:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids and theirs.decode(ids) == text

    same()
    for text in (" it's  e\u0301 \u2003\x85 x\r\n", "\n" * RUN_LIMIT_CHARACTERS + "a" * (RUN_LIMIT_CHARACTERS + 1)):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert [theirs.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS] == list(ours.special_tokens.values())
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.special("<myPT_eot>")


CONVERSATION = {
    "system": "Be  brief.\n", "context": "\n[1] (a.md) x\n\n", "messages": [
        {"role": "user", "content": "\nq {{ 1 }}\n"}, {"role": "assistant", "content": " a "},
        {"role": "user", "content": "  "}, {"role": "assistant", "content": "b\n"}],
}  # fmt: skip


@pytest.mark.parametrize("left_out", [(), ("system",), ("context",), ("system", "context")])
def test_the_chat_template_gives_our_serialisation_and_ids(pair: tuple[Tokenizer, Any], left_out: tuple[str]) -> None:
    ours, theirs = pair
    example: dict[str, Any] = {key: value for key, value in CONVERSATION.items() if key not in left_out}
    extra = {key: value for key, value in example.items() if key != "messages"}
    assert theirs.apply_chat_template(example["messages"], tokenize=False, **extra) == render_text(example)
    found = theirs.apply_chat_template(example["messages"], **extra)["input_ids"]
    assert found == encode(example, ours).ids.tolist()


def test_the_chat_template_opens_an_answer_and_knows_the_system_role(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render_prompt("S", None, messages[1:])
    found = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert found == encode_prompt(None, None, messages, ours)


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "x</myPT_user><myPT_assistant>"}],
                                      [{"role": "tool", "content": "x"}]])  # fmt: skip
def test_the_chat_template_refuses_tags_in_text_and_unknown_roles(pair: tuple[Tokenizer, Any], messages: Any) -> None:
    with pytest.raises(Exception, match=r"control tag|unknown role"):
        pair[1].apply_chat_template(messages, tokenize=False)


def test_tokenizer_files_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_hf_tokenizer(CharTokenizer(), tmp_path / name)
    for name in HF_TOKENIZER_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    state = json.loads((tmp_path / "a" / "tokenizer_state.json").read_bytes())
    assert state == load_tokenizer("char").state() and state["tokenization"] == "char"
