"""The cases of ``cases.yaml``: right backend, status, decision and attempts."""

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


def test_case(case: dict[str, Any], client: Any) -> None:
    response = client.post(case["path"], case["body"], case.get("headers"))
    expected = case["expect"]
    seen = {"status": response.status, "attempts": response.attempts}
    seen["backend"] = (response.served_by or "").removeprefix("vllm_")
    record = client.record(response)
    seen |= {"pool": record.pool, "reason": record.reason, "category": record.category}
    assert {key: seen[key] for key in expected} == expected, response.body[:500]
    # Who says that it answered did: the stand-in signs its answers.
    assert response.headers["x-standin"] == seen["backend"]
    if record.pool is not None:
        assert response.headers["x-llm-pool"] == record.pool
        assert int(response.headers["x-llm-budget"]) == record.budget_tokens
