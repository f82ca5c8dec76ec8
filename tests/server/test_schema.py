"""Requests made from the served OpenAPI schema: none makes the server fail, and each answer is documented."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.server.conftest import Served

OPERATIONS = [
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]
MOST_TOKENS = 20
"""Longest completion that is asked for, so that the test ends soon."""


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_makes_the_server_fail(served: Served, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path][method]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            for name in {"max_tokens", "max_completion_tokens"} & case.body.keys():
                if isinstance(case.body[name], int):
                    case.body[name] = min(case.body[name], MOST_TOKENS)
            if path == "/v1/chat/completions" and not {"max_tokens", "max_completion_tokens"} & case.body.keys():
                case.body["max_tokens"] = MOST_TOKENS
        # What only the engine knows, such as the vocabulary's size, is not in the schema.
        case.call_and_validate(excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])

    ask()


def test_every_operation_is_tested(served: Served) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, operations in paths.items() for method in operations} == set(OPERATIONS)
    assert not [path for path, operations in paths.items() for one in operations.values() if "422" in one["responses"]]
