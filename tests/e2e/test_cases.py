"""The cases of ``cases.yaml`` check backend, status, decision and attempts."""

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


def test_case(case: dict[str, Any], client: Any, check_case: Any) -> None:
    response = check_case(client, case)
    # Each stand-in writes its name into its responses, which confirms the backend.
    assert response.served_by == f"vllm_{response.headers['x-standin']}"
    record = client.record(response)
    if record.pool is not None:
        assert response.headers["x-llm-pool"] == record.pool
        assert int(response.headers["x-llm-budget"]) == record.budget_tokens
