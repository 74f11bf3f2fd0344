"""Which tokens are taught."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tuner.conversation import ChatCodec, Document, NotTeachable


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
        encode = staticmethod(tokenizer.encode)

        @staticmethod
        def apply_chat_template(messages: Any, *, add_generation_prompt: bool, **_: Any) -> str:
            shown = [
                message["content"][:1]
                if message["role"] == "assistant" and place < len(messages) - 1
                else message["content"]
                for place, message in enumerate(messages)
            ]
            return "|".join(shown) + ("|" if add_generation_prompt else "")

    codec = ChatCodec(Forgetful(), frozenset({tokenizer.eos_token_id}))
    messages = talk(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos"))
    first, second = codec.conversation(messages)
    assert tokenizer.decode(first.ids) == "one|uno"
    assert tokenizer.decode(second.ids) == "one|u|two|dos"


def test_a_base_without_template_gets_a_plain_one(tokenizer: Any) -> None:
    """Base models are taught in a fixed plain form, which the codec names so that it can travel on."""

    class Bare:
        chat_template = None
        bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        encode = staticmethod(tokenizer.encode)
        apply_chat_template = staticmethod(tokenizer.apply_chat_template)

    codec = ChatCodec(Bare(), frozenset({tokenizer.eos_token_id}))
    (document,) = codec.conversation(talk(("user", "one"), ("assistant", "uno")))
    assert tokenizer.decode(document.ids) == "<|im_start|>### user\none\n### assistant\nuno<|im_end|>"
    assert codec.template is not None


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
