"""Verifying a draft gives what plain greedy decoding gives, token for token."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.aligners.choosing import Chooser, bias_of
from stream_aligner_proxy.aligners.decoding import Batch, Decoder
from stream_aligner_proxy.aligners.drafting import DraftCursor, Trust, best_width, groups
from stream_aligner_proxy.aligners.kv import KV, Prefixes
from stream_aligner_proxy.aligners.network import Network, takes_back
from stream_aligner_proxy.aligners.options import Sampling
from stream_aligner_proxy.aligners.pacing import pass_cost
from stream_aligner_proxy.aligners.row import Row
from tests.aligners.models import ARCHITECTURES, model

VOCABULARY = 300
KEEP = 299

quick = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


Choice = Callable[[torch.Tensor, list[int]], int]


def the_best(logits: torch.Tensor, output: list[int]) -> int:
    return int(logits.argmax())


def keep_first(keep: int) -> Choice:
    """The best token, but the keep token only at the beginning."""

    def choose(logits: torch.Tensor, output: list[int]) -> int:
        logits = logits.clone()
        if output:
            logits[keep] = -torch.inf
        return int(logits.argmax())

    return choose


@torch.inference_mode()
def plain_greedy(
    network: Any,
    prompt: Sequence[int],
    ends: frozenset[int],
    max_new: int,
    choose: Choice = the_best,
) -> list[int]:
    """The definition: no cache, no batch, no padding, one token a pass."""
    ids, output = list(prompt), []
    while len(output) < max_new:
        logits = network(input_ids=torch.tensor([ids])).logits[0, -1]
        output.append(choose(logits, output))
        ids.append(output[-1])
        if output[-1] in ends:
            break
    return output


def edited(output: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """The output with a share of its tokens replaced, dropped, doubled or preceded by others."""
    draft = []
    for token in output:
        if rng.random() >= share:
            draft.append(token)
            continue
        match rng.randrange(4):
            case 0:
                draft.append(rng.randrange(VOCABULARY))
            case 1:
                pass
            case 2:
                draft.extend((token, token))
            case _:
                draft.extend((*(rng.randrange(VOCABULARY) for _ in range(3)), token))
    return draft


def finish(decoder: Decoder, batch: Batch) -> None:
    while batch.lanes:
        decoder.step(batch)


class Case:
    """Random prompts, their greedy outputs by definition, and rows with edited drafts."""

    def __init__(self, architecture: str, seed: int, rows: int) -> None:
        rng = random.Random(seed)
        self.model = model(architecture, VOCABULARY, seed % 3)
        self.ends = frozenset(rng.sample(range(VOCABULARY - 1), 6))
        self.rng = rng
        shared = rng.choices(range(VOCABULARY), k=20)
        self.rows, self.expected = [], []
        for _ in range(rows):
            prompt = (
                *shared[: rng.choice((0, 10, 20))],
                *rng.choices(range(VOCABULARY), k=rng.randint(1, 30)),
            )
            max_new = rng.choice((1, 2, 12, 30))
            output = plain_greedy(self.model, prompt, self.ends, max_new)
            draft = edited(output, rng.choice((0, 0.1, 0.5, 1)), rng)
            self.rows.append(Row(prompt, (*draft, min(self.ends)), max_new))
            self.expected.append(output)

    def decoder(self, **options: Any) -> Decoder:
        return Decoder(Network(self.model), self.ends, **options)

    def check(self) -> None:
        assert [row.output for row in self.rows] == self.expected
        for row in self.rows:
            assert row.finished == ("end" if row.output[-1] in self.ends else "limit")


cases = st.builds(
    Case,
    st.sampled_from(ARCHITECTURES),
    st.integers(0, 10_000),
    st.integers(1, 4),
)


@quick
@given(cases, st.booleans())
def test_a_verified_draft_gives_what_greedy_decoding_gives(case: Case, remember: bool) -> None:
    decoder = case.decoder(prefixes=Prefixes(400) if remember else None)
    finish(decoder, decoder.begin(case.rows))
    case.check()


@quick
@given(cases)
def test_the_plain_reference_path_gives_what_greedy_decoding_gives(case: Case) -> None:
    decoder = case.decoder(method="greedy")
    finish(decoder, decoder.begin(case.rows))
    case.check()
    assert [row.passes for row in case.rows] == [len(row.output) for row in case.rows]


@quick
@given(cases)
def test_a_keep_token_changes_how_many_passes_it_takes_and_nothing_else(case: Case) -> None:
    keep = case.expected[0][0]
    controls = frozenset(range(0, VOCABULARY, 2)) | case.ends | {keep}
    decoder = case.decoder(keep=keep, controls=controls)
    finish(decoder, decoder.begin(case.rows))
    for row in case.rows:
        output = plain_greedy(case.model, row.prompt, case.ends, row.max_new, keep_first(keep))
        # After a keep token only control tokens can be meant.
        meant = output
        if output[0] == keep:
            ordinary = [n for n, token in enumerate(output[1:], 2) if token not in controls]
            meant = output[: ordinary[0]] if ordinary else output
        assert row.output == meant
    first = case.rows[0]
    if first.max_new > 1 and keep not in case.ends and len(first.output) <= 2:
        assert first.passes == 1


@quick
@given(cases, st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.9, 1.0]), st.booleans())
def test_a_dialled_choice_is_the_same_with_a_draft_and_without(
    case: Case, strength: float, keeps: bool
) -> None:
    keep = case.expected[0][0] if keeps else KEEP
    bias = bias_of(strength)
    expected = []
    for row in case.rows:
        row.bias = bias

        def dialled(logits: torch.Tensor, output: list[int], row: Row = row) -> int:
            logits = logits.clone()
            logits[keep] = -torch.inf if output else logits[keep] + bias
            if bias > 0 and tuple(output) == row.draft[: len(output)] != row.draft:
                logits[row.draft[len(output)]] += bias
            return int(logits.argmax())

        expected.append(plain_greedy(case.model, row.prompt, case.ends, row.max_new, dialled))
    decoder = case.decoder(keep=keep, controls=frozenset(range(VOCABULARY)))
    finish(decoder, decoder.begin(case.rows))
    assert [row.output for row in case.rows] == expected
    if strength == 0:
        # Either the keep token or the sentence itself.
        for row in case.rows:
            kept = row.draft[: row.draft.index(min(case.ends)) + 1][: row.max_new]
            assert row.output[0] == keep or tuple(row.output) == kept[: len(row.output)]


@quick
@given(
    cases,
    st.sampled_from([Sampling(0.7), Sampling(1.5, top_k=5), Sampling(1.0, top_p=0.8)]),
    st.integers(0, 2**63),
)
def test_drawn_tokens_are_the_same_with_a_draft_and_without(
    case: Case, sampling: Sampling, seed: int
) -> None:
    chooser = Chooser(None, sampling)
    expected = []
    for number, row in enumerate(case.rows):
        row.seed = seed + number

        def drawn(logits: torch.Tensor, output: list[int], row: Row = row) -> int:
            alone = Row(row.prompt, (), row.max_new, seed=row.seed, output=output)
            return chooser.choose(logits[None, None], [alone], [[]])[1][0][0]

        output = plain_greedy(case.model, row.prompt, case.ends, row.max_new, drawn)
        expected.append(output)
        # Half of the drafts are what will be drawn, edited: so runs are accepted, too.
        if number % 2 == 0:
            row.draft = (*edited(output, 0.1, case.rng), min(case.ends))
    decoder = case.decoder(sampling=sampling)
    finish(decoder, decoder.begin(case.rows))
    assert [row.output for row in case.rows] == expected


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    n = 4000

    def shares(sampling: Sampling) -> torch.Tensor:
        rows = [Row((), (), 1, seed=seed) for seed in range(n)]
        chooser = Chooser(None, sampling)
        _, tokens = chooser.choose(logits.expand(n, 1, 5), rows, [[]] * n)
        return torch.bincount(torch.tensor(tokens)[:, 0], minlength=5) / n

    assert (shares(Sampling(1.0)) - logits.softmax(0)).abs().max() < 0.03
    assert (shares(Sampling(2.0)) - (logits / 2).softmax(0)).abs().max() < 0.03
    top = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0]).masked_fill(
        torch.tensor([True, False, False, True, True]), -torch.inf
    )
    assert (shares(Sampling(1.0, top_k=2)) - top.softmax(0)).abs().max() < 0.03
    # 2.0 has 56 %, 1.0 the next 21 %: both are needed for 70 %, and enough.
    assert (shares(Sampling(1.0, top_p=0.7)) - top.softmax(0)).abs().max() < 0.03


@quick
@given(cases, st.data())
def test_prompts_read_ahead_in_pieces_change_nothing_and_save_their_tokens(
    case: Case, data: st.DataObject
) -> None:
    prefixes = Prefixes(4000)
    decoder = case.decoder(prefixes=prefixes)
    for row in case.rows:
        known = data.draw(st.integers(0, len(row.prompt)))
        most = data.draw(st.integers(1, 20))
        while decoder.prefill(row.prompt[:known], least=1, most=most):
            pass
        if known:
            remembered = prefixes.longest((*row.prompt[:known], -1))
            assert remembered is not None
            assert remembered.size == known
    finish(decoder, decoder.begin(case.rows))
    case.check()


def test_reading_ahead_is_not_begun_for_a_few_tokens() -> None:
    prefixes = Prefixes(400)
    decoder = Decoder(Network(model("llama", VOCABULARY)), frozenset({1}), prefixes=prefixes)
    assert not decoder.prefill(tuple(range(9)), least=10, most=100)
    assert prefixes.held == 0
    assert not decoder.prefill((), least=0, most=100)
    assert not decoder.prefill(tuple(range(10)), least=10, most=100)
    assert prefixes.held == 10


def test_the_prompts_of_one_reply_take_the_room_of_one() -> None:
    prefixes = Prefixes(1000)
    decoder = Decoder(Network(model("llama", VOCABULARY)), frozenset({1}), prefixes=prefixes)
    context = tuple(range(2, 42))
    for step in range(10):
        prompt = (*context, *range(50 + 10 * step, 60 + 10 * step))
        finish(decoder, decoder.begin([Row((*prompt, 290, 291), (5, 1), 2)]))
        context = prompt
    assert prefixes.held <= len(context) + 2 + 60
    other = tuple(range(100, 140))
    finish(decoder, decoder.begin([Row(other, (5, 1), 2)]))
    assert prefixes.longest((*context, 0)) is not None
    assert prefixes.longest((*other, 0)) is not None


def test_the_cost_of_a_pass_is_measured_in_tokens() -> None:
    assert 2 <= pass_cost(Network(model("llama", VOCABULARY))) <= 4096


def test_a_model_that_repeats_unchanged_sentences_gets_the_draft_proposed_first() -> None:
    network = model("llama", VOCABULARY, 0)
    prompt = tuple(range(20, 40))
    output = plain_greedy(network, prompt, frozenset(), 12)
    end = output[-1]
    length = output.index(end) + 1
    assert KEEP not in output
    decoder = Decoder(Network(network), frozenset({end}), keep=KEEP)
    passes = []
    for _ in range(3):
        row = Row(prompt, tuple(output[:length]), 30)
        finish(decoder, decoder.begin([row]))
        assert row.output == output[:length]
        passes.append(row.passes)
    assert passes == [2, 1, 1]


@quick
@given(cases, st.randoms(use_true_random=False))
def test_rows_that_join_and_leave_in_between_change_nothing(case: Case, rng: random.Random) -> None:
    decoder = case.decoder(prefixes=Prefixes(1000))
    waiting, batch = list(case.rows), Batch.none()
    gone: set[int] = set()
    while waiting or batch.lanes:
        if waiting and rng.random() < 0.5:
            joining = [waiting.pop() for _ in range(rng.randint(1, len(waiting)))]
            fresh = decoder.begin(joining)
            decoder.step(fresh)
            batch.absorb(fresh)
        if len(batch.lanes) > 1 and rng.random() < 0.2:
            gone.add(id(batch.rows()[0]))
            batch.keep(batch.rows()[1:])
        if batch.lanes:
            decoder.step(batch)
    for row, expected in zip(case.rows, case.expected, strict=True):
        if id(row) not in gone:
            assert row.output == expected
        else:
            assert row.output == expected[: len(row.output)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_cache_full_of_junk_is_packed_without_a_trace(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(architecture, 7, 0)
    case.ends = frozenset()
    rng = random.Random(11)
    for _ in range(4):
        prompt = tuple(rng.choices(range(VOCABULARY), k=8))
        output = plain_greedy(case.model, prompt, case.ends, 70)
        case.rows.append(Row(prompt, tuple(output), 70))
        case.expected.append(output)
    packed = []
    pack = KV._pack
    monkeypatch.setattr(KV, "_pack", lambda kv, n: (packed.append(n), pack(kv, n)))
    decoder = case.decoder()
    # One row at a time takes a long stride: the others fill up with slots they do not use.
    monkeypatch.setattr(decoder, "_propose", in_turns(decoder._propose, case.rows))
    batch = decoder.begin(case.rows)
    while batch.lanes:
        decoder.step(batch)
        longest = max(batch.kv.lengths(), default=0)
        assert batch.kv.size <= longest + longest // 2 + 64
    assert packed
    assert [row.output for row in case.rows] == case.expected


def in_turns(propose: Any, rows: Sequence[Row]) -> Any:
    steps = itertools.count()

    def proposal(lane: Any) -> list[int]:
        turn = next(steps) // len(rows) % len(rows)
        whole: list[int] = propose(lane)
        return whole[:40] if lane.row is rows[turn] else []

    return proposal


def test_the_models_own_generate_agrees() -> None:
    network = model("llama", VOCABULARY)
    prompt = tuple(range(40, 60))
    output = network.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    decoder = Decoder(Network(network), frozenset())
    row = Row(prompt, tuple(output[:10]), 20)
    finish(decoder, decoder.begin([row]))
    assert row.output == output


def test_a_draft_that_is_right_takes_one_pass() -> None:
    network = model("llama", VOCABULARY)
    output = plain_greedy(network, (1, 2, 3), frozenset(), 30)
    ends = frozenset(output[-1:])
    output = output[: output.index(output[-1]) + 1]
    decoder = Decoder(Network(network), ends)
    row = Row((1, 2, 3), tuple(output), 60)
    finish(decoder, decoder.begin([row]))
    assert (row.output, row.passes, row.finished) == (output, 1, "end")


@pytest.mark.parametrize("edit", ["substitution", "deletion", "insertion"])
def test_one_edit_in_a_draft_costs_a_few_passes(edit: str) -> None:
    network = model("qwen2", VOCABULARY)
    output = plain_greedy(network, (4, 5, 6), frozenset(), 40)
    draft = {
        "substitution": [*output[:15], KEEP, *output[16:]],
        "deletion": [*output[:15], KEEP, KEEP, KEEP, *output[15:]],
        "insertion": [*output[:15], *output[18:]],
    }[edit]
    decoder = Decoder(Network(network), frozenset())
    row = Row((4, 5, 6), tuple(draft), 40)
    finish(decoder, decoder.begin([row]))
    assert row.output == output
    assert row.passes <= 8


def test_remembered_prompts_save_their_tokens_and_change_nothing() -> None:
    network = Network(model("gemma2", VOCABULARY))
    fed: list[int] = []
    run = network.forward

    def counted(kv: KV, pending: Any, proposals: Any) -> Any:
        fed.append(sum(map(len, pending)))
        return run(kv, pending, proposals)

    network.forward = counted  # type: ignore[method-assign]
    decoder = Decoder(network, frozenset(), prefixes=Prefixes(1000))
    prompt = tuple(range(100))
    for end in (60, 80, 100, 100):
        row = Row(prompt[:end], (), 1)
        finish(decoder, decoder.begin([row]))
        assert row.output == plain_greedy(network.model, prompt[:end], frozenset(), 1)
    assert fed == [60, 20, 20, 1]


def test_remembered_prompts_are_bounded() -> None:
    network = Network(model("llama", VOCABULARY))
    prefixes = Prefixes(50)
    decoder = Decoder(network, frozenset(), prefixes=prefixes)
    for start in range(5):
        prompt = tuple(range(start * 20, start * 20 + 20))
        finish(decoder, decoder.begin([Row(prompt, (), 1)]))
    assert prefixes.longest((*range(80, 100), 1)) is not None
    assert prefixes.longest((*range(60, 80), 1)) is not None
    assert prefixes.longest((*range(40, 60), 1)) is None
    finish(decoder, decoder.begin([Row(tuple(range(60)), (), 1)]))
    assert prefixes.longest((*range(60), 1)) is None


def test_logits_that_are_no_numbers_break_their_row_only() -> None:
    network = Network(model("llama", VOCABULARY))
    run = network.forward

    def poisoned(kv: KV, pending: Any, proposals: Any) -> Any:
        logits = run(kv, pending, proposals)
        logits[0] = float("nan")
        return logits

    network.forward = poisoned  # type: ignore[method-assign]
    decoder = Decoder(network, frozenset())
    rows = [Row((1, 2), (), 3), Row((3, 4, 5), (), 3)]
    batch = decoder.begin(rows)
    assert decoder.step(batch) == [rows[0]]
    assert rows[0].finished == "broken"
    assert rows[1].finished is None
    assert rows[1].output == plain_greedy(network.model, (3, 4, 5), frozenset(), 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", [1, 2])
def test_these_architectures_can_take_back_a_guess(architecture: str, rows: int) -> None:
    assert takes_back(Network(model(architecture, VOCABULARY)), rows)


class Changed:
    """A model that sees other arguments than it was given."""

    def __init__(self, inner: Any, change: Any) -> None:
        self._inner, self._change = inner, change
        self.device, self.dtype, self.config = inner.device, inner.dtype, inner.config
        self.forward = inner.forward

    def __call__(self, **options: Any) -> Any:
        return self._inner(**self._change(options))


def changed(change: Any) -> Network:
    return Network(Changed(model("llama", VOCABULARY), change))


def test_a_model_that_ignores_position_ids_can_only_run_one_row() -> None:
    network = changed(lambda options: {**options, "position_ids": None})
    assert not takes_back(network, 2)
    assert takes_back(network, 1)


def test_a_model_that_refuses_a_ready_made_mask_can_only_run_one_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(options: dict[str, Any]) -> dict[str, Any]:
        if "attention_mask" in options:
            raise ValueError("two dimensions, please")
        return options

    network = changed(refuse)
    assert not takes_back(network, 2)
    assert "does not run with 2 rows" in caplog.text
    assert takes_back(network, 1)


def test_a_model_without_a_cache_cannot_run_at_all() -> None:
    network = changed(lambda options: {**options, "past_key_values": None})
    assert not takes_back(network, 1)


def test_the_head_runs_on_the_tokens_that_are_looked_at_only() -> None:
    network = Network(model("llama", VOCABULARY))
    assert network.forward(KV.empty(1), [list(range(50))], [[1, 2]]).shape == (1, 3, VOCABULARY)
    seen: list[int] = []
    hook = network.model.lm_head.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
    )
    network.forward(KV.empty(1), [list(range(50))], [[1, 2]])
    hook.remove()
    assert seen == [3]


@given(
    st.lists(st.integers(0, 5), max_size=20),
    st.lists(st.integers(0, 5), max_size=40),
    st.integers(0, 30),
)
def test_a_cursor_proposes_runs_of_its_draft_within_the_room(
    draft: list[int], output: list[int], room: int
) -> None:
    cursor = DraftCursor(draft)
    at = 0
    while at < len(output):
        proposal = cursor.propose(room)
        assert len(proposal) <= room
        assert any(draft[n : n + len(proposal)] == proposal for n in range(len(draft) + 1))
        assert all(0 < chance < 1 for chance in cursor.odds())
        accepted = 0
        while (
            accepted < len(proposal)
            and at + accepted < len(output) - 1
            and proposal[accepted] == output[at + accepted]
        ):
            accepted += 1
        cursor.advance(len(proposal), accepted, output[at + accepted])
        at += accepted + 1


def test_a_draft_nobody_has_doubted_is_proposed_whole() -> None:
    assert best_width([(0.995, 0.995)], [64], 20.0) == 64


def test_a_draft_that_is_never_right_is_no_longer_proposed() -> None:
    cursor = DraftCursor(range(100, 200))
    tries = 0
    for token in range(60):
        lengths = [len(cursor.propose(100))]
        width = best_width([cursor.odds()], lengths, 20.0)
        tries += width > 0
        cursor.advance(width, 0, token)
    assert 1 <= tries <= 10


def test_wide_batches_propose_less() -> None:
    odds = [(0.5, 0.8)] * 16
    assert best_width(odds[:1], [64], 20.0) > best_width(odds, [64] * 16, 20.0)


def test_rows_without_a_draft_do_not_stop_the_others() -> None:
    assert best_width([(0.99, 0.99), (0.5, 0.5)], [8, 0], 20.0) == 8


def test_a_dialled_answer_does_not_begin_with_a_delimiter() -> None:
    logits = torch.tensor([0.0, 5.0, 3.0, 1.0]).expand(1, 1, 4)
    chooser = Chooser(keep=1, meaningless=frozenset({2}))

    def first(strength: float) -> int:
        row = Row((), (), 4, bias=bias_of(strength))
        return chooser.choose(logits.clone(), [row], [[]])[1][0][0]

    assert [first(0.0), first(0.5), first(1.0)] == [1, 1, 3]


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(0, 80))
def test_rows_of_like_length_share_a_pass_where_that_is_cheaper(
    lengths: list[int], pass_cost: int
) -> None:
    def cost(division: list[list[int]]) -> int:
        return sum(pass_cost + len(g) * max(lengths[n] for n in g) for g in division)

    found = groups(lengths, pass_cost)
    assert sorted(number for group in found for number in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in found)
    if lengths:
        assert cost(found) <= cost([list(range(len(lengths)))])
        assert cost(found) <= cost([[number] for number in range(len(lengths))])
    if 1 < len(lengths) <= 5:
        splits = itertools.product(range(len(lengths)), repeat=len(lengths))
        every = [
            [[n for n, part in enumerate(split) if part == which] for which in set(split)]
            for split in splits
        ]
        assert cost(found) == min(map(cost, every))


@quick
@given(cases)
def test_rows_begun_apart_give_what_they_give_together(case: Case) -> None:
    decoder = case.decoder(pass_cost=4.0, prefixes=Prefixes(400))
    for batch in decoder.begin_apart(case.rows):
        finish(decoder, batch)
    case.check()


def test_what_is_learnt_of_drafts_counts_for_those_that_come_and_is_forgotten() -> None:
    trust = Trust()
    believed = best_width([DraftCursor(range(64), trust).odds()] * 16, [64] * 16, 20.0)
    for _ in range(20):
        cursor = DraftCursor(range(64), trust)
        cursor.advance(64, 4, 999)
    doubted = best_width([DraftCursor(range(64), trust).odds()] * 16, [64] * 16, 20.0)
    assert doubted < believed
    for _ in range(200):
        DraftCursor(range(64), trust).advance(64, 64, 999)
    assert trust.rate > 0.99
