"""Where finished responses are kept: bounded, and each client's own."""

from stream_aligner_proxy.api.response_store import ResponseStore, owner_of

ANNA, BEN = owner_of("Bearer anna"), owner_of("Bearer ben")


def response(number: int, text: str = "") -> dict:
    return {"id": f"resp_{number}", "output": [{"type": "message", "content": text}]}


def test_a_response_is_its_owners_alone():
    store = ResponseStore(100_000)
    store.put(ANNA, response(1), [{"role": "user"}])
    assert store.get(BEN, "resp_1") is None
    assert not store.delete(BEN, "resp_1")
    assert store.get(owner_of(None), "resp_1") is None
    kept = store.get(ANNA, "resp_1")
    assert kept is not None
    assert kept.conversation() == [{"role": "user"}, *response(1)["output"]]
    assert store.delete(ANNA, "resp_1")
    assert store.get(ANNA, "resp_1") is None
    assert store.size == 0


def test_the_oldest_go_first_and_one_that_was_asked_for_stays_longer():
    store = ResponseStore(3 * 3000)
    for number in range(3):
        store.put(ANNA, response(number, "x" * 1800), [])
    assert store.get(ANNA, "resp_0") is not None
    store.put(ANNA, response(3, "x" * 1800), [])
    assert [store.get(ANNA, f"resp_{n}") is not None for n in range(4)] == [True, False, True, True]
    assert store.size <= 9000


def test_the_number_of_entries_is_bounded_too():
    store = ResponseStore(10**9, most=2)
    for number in range(5):
        store.put(ANNA, response(number), [])
    assert [store.get(ANNA, f"resp_{n}") is not None for n in range(5)] == [False] * 3 + [True] * 2


def test_one_that_is_larger_than_all_there_may_be_is_not_kept_and_displaces_nothing():
    store = ResponseStore(4000)
    store.put(ANNA, response(1), [])
    store.put(ANNA, response(2, "x" * 5000), [])
    assert store.get(ANNA, "resp_1") is not None
    assert store.get(ANNA, "resp_2") is None


def test_without_bytes_nothing_is_kept():
    store = ResponseStore(0)
    store.put(ANNA, response(1), [])
    assert not store.keeps
    assert store.get(ANNA, "resp_1") is None
