import dataclasses
from pathlib import Path

import pytest
import yaml

from extproc.commands.check_config import missing_files
from extproc.config import (
    ENVIRONMENT,
    Config,
    ConfigError,
    EstimatorName,
    LogFormat,
    LogLevel,
    PoolConfig,
    as_document,
    load_config,
)

MISTAKES = sorted((Path(__file__).parent / "data" / "config").glob("*.yaml"))


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_each_mistake_is_told_in_one_line(path: Path) -> None:
    """The comment in each file's first line is the expected message."""
    text = path.read_text(encoding="utf-8")
    expected = text.splitlines()[0].removeprefix("# ")

    with pytest.raises(ConfigError) as caught:
        load_config(text, {})

    message = str(caught.value)
    assert message.startswith(expected)
    assert "\n" not in message
    assert message == expected or path.stem == "not_yaml"


def test_nothing_is_the_defaults() -> None:
    for text in ("", "# nothing\n", "{}", "null"):
        assert load_config(text, {}) == Config()


def test_the_defaults_are_those_of_the_contract() -> None:
    config = Config()

    assert config.server.listen == "0.0.0.0:9002"
    assert config.server.admin.endswith(":9090")
    assert [(p.name, p.max_model_len) for p in config.pools] == [
        ("short", 8192),
        ("long", 65536),
    ]


def test_a_file_of_everything() -> None:
    config = load_config(
        """
        server: {listen: "unix:/run/extproc.sock", admin: "[::1]:0", drain_timeout_s: 3}
        pools:
          - {name: a, max_model_len: 10, threshold_tokens: 9}
          - {name: b, max_model_len: 20}
        category: {header: x-kind, hints: [legal]}
        estimator: {name: ema, beta: 0.5, gamma: 0}
        output: {default_tokens: 5}
        feedback: {sample: 1, inject_usage: true}
        log: {level: debug, format: json}
        """,
        {},
    )

    assert config.server.listen == "unix:/run/extproc.sock"
    assert config.server.drain_timeout_s == 3.0
    assert config.pools == (PoolConfig("a", 10, 9), PoolConfig("b", 20))
    assert config.category.hints == ("legal",)
    assert config.estimator.name is EstimatorName.EMA
    assert config.feedback.sample == 1.0
    assert config.log.level is LogLevel.DEBUG
    assert config.log.format is LogFormat.JSON


@pytest.mark.parametrize("sample", ["auto", "all", 0, 0.5, 1])
def test_samples(sample: str | float) -> None:
    config = load_config(yaml.safe_dump({"feedback": {"sample": sample}}), {})

    assert config.feedback.sample == sample


@pytest.mark.parametrize("address", ["0.0.0.0:0", "localhost:65535", "[::]:9002"])
def test_addresses(address: str) -> None:
    assert load_config("", {"EXTPROC_LISTEN": address}).server.listen == address


def test_the_environment_overrides_the_file() -> None:
    file = "server: {listen: 'a:1', admin: 'a:2'}\nlog: {level: error}\n"
    environment = {
        "EXTPROC_LISTEN": "b:3",
        "EXTPROC_ADMIN": "b:4",
        "EXTPROC_TRANSPORT": "GRPCIO",
        "EXTPROC_WORKERS": "3",
        "EXTPROC_LOG_LEVEL": "DEBUG",
        "EXTPROC_STATE_URL": "redis://b",
        "EXTPROC_POOLS": "not looked at",
    }

    config = load_config(file, environment)

    assert (config.server.listen, config.server.admin) == ("b:3", "b:4")
    assert config.log.level is LogLevel.DEBUG
    assert config.server.workers == 3
    assert set(ENVIRONMENT) < set(environment)


def test_an_empty_variable_overrides_nothing() -> None:
    assert load_config("", {"EXTPROC_LISTEN": ""}) == Config()


def test_a_mistake_in_the_environment_is_told_too() -> None:
    with pytest.raises(ConfigError, match=r"^log\.level: 'loud'; expected debug, "):
        load_config("", {"EXTPROC_LOG_LEVEL": "loud"})


def test_a_secret_is_used_but_never_shown() -> None:
    text = "state: {store: redis, url: 'redis://:secret@localhost'}"

    config = load_config(text, {})

    assert config.state.url == "redis://:secret@localhost"
    assert "secret" not in yaml.safe_dump(as_document(config))


def test_optional_texts_can_be_set() -> None:
    text = "state: {store: directory, path: /var/lib/extproc}"

    assert load_config(text, {}).state.path == "/var/lib/extproc"


def test_what_is_printed_can_be_read_back() -> None:
    config = dataclasses.replace(Config(), pools=(PoolConfig("only", 5, 4),))

    assert load_config(yaml.safe_dump(as_document(config)), {}) == config


def test_a_variable_that_is_no_number_of_workers_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^server\.workers: 'many'; expected"):
        load_config("", {"EXTPROC_WORKERS": "many"})


@pytest.mark.parametrize("section", ["server", "feedback", "tls", "log"])
def test_an_empty_section_is_its_defaults(section: str) -> None:
    text = "server:\n  tls:\n" if section == "tls" else f"{section}:\n"
    assert load_config(text, {}) == Config()
    override = {"EXTPROC_LISTEN": "127.0.0.1:1"}
    assert load_config(text, override).server.listen == "127.0.0.1:1"


def test_a_merge_key_may_repeat_what_it_overrides() -> None:
    text = """
pools:
- &pool {name: short, max_model_len: 8192}
- {<<: *pool, name: long, max_model_len: 65536}
"""
    assert [pool.name for pool in load_config(text, {}).pools] == ["short", "long"]


FLEET = """
models:
  a: {adapters: ["a-*"], pools: [{name: a-short, max_model_len: 8}, {name: a-long, max_model_len: 9}]}
  b: {pools: [{name: b, max_model_len: 8, api_key_file: /no/such}]}
requests: {responses_pool: a-long}
"""


def test_a_fleet_of_models_reads_back_as_it_is_printed() -> None:
    config = load_config(FLEET, {})
    assert [pool.name for pool in config.all_pools] == ["a-short", "a-long", "b"]
    assert load_config(yaml.safe_dump(as_document(config)), {}) == config
    assert list(missing_files(config)) == [
        "models.b.pools[0].api_key_file: '/no/such'; expected a readable file"
    ]
    with pytest.raises(ConfigError, match="expected one of a-short, a-long, b"):
        load_config(FLEET.replace("responses_pool: a-long", "responses_pool: c"), {})
