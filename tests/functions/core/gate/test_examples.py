"""The rows that people are shown."""


def test_a_mix_of_changes_is_shown(improved):
    """Fixed, wrong and right answers are shown side by side, eight at most, the same ones every time."""
    shown = improved().judged().examples
    assert shown.metric == "exact_match"
    assert {one.change for one in shown.examples} == {"fixed", "wrong", "right"}
    assert len(shown.examples) == 8
    assert shown.counts == {"fixed": 42, "right": 3, "wrong": 15}
    assert shown == improved().judged().examples
    first = shown.examples[0]
    assert first.change == "fixed"
    assert first.answers["candidate"].text == first.reference
    assert first.answers["base"].score == 0


def test_without_generation_the_loss_tells_the_change(evaluated):
    """Where nothing was generated examples are told apart by their loss, and have no text."""
    found = evaluated()
    for i in range(5):
        found.ask(f"r{i}", "yes", generate=False, base=("", 3.0), candidate=("", 1.0))
    shown = found.judged().examples
    assert shown.metric == "nll_per_byte"
    assert {one.change for one in shown.examples} == {"better"}
    assert shown.examples[0].answers["base"].text is None


def test_nothing_measured_shows_nothing(evaluated):
    """An empty evaluation has no examples."""
    assert evaluated().judged().examples is None
