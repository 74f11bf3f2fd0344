"""Which tokens are taught."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dropforge_core.dataset.tokens import load_tokenizer
from tuner.conversation import ChatCodec, Document, NotTeachable, tools_of
from tuner.data import Row, encode_rows
from tuner.failure import Failure


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def codec(tokenizer: Any) -> ChatCodec:
    return ChatCodec(tokenizer, frozenset({tokenizer.eos_token_id}))


def taught(tokenizer: Any, document: Document) -> list[str]:
    """The taught stretches as text, in order."""
    pieces: list[list[int]] = []
    before = False
    for token, weight in zip(document.ids, document.weights, strict=True):
        if weight > 0:
            if not before:
                pieces.append([])
            pieces[-1].append(int(token))
        before = weight > 0
    return [tokenizer.decode(piece) for piece in pieces]


def talk(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_only_assistant_tokens_and_their_end_are_taught(codec: ChatCodec, tokenizer: Any) -> None:
    """System and user tokens never carry a weight; each answer does, with its end-of-turn token."""
    messages = talk(
        ("system", "be brief"), ("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos")
    )
    (document,) = codec.conversation(messages)
    assert taught(tokenizer, document) == ["uno<|im_end|>", "dos<|im_end|>"]


def test_weight_zero_silences_one_answer_only(codec: ChatCodec, tokenizer: Any) -> None:
    """A message's own weight decides, and stays context at weight 0."""
    messages = talk(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos"))
    messages[1]["weight"] = 0
    (document,) = codec.conversation(messages)
    assert taught(tokenizer, document) == ["dos<|im_end|>"]
    assert "uno" in tokenizer.decode(document.ids)


def test_nothing_after_the_last_answer_is_computed(codec: ChatCodec, tokenizer: Any) -> None:
    """A closing user turn costs no tokens."""
    (document,) = codec.conversation(talk(("user", "one"), ("assistant", "uno"), ("user", "thank you")))
    assert "thank" not in tokenizer.decode(document.ids)
    assert document.weights[-1] == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.text(max_size=40), said=st.text(min_size=1, max_size=40))
def test_the_prompt_is_what_serving_sends(codec: ChatCodec, asked: str, said: str) -> None:
    """Training's context is token for token the prompt that generation starts from, whatever the text."""
    document = codec.answer(talk(("user", asked)), {"role": "assistant", "content": said})
    prompt = codec.prompt(talk(("user", asked)))
    assert document.ids[: len(prompt)].tolist() == prompt
    assert (document.weights[: len(prompt)] == 0).all()
    assert (document.weights[len(prompt) :] == 1).all()


def test_plain_text_is_taught_whole(codec: ChatCodec, tokenizer: Any) -> None:
    """A row of text alone has no turn around it: all of it is taught, and its end."""
    (document,) = codec.conversation(talk(("assistant", "just a text")))
    assert taught(tokenizer, document) == ["just a text<|im_end|>"]
    assert document.ids[0] == tokenizer.bos_token_id


