"""The core's defaults equal the configuration's, and the documentation quotes them."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from extproc import config
from extproc.config import Config
from extproc.exchange import feedback
from extproc.exchange.body_parser import MAX_BODY_BYTES
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.allowance import OutputAllowance
from extproc.routing.conversation import ENTRIES, Conversations
from extproc.routing.decision import OTHER_MODEL
from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.pressure import PressureLimits
from extproc.routing.ratio import Ema
from extproc.routing.risk import Margin
from extproc.routing.router import MediaTokens

CONFIG = Config()


def defaults(maker: Callable[..., Any], *names: str) -> dict[str, Any]:
    """Return the defaults of all parameters, or only of the named parameters."""
    parameters = inspect.signature(maker).parameters
    return {name: parameters[name].default for name in names or parameters}


def test_pressure() -> None:
    load = CONFIG.load
    assert PressureLimits() == PressureLimits(
        load.waiting_requests, load.kv_cache_usage, load.relief
    )


def test_media() -> None:
    media = CONFIG.media
    assert MediaTokens() == MediaTokens(
        media.image_tokens, media.audio_tokens, media.file_tokens
    )


def test_output_allowance() -> None:
    names = ("quantile", "default_tokens", "ceiling_tokens")
    output = dataclasses.asdict(CONFIG.output)
    assert defaults(DeclaredAllowance, "risk") == {
        "risk": output.pop("truncation_risk")
    }
    assert defaults(OutputAllowance, *names) == output


def test_conversations() -> None:
    assert CONFIG.conversations.entries == ENTRIES
    assert defaults(Conversations, "entries") == {"entries": ENTRIES}


def test_risk() -> None:
    assert defaults(Margin, "rate") == {"rate": CONFIG.risk.under_estimate_rate}


def test_the_papers_estimator() -> None:
    estimator = CONFIG.estimator
    assert defaults(Ema, "beta", "gamma") == {
        "beta": estimator.beta,
        "gamma": estimator.gamma,
    }


def test_exchange_settings() -> None:
    settings = ExchangeSettings()
    assert settings.max_body_bytes == MAX_BODY_BYTES == CONFIG.server.max_body_bytes
    assert settings.category_header == CONFIG.category.header
    assert settings.inject_usage == CONFIG.feedback.inject_usage


def test_samples_are_as_documented() -> None:
    assert (feedback.MODEL_SAMPLES, feedback.CATEGORY_SAMPLES) == (200, 20)


def test_the_name_of_other_models_is_no_model_s() -> None:
    assert config.OTHER_MODEL == OTHER_MODEL
