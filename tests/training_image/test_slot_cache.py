"""Keys and values of rows that come and go."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from tuner.engine.slots import SlotCache

LAYERS, HEADS, SIZE = 2, 2, 3
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 5), st.lists(st.integers(1, 70), min_size=1, max_size=3)),
        st.tuples(st.just("token"), st.integers(1, 70)),
        st.tuples(st.just("leave"), st.sets(st.integers(0, 8), min_size=1)),
    ),
    max_size=12,
)


def filled(prefix: int, own: list[int], first: int) -> DynamicCache:
    """A cache of rows whose keys tell their row and place, padded between the prefix and their own tokens."""
    width = prefix + max(own)
    keys = torch.full((len(own), HEADS, width, SIZE), torch.nan)
    for row, tokens in enumerate(own):
        keys[row, :, :prefix] = values(first + row, range(prefix))
        keys[row, :, width - tokens :] = values(first + row, range(prefix, prefix + tokens))
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(keys + layer, -keys - layer, layer)
    return cache


def values(row, places):
    told = torch.tensor([1000.0 * row + place for place in places])
    return told[None, :, None].expand(HEADS, -1, SIZE)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_every_row_finds_its_own_tokens_in_order(steps):
    """Whatever joins and leaves between two tokens, what a row may see is exactly what was written for it."""
    cache, rows, made = None, [], 0
    for step in steps:
        if step[0] == "join":
            _, prefix, own = step
            new = filled(prefix, own, made)
            cache = cache or SlotCache(new)
            cache.join(new, prefix, [prefix + tokens for tokens in own])
            rows += [[1000.0 * (made + i) + n for n in range(prefix + t)] for i, t in enumerate(own)]
            made += len(own)
        elif step[0] == "leave" and rows:
            gone = sorted(row for row in step[1] if row < len(rows))
            rows = [rows[row] for row in cache.leave(gone)]
        elif step[0] == "token" and rows:
            for _ in range(step[1]):
                cache.before_token()
                mask = cache.mask(torch.device("cpu")).bool()
                new = torch.tensor([[row[0] + len(row)] for row in rows])
                rows = [[*row, row[0] + len(row)] for row in rows]
                told = new[:, None, :, None].expand(-1, HEADS, -1, SIZE)
                for layer in range(LAYERS):
                    keys, found = cache.update(told + layer, -told - layer, layer)
                    for place, row in enumerate(rows):
                        seen = keys[place, 1, mask[place], 2] - layer
                        assert seen.tolist() == row
                        assert torch.equal(found[place, 0, mask[place], 0], -keys[place, 0, mask[place], 0])
                cache.after_token()
        if cache is not None:
            assert cache.lengths == [len(row) for row in rows]
