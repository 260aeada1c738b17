"""What is told of a revision grows, and an unfinished answer is not read anew for each token."""

from stream_aligner_proxy.aligners.telling import Telling


def test_only_what_grew_is_told() -> None:
    told: list[str] = []
    telling = Telling(told.append)
    for tokens, beginning in enumerate(["", "The", "The", "A dog", "The dog"], 1):
        telling.tell(beginning, tokens)
    assert told == ["The", "The dog"]
    telling.stop()
    telling.tell("The dog sat", 6)
    assert told == ["The", "The dog"]
    assert not telling.due(100)


def test_a_long_answer_is_looked_at_less_often_than_it_grows() -> None:
    telling = Telling(lambda text: None)
    looks = 0
    for tokens in range(1, 2001):
        if telling.due(tokens):
            looks += 1
            telling.tell("x" * tokens, tokens)
    assert looks < 150
    assert not Telling(None).due(1)
