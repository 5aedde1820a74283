from extproc.routing.baselines import BytesOverFour, SemanticRouterRule
from extproc.routing.bound import Bounded
from extproc.routing.features import Features, measure
from extproc.routing.request import Prompt
from extproc.routing.risk import NoMargin


def prompt_of(text_bytes: int, tools_bytes: int = 0) -> Features:
    tools = 1 if tools_bytes else 0
    prompt = Prompt(b"x" * text_bytes, tools_text=b"y" * tools_bytes, tools=tools)
    return measure(prompt, text_bytes + tools_bytes + 139)


def estimate(rule: BytesOverFour | SemanticRouterRule, features: Features) -> int:
    result = Bounded(rule, NoMargin()).estimate("m", "prose", features)
    assert result.bound_tokens == result.prompt_tokens
    return result.prompt_tokens


def test_a_quarter_of_the_body() -> None:
    rule = BytesOverFour()
    rule.observe("m", "prose", prompt_of(400), 1)
    assert estimate(rule, prompt_of(402)) == 136


def test_the_rule_starts_at_four_bytes_and_waits_for_ten_samples() -> None:
    rule = SemanticRouterRule()
    for _ in range(9):
        rule.observe("m", "prose", prompt_of(400), 200)
        assert estimate(rule, prompt_of(400)) == 104
    rule.observe("m", "prose", prompt_of(400), 200)
    assert estimate(rule, prompt_of(400)) == 200


def test_the_rule_falls_nine_tenths_and_rises_one_tenth_of_the_way() -> None:
    rule = SemanticRouterRule()
    for _ in range(10):
        rule.observe("m", "prose", prompt_of(300), 100)
    rule.observe("m", "prose", prompt_of(100), 100)
    assert estimate(rule, prompt_of(1200)) == 1000  # 3.0 -> 1.2 bytes a token
    rule.observe("m", "prose", prompt_of(320), 100)
    assert estimate(rule, prompt_of(1390)) == 993  # 1.2 -> 1.4


def test_the_rule_charges_a_token_a_byte_of_tools_and_does_not_learn_from_them() -> (
    None
):
    rule = SemanticRouterRule()
    for _ in range(20):
        rule.observe("m", "prose", prompt_of(100, 50), 100)
    assert estimate(rule, prompt_of(400, 50)) == 100 + 50 + 4 + 8
