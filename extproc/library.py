"""The public Python API: the routing core, for a proxy that embeds it.

>>> from extproc.library import Bounded, Outcome, Policy, Pool, Request
>>> from extproc.library import Router, TextEstimator, TextRatios, parse_request
>>> pools = [Pool("short", max_model_len=8192, threshold_tokens=8192),
...          Pool("long", max_model_len=65536, threshold_tokens=65536)]
>>> router = Router(Policy(pools), Bounded(TextEstimator()), TextRatios())
>>> body = b'{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}'
>>> request = parse_request("/v1/chat/completions", body)
>>> assert isinstance(request, Request)  # else the Reason why not
>>> decision = router.route(request)
>>> decision.pool.name, decision.reason.value, decision.budget_tokens < 100
('short', 'within_threshold', True)

After the response, pass its ``usage`` to ``learn``:

>>> lesson = router.learn(decision, Outcome(200, prompt_tokens=9, completion_tokens=12))
>>> lesson.skipped is None
True

``explain(router, request)`` returns every number of a decision. Use a router from one
thread or event loop only; none of its calls block.
"""

from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.category import Category
from extproc.routing.decision import Decision, Outcome
from extproc.routing.estimate import Estimate, Estimator
from extproc.routing.explanation import explain
from extproc.routing.misroute import Misroute
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.risk import Margin, NoMargin
from extproc.routing.router import Lesson, Router

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
    "parse_request",
]
