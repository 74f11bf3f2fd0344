"""Sketches: what of a prompt counts, that estimates hold, that nothing depends on its company."""

import random
import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness_cases import VOCABULARY, jaccard

from dropforge_core.dataset.likeness import sketch
from dropforge_core.dataset.likeness.nearness import exact_similarity, similarity
from dropforge_core.dataset.likeness.sketch import BANDS, BORROWED, PAD, Sketcher, learn_common

# ruff: noqa: RUF001  # characters that look like others are what this is about

NOTHING = np.zeros(0, np.uint64)
TEXT = st.text(
    st.sampled_from("aAbz0189 .,\n\0é—“ßÄｆ今天北京的，。ไทย\ud800") | st.characters(), max_size=80
)


def sketched(*texts, common=NOTHING):
    return Sketcher(common).sketch(list(texts))


def same(one, other):
    return bool(sketched(one, other)["folded"][0] == sketched(one, other)["folded"][1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9503 E. Rush St., South-El-Monte", "17 e rush st south el monte"),
        ("ÄRZTE in Straße 12", "ärzte in strasse 7"),
        ("“Really”—he said…", "really he said"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("a12b345", "A7B0"),
        ("今天，北京！", "今天北京"),
        ("", " .,! \n"),
    ],
)
def test_words_are_lower_case_without_punctuation_and_with_folded_numbers(one, other):
    """The same street with another number is the same prompt."""
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b", "b a"), ("ab c", "a bc"), ("a", "a a"), ("x 1", "x y"), ("word" * 9, "word" * 10)],
)
def test_other_words_or_another_order_are_another_prompt(one, other):
    """Only what is folded is lost."""
    assert not same(one, other)


def test_text_without_spaces_is_told_apart():
    """Chinese questions are not one long word each."""
    one, other = "今天北京的天气怎么样我想去公园散步请告诉我", "今天北京的天气怎么样我想去公园跑步请告诉我"
    third = "请把这句话翻译成英文然后检查语法有没有错误谢谢"
    made = sketched(one, other, third)["signature"]
    assert similarity(made[:1], made[1:2])[0] > 0.6
    assert similarity(made[:1], made[2:])[0] < 0.1


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 60), st.data())
def test_a_sketch_depends_on_its_own_text_alone(texts, width, data):
    """The same text has the same sketch in whatever company and however blocks are sliced."""
    together = sketched(*texts)
    before, sketch._SLICE = sketch._SLICE, width
    try:
        sliced = sketched(*texts)
    finally:
        sketch._SLICE = before
    row = data.draw(st.integers(0, len(texts) - 1)) if texts else None
    for name, column in together.items():
        assert len(column) == len(texts)
        np.testing.assert_array_equal(column, sliced[name])
        if row is not None:
            np.testing.assert_array_equal(column[row], sketched(texts[row])[name][0])


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("abcz 019.,é"), max_size=60), min_size=2, max_size=6))
def test_equal_digests_mean_equal_words(texts):
    """Two prompts are the same where a plain reading of their words is."""
    plain = [
        re.sub(
            r"\d+", "0", re.sub(r"[^a-z0-9é]+", " ", unicodedata.normalize("NFKC", text).casefold())
        ).split()
        for text in texts
    ]
    folded = sketched(*texts)["folded"]
    for a in range(len(texts)):
        for b in range(len(texts)):
            assert (folded[a] == folded[b]) == (plain[a] == plain[b])


@given(
    st.lists(st.sampled_from(VOCABULARY), max_size=10),
    st.lists(st.sampled_from(VOCABULARY[:12]), max_size=10),
)
def test_short_prompts_are_compared_exactly(one, other):
    """Up to 15 features, likeness is that of the words and pairs of words."""
    made = sketched(" ".join(one), " ".join(other))
    features = [len({*words, *pairwise(words)}) for words in (one, other)]
    assert [bool(least[-1] == PAD) for least in made["least"]] == [count <= 15 for count in features]
    if max(features) <= 15:
        found = exact_similarity(made["least"][:1], made["least"][1:])[0]
        assert found == pytest.approx(jaccard(" ".join(one), " ".join(other)))


