"""Request to pool: text features, categories, estimators, output allowance, policy.

Pure: no I/O, no clock, no randomness. It serves as a library too, for a proxy that
would rather decide by itself:

>>> from extproc.exchange.openai import parse_request
>>> from extproc.routing import (
...     Bounded, Outcome, Policy, Pool, Router, TextEstimator, TextRatios)
>>> pools = [Pool("short", max_model_len=8192, threshold_tokens=8192),
...          Pool("long", max_model_len=65536, threshold_tokens=65536)]
>>> router = Router(Policy(pools), Bounded(TextEstimator()), TextRatios())
>>> body = b'{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}'
>>> request = parse_request("/v1/chat/completions", body)
>>> decision = router.route(request)
>>> decision.pool.name, decision.reason.value, decision.budget_tokens < 100
('short', 'within_threshold', True)

and after the response, with its ``usage``:

>>> lesson = router.learn(decision, Outcome(200, prompt_tokens=9, completion_tokens=12))
>>> lesson.skipped is None
True

``explain(router, request)`` tells every number of a decision. One thread or event loop
may call a router; nothing in it blocks.
"""

from extproc.routing.bound import Bounded
from extproc.routing.category import Category
from extproc.routing.estimate import Estimate, Estimator
from extproc.routing.explanation import explain
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.risk import Margin, NoMargin
from extproc.routing.router import Decision, Lesson, Misroute, Outcome, Router

__all__ = [
    "Bounded",
    "Category",
    "Decision",
    "Estimate",
    "Estimator",
    "Lesson",
    "Margin",
    "Misroute",
    "NoMargin",
    "Outcome",
    "Policy",
    "Pool",
    "PoolLoad",
    "Prompt",
    "Reason",
    "Request",
    "Router",
    "TextEstimator",
    "TextRatios",
    "explain",
]
