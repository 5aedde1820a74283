"""Later turns of a conversation start from the token count of the previous turn."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.conversation import Conversations, memory_bytes
from extproc.routing.decision import Decision, Outcome
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.router import Router

CHAT = "/v1/chat/completions"
SHORT, LONG = Pool("short", 4096, 4096), Pool("long", 65536, 65536)
WORDS = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
]


def request(texts: Sequence[str], **more: object) -> Request:
    messages = [
        {"role": "assistant" if n % 2 else "user", "content": text}
        for n, text in enumerate(texts)
    ]
    body = json.dumps({"model": "m", "messages": messages, **more}).encode()
    read = parse_request(CHAT, body)
    assert isinstance(read, Request)
    return read


def router(entries: int | None = 100) -> Router:
    return Router(
        Policy([SHORT, LONG]),
        Bounded(TextEstimator()),
        TextRatios(),
        conversations=None if entries is None else Conversations(entries),
    )


def turn(routes: Router, texts: Sequence[str], tokens: int) -> Decision:
    decision = routes.route(request(texts))
    routes.learn(decision, Outcome(200, tokens, 10))
    return decision


def text(size: int, seed: int = 0) -> str:
    return " ".join(WORDS[(seed + n * n) % len(WORDS)] for n in range(size))


def test_a_later_turn_starts_from_the_count_of_the_one_before() -> None:
    with_memory, without = router(), router(None)
    first = [text(900)]
    counted = 2500  # far from the estimate for an unknown tokenizer
    for routes in (with_memory, without):
        turn(routes, first, counted)
    later = [*first, text(20, 1), text(30, 2)]
    exact = counted + 110
    error = abs(with_memory.route(request(later)).prompt_tokens / exact - 1)
    assert error < 0.02
    assert with_memory.route(request(later)).turn_spread > 0
    assert without.route(request(later)).turn_spread == 0


@pytest.mark.parametrize(
    ("answered", "is_believed"),
    [(160, True), (1600, False), (10, False), (None, False), (0, False)],
    ids=["the answer", "with reasoning", "another text", "not counted", "none"],
)
def test_the_counted_answer_is_a_message_of_the_next_turn(
    answered: int | None, is_believed: bool
) -> None:
    known = [text(400)]
    routes = router()
    for n in range(30):  # 1.6 tokens a word, and 4 a message
        turn(routes, [text(100 + 9 * n, n)], 160 + 14 * n + 7)
    routes.learn(routes.route(request(known)), Outcome(200, 650, answered))
    # The later turn contains one word with many tokens. The router can know this only
    # from the usage in the earlier response.
    later = routes.route(request([*known, text(100, 3), text(3)]))
    without = router()
    for n in range(30):
        turn(without, [text(100 + 9 * n, n)], 160 + 14 * n + 7)
    without.learn(without.route(request(known)), Outcome(200, 650))
    estimated = without.route(request([*known, text(100, 3), text(3)]))
    assert later.turn_spread > 0
    assert (later.prompt_tokens != estimated.prompt_tokens) == is_believed


def test_the_sum_of_several_answers_is_no_answer() -> None:
    memory = Conversations()
    routes = router()
    routes.conversations = memory
    asked = replace(request([text(50)]), sequences=2)
    routes.learn(routes.route(asked), Outcome(200, 100, 60))
    found = memory.find("m", request([text(50)]).prompt)
    assert found is not None
    assert (found.known_tokens, found.answer_tokens) == (100, 0)


def test_the_same_prompt_again_is_known_exactly() -> None:
    routes = router()
    turn(routes, [text(500)], 1234)
    assert routes.route(request([text(500)])).prompt_tokens == 1234


def test_the_longest_known_part_counts() -> None:
    memory = Conversations()
    texts = [text(50, n) for n in range(5)]
    for size, tokens in ((1, 100), (3, 300)):
        found = memory.find("m", request(texts[:size]).prompt)
        assert found is not None
        memory.remember(found.key, tokens)
    found = memory.find("m", request(texts).prompt)
    assert found is not None
    assert (found.known_tokens, found.known_messages) == (300, 3)
    assert request(texts).prompt.text[found.known_bytes + 1 :].decode() == (
        texts[3] + "\n" + texts[4]
    )


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("other", {}),
        ("m", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
    ids=["another model", "other tools"],
)
def test_what_changes_the_count_begins_another_conversation(
    model: str, change: dict[str, object]
) -> None:
    memory = Conversations()
    found = memory.find("m", request([text(50)]).prompt)
    assert found is not None
    memory.remember(found.key, 100)
    other = memory.find(model, request([text(50)], **change).prompt)
    assert other is not None
    assert other.known_tokens == 0


def test_an_edited_message_is_not_known() -> None:
    routes = router()
    turn(routes, [text(500), "yes", "go on"], 900)
    edited = routes.route(request([text(500, 3), "yes", "go on", "ok", "more"]))
    assert edited.turn_spread == 0


def test_a_count_far_from_the_estimate_is_not_believed() -> None:
    routes = router()
    for n in range(40):
        turn(routes, [text(400, n)], 700)
    # The template drops the text that was counted, so the next count is a tenth of the
    # previous count.
    turn(routes, [text(400)], 9000)
    decision = routes.route(request([text(400), "yes", "go on"]))
    assert decision.turn_spread == 0
    assert decision.prompt_tokens < 2000


def known(memory: Conversations, text: str) -> int:
    found = memory.find("m", request([text]).prompt)
    assert found is not None
    return found.known_tokens


def remember(memory: Conversations, text: str, tokens: int, answer: int = 0) -> None:
    found = memory.find("m", request([text]).prompt)
    assert found is not None
    memory.remember(found.key, tokens, answer)


def test_what_was_used_last_is_kept() -> None:
    memory = Conversations(4)
    for n in range(1, 9):
        remember(memory, f"{n}", n)
    assert known(memory, "1") == 1  # reused, so no longer the oldest
    remember(memory, "9", 9)
    assert [known(memory, f"{n}") for n in range(1, 10)] == [1, 0, *range(3, 10)]


def test_a_count_replaces_the_one_before() -> None:
    memory = Conversations(8)
    for tokens in (5, 7):
        remember(memory, "a", tokens)
    remember(memory, "b", 9)
    assert (known(memory, "a"), known(memory, "b")) == (7, 9)


@pytest.mark.parametrize("tokens", [0, -1, 1 << 24, 1 << 70])
def test_a_count_that_no_prompt_has_is_not_kept(tokens: int) -> None:
    memory = Conversations()
    remember(memory, "a", tokens)
    assert known(memory, "a") == 0


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(1, (1 << 24) - 1))
def test_every_key_and_count_is_kept_as_it_is(key: int, tokens: int) -> None:
    memory = Conversations(64)
    memory.remember(key, tokens)
    assert memory._recall(key) == tokens


def test_nearly_all_of_the_stated_entries_are_kept() -> None:
    memory = Conversations(4096)
    keys = [hash((n, b"a conversation")) for n in range(4096)]
    for key in keys:
        memory.remember(key, 1, 2)
    assert sum(memory._recall(key) for key in keys) > 0.84 * len(keys)


def test_processes_share_what_lies_in_one_memory() -> None:
    words = memoryview(bytearray(memory_bytes(100)))
    one, two = Conversations(100, words), Conversations(100, words)
    remember(one, "a", 5, 7)
    found = two.find("m", request(["a"]).prompt)
    assert found is not None
    assert (found.known_tokens, found.answer_tokens) == (5, 7)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(b"some text"),
        Prompt(b"some text", message_ends=(9,), missing_bytes=5),
        Prompt(b"some text", message_ends=(9,), images=1),
        Prompt(b"some text", message_ends=(9,), opaque=True),
    ],
    ids=["no messages", "a sample", "media", "opaque"],
)
def test_what_cannot_be_continued_has_no_conversation(prompt: Prompt) -> None:
    assert Conversations().find("m", prompt) is None


@given(st.lists(st.text(max_size=30), min_size=1, max_size=9), st.integers(1, 9))
def test_ends_of_messages_cut_the_text_at_its_messages(
    texts: list[str], size: int
) -> None:
    clean = [part.encode(errors="ignore").decode() for part in texts]
    prompt = request(clean).prompt
    start, cut = 0, []
    for end in prompt.message_ends:
        cut.append(prompt.text[start:end].decode())
        start = end + 1
    assert cut == clean


def test_learning_of_a_conversation_holds_the_stated_risk() -> None:
    routes = router(1000)
    above = turns = 0
    for n in range(60):
        texts = [text(200, n)]
        tokens = 480 + n % 7
        for k in range(6):
            decision = turn(routes, texts, tokens)
            if n > 10 and k:
                turns += 1
                above += tokens > decision.bound_tokens
            texts += [text(20 + n, k), text(10, k)]
            tokens += round(2.4 * (30 + n)) + 8 + (n * k) % 5
    assert above <= 0.05 * turns