@pytest.mark.parametrize("length", [20, 60, 400])
def test_estimates_are_unbiased_and_close(length):
    """Over many pairs the mean error is small, and few are off by more than 0.15."""
    dice = random.Random(11)
    ones = [dice.choices(VOCABULARY, k=length) for _ in range(300)]
    others = [[dice.choice(VOCABULARY) if dice.random() < 0.1 else word for word in words] for words in ones]
    first, second = [" ".join(words) for words in ones], [" ".join(words) for words in others]
    found = similarity(sketched(*first)["signature"], sketched(*second)["signature"])
    error = found - np.array([jaccard(a, b) for a, b in zip(first, second, strict=True)])
    assert abs(error.mean()) < 0.015
    assert np.mean(np.abs(error) > 0.15) < 0.02


@pytest.mark.parametrize(("likeness", "fewest"), [(0.7, 0.96), (0.8, 0.99)])
@pytest.mark.parametrize("features", [9, 25, 300])
def test_alike_prompts_meet_in_a_band(likeness, features, fewest):
    """Also small sets, whose empty bins borrow: the chance is that of sets that fill all bins."""
    shared = round(2 * features * likeness / (1 + likeness) + 0.5)
    dice = np.random.default_rng(5)
    codes = dice.integers(0, 2**64, (300, 2 * features - shared), np.uint64)
    ones, others = codes[:, :features], np.concatenate([codes[:, :shared], codes[:, features:]], axis=1)
    least = np.full(600 * sketch.BINS, sketch._EMPTY)
    places = np.repeat(np.arange(600) * sketch.BINS, features)
    sketch._lower(
        least, places, np.concatenate([ones, others]).ravel(), sketch._NOTHING_COMMON, np.zeros(0, np.int64)
    )
    bands = sketch._bins(least)[0].view("<u4")
    assert bands.shape == (600, BANDS)
    assert (bands[:300] == bands[300:]).any(axis=1).mean() >= fewest


def test_borrowed_bins_are_told():
    """A row with few features has few bins of its own, and all of them filled."""
    made = sketched("one two three", "", " ".join(VOCABULARY * 2))["signature"]
    own = (made < BORROWED).sum(axis=1)
    assert 3 <= own[0] <= 5
    assert own[1] == 0
    assert own[2] == 64
    assert {int(value) & 0x7F for value in made[0]} == {int(value) for value in made[0] if value < BORROWED}


def test_what_most_rows_share_is_left_out():
    """A fixed instruction makes no rows alike, and rows that have nothing else keep it."""
    dice = random.Random(1)
    intro = "Extract every field of the following record as compact JSON and leave out what is absent: "
    texts = [intro + " ".join(dice.choices(VOCABULARY, k=6)) for _ in range(200)]
    common = learn_common(texts)
    made = sketched(*texts, intro, intro, common=common)
    assert similarity(made["signature"][:100], made["signature"][100:200]).mean() < 0.1
    assert (made["signature"][-1] < BORROWED).sum() > 10
    assert exact_similarity(made["least"][:1], made["least"][1:2])[0] < 0.3


def test_few_rows_share_nothing_to_be_left_out():
    """Of ten rows, what all of them have may be what makes them alike."""
    assert len(learn_common(["the same text"] * 10)) == 0
    assert len(learn_common(["the same text"] * 100)) == 5
    assert len(learn_common([])) == 0


@settings(deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1), max_size=60), st.sets(st.integers(0, 2**64 - 1), max_size=60))
def test_common_features_are_told_from_all_others(common, others):
    """Also where many of them meet in one place of a table."""
    crowded = {value << 32 & (2**64 - 1) for value in common}
    tells = sketch._Common(np.array(sorted(crowded), np.uint64))
    asked = np.array(sorted(crowded | others | {value << 32 & (2**64 - 1) for value in others}), np.uint64)
    found = tells.among(asked)
    told = [False] * len(asked) if found is None else found.tolist()
    assert told == [value in crowded for value in asked.tolist()]