def test_a_template_that_rewrites_history_gives_one_document_an_answer(tokenizer: Any) -> None:
    """Where earlier turns are shown differently later, each answer is taught in the context it will meet."""

    class Forgetful:
        chat_template = "set"
        bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        all_special_ids, added_tokens_decoder = tokenizer.all_special_ids, tokenizer.added_tokens_decoder
        encode = staticmethod(tokenizer.encode)

        @staticmethod
        def apply_chat_template(messages: Any, *, add_generation_prompt: bool, **_: Any) -> str:
            shown = [
                message["content"][:1]
                if message["role"] == "assistant" and place < len(messages) - 1
                else message["content"]
                for place, message in enumerate(messages)
            ]
            end = tokenizer.eos_token if messages[-1]["role"] == "assistant" else ""
            return "|".join(shown) + ("|" if add_generation_prompt else end)

    codec = ChatCodec(Forgetful(), frozenset({tokenizer.eos_token_id}))
    messages = talk(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos"))
    first, second = codec.conversation(messages)
    assert tokenizer.decode(first.ids) == f"one|uno{tokenizer.eos_token}"
    assert tokenizer.decode(second.ids) == f"one|u|two|dos{tokenizer.eos_token}"


def bare(tokenizer: Any) -> Any:
    """The same tokenizer without a chat template, as base models come."""
    stripped = copy.deepcopy(tokenizer)
    stripped.chat_template = None
    return stripped


def test_a_base_without_template_is_told_what_to_do(tokenizer: Any) -> None:
    """How a conversation reads is never guessed: the failure names the recipe's key; plain text needs none."""
    codec = ChatCodec(bare(tokenizer), frozenset({tokenizer.eos_token_id}))
    with pytest.raises(Failure, match=r"BASE_MODEL: .* no chat template.*'chat_template' in the recipe"):
        codec.conversation(talk(("user", "one"), ("assistant", "uno")))
    (document,) = codec.conversation(talk(("assistant", "just a text")))
    assert taught(tokenizer, document) == ["just a text<|im_end|>"]


TOOLS_TEMPLATE = (
    "{% for tool in tools or [] %}[tool {{ tool.function.name }}]{% endfor %}"
    "{% for message in messages %}{{ message.role }}{{ bos_token }}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}|{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ bos_token }}{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("own", [True, False])
def test_a_given_template_is_the_one_that_is_used(tokenizer: Any, own: bool) -> None:
    """The recipe's text wins over the tokenizer's own, and stands in where there is none."""
    given = ChatCodec(
        tokenizer if own else bare(tokenizer), frozenset({tokenizer.eos_token_id}), template=TOOLS_TEMPLATE
    )
    (document,) = given.conversation(talk(("user", "one"), ("assistant", "uno")))
    assert tokenizer.decode(document.ids) == "user<|im_start|>one|assistant<|im_start|>uno<|im_end|>"
    assert taught(tokenizer, document) == ["uno<|im_end|>"]


def test_tools_are_shown_in_training_and_in_serving_alike(tokenizer: Any) -> None:
    """A row's tool definitions stand in prompt and document, at the same tokens, untaught."""
    codec = ChatCodec(tokenizer, frozenset({tokenizer.eos_token_id}), template=TOOLS_TEMPLATE)
    row = Row("r", tuple(talk(("user", "one"), ("assistant", "uno"))), meta={"tools": [WEATHER]})
    ((document,),) = (example.documents for example in encode_rows([row], codec, "sft", 512))
    assert tokenizer.decode(document.ids).startswith(
        "[tool weather]user<|im_start|>one|assistant<|im_start|>uno"
    )
    prompt = codec.prompt(row.messages[:1], (WEATHER,))
    assert document.ids[: len(prompt)].tolist() == prompt
    assert not document.weights[: len(prompt)].any()


def test_the_dataset_s_count_is_the_trainer_s_length(tiny_base: Path, tokenizer: Any) -> None:
    """Validation counts, for a row with tools, the tokens that training computes: one template, one reading."""
    config = json.loads((tiny_base / "tokenizer_config.json").read_bytes())
    counter = load_tokenizer(
        (tiny_base / "tokenizer.json").read_bytes(), json.dumps(config).encode(), TOOLS_TEMPLATE
    )
    assert counter is not None
    messages = talk(("system", "be brief"), ("user", "one"), ("assistant", "uno"))
    codec = ChatCodec(tokenizer, frozenset({tokenizer.eos_token_id}), template=TOOLS_TEMPLATE)
    (document,) = codec.conversation(messages, (WEATHER,))
    # The bar that follows the answer teaches nothing and is cut off.
    assert counter.count(messages, [WEATHER]) == document.length + 1


@pytest.mark.parametrize(
    ("meta", "found"),
    [({}, 0), ({"tools": None}, 0), ({"tools": WEATHER}, 1), ({"tools": [WEATHER, WEATHER]}, 2)],
)
def test_one_tool_is_a_list_of_one(meta: dict[str, Any], found: int) -> None:
    """Rows give a list or a single definition."""
    assert len(tools_of(meta)) == found


def test_a_template_that_is_no_jinja_is_told_with_its_line(tokenizer: Any) -> None:
    """A fault of the recipe's text is no fault of the rows."""
    codec = ChatCodec(tokenizer, frozenset({tokenizer.eos_token_id}), template="one\n{% for %}")
    with pytest.raises(Failure, match="BASE_MODEL: the chat template can't be read, its line 2"):
        codec.conversation(talk(("user", "one"), ("assistant", "uno")))


def test_the_tokenizer_of_another_model_is_found_out(tokenizer: Any) -> None:
    """A token beyond the embedding is no index error deep in a kernel."""
    codec = ChatCodec(tokenizer, frozenset({tokenizer.eos_token_id}), vocabulary=20)
    with pytest.raises(Failure, match="the tokenizer is not this model's"):
        codec.prompt(talk(("user", "one")))


def test_padding_side_and_special_tokens_of_the_tokenizer_change_nothing(tokenizer: Any) -> None:
    """Rows are padded here and the template writes every special token, so neither setting adds or moves one."""
    other = copy.deepcopy(tokenizer)
    other.padding_side, other.truncation_side = "left", "left"
    other.add_bos_token, other.add_eos_token = True, True
    messages = talk(("user", "one"), ("assistant", "uno"))
    stops = frozenset({tokenizer.eos_token_id})
    (one,), (two,) = (ChatCodec(each, stops).conversation(messages) for each in (tokenizer, other))
    assert one.ids.tolist() == two.ids.tolist()
    assert one.ids.tolist().count(tokenizer.bos_token_id) == 2  # a turn each: this template begins turns so


@pytest.mark.parametrize(
    "messages",
    [talk(("user", "one")), [{"role": "assistant", "content": "x", "weight": 0}, *talk(("user", "one"))]],
)
def test_a_row_without_a_weighted_answer_is_refused(codec: ChatCodec, messages: Any) -> None:
    """Nothing to learn is an error, not a silent zero."""
    with pytest.raises(NotTeachable, match="no assistant message"):
        codec.conversation(messages)


def test_a_refusing_template_is_told_without_the_text(codec: ChatCodec) -> None:
    """The reason names the kind of error; the row's words stay out of messages."""
    with pytest.raises(NotTeachable) as refusal:
        codec.conversation([{"role": "user"}, {"role": "assistant", "content": ["secret"]}])
    assert "secret" not in str(refusal.value)
