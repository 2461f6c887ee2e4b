"""The document at /openapi.json: complete, consistent in itself, and true of real replies."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from nearfield import wire
from nearfield_server.contract import ScopedRoute

BODY_METHODS = {"put", "post", "patch"}


@pytest.fixture
def spec(api: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = api.get("/openapi.json").json()
    return document


def operations(spec: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, each) for path, methods in spec["paths"].items() for method, each in methods.items()]


def test_every_route_is_documented(api: TestClient, spec: dict[str, Any]) -> None:
    app: Any = api.app
    served = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, ScopedRoute)
        for method in route.methods or ()
    }
    assert served == {(path, method) for path, method, _ in operations(spec)}
    assert len(served) == len(app.routes)


def test_operations_say_what_they_take_and_give(spec: dict[str, Any]) -> None:
    for path, method, operation in operations(spec):
        where = f"{method} {path}"
        assert operation["description"], where
        assert ("requestBody" in operation) == (method in BODY_METHODS), where
        parameters = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert parameters == [part[1:-1] for part in path.split("/") if part.startswith("{")], where
        assert any(status.startswith("2") for status in operation["responses"]), where
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert set(response["content"]) == {"application/problem+json"}, where


def test_every_reference_resolves(spec: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            found = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return found + [each for value in node.values() for each in references(value)]
        if isinstance(node, list):
            return [each for value in node for each in references(value)]
        return []

    known = {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}
    used = set(references(spec))
    assert used <= known
    assert "#/components/schemas/Problem" in used


def test_examples_are_valid_requests(spec: dict[str, Any]) -> None:
    for path, method, operation in operations(spec):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None and "example" in content:
            model = getattr(wire, content["schema"]["$ref"].rsplit("/", 1)[-1])
            assert model.model_validate(content["example"]), f"{method} {path}"


def test_binary_bodies_where_they_are_taken(spec: dict[str, Any]) -> None:
    binary = {
        path
        for path, _, operation in operations(spec)
        if "application/x-nearfield-frame" in operation.get("requestBody", {}).get("content", {})
    }
    assert binary == {"/v1/collections/{name}/query", "/v1/collections/{name}/points"}


def test_keys_are_documented_where_asked_for(serve_here: Any) -> None:
    spec = serve_here(api_keys=["some-api-key"]).get("/openapi.json").json()
    assert spec["security"] == [{"bearer": []}, {"apiKey": []}, {"xApiKey": []}]
    assert spec["paths"]["/livez"]["get"]["security"] == []


def test_docs_page_fetches_nothing_from_elsewhere(api: TestClient) -> None:
    assert api.get("/", follow_redirects=False).headers["location"] == "docs"
    page = api.get("/")
    assert str(page.url).endswith("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for outside in ("http://", "https://", "src=", "@import", " url("):
        assert outside not in page.text


BANK = [[1, number, 0.5] for number in range(30)]
CALLS: list[tuple[str, str, dict[str, Any] | None, int, type[wire.Reply]]] = [
    ("GET", "/v1", None, 200, wire.Info),
    ("PUT", "/v1/collections/c", {"dim": 3, "metric": "cosine"}, 201, wire.Collection),
    ("PUT", "/v1/collections/c", {"dim": 3, "metric": "cosine"}, 200, wire.Collection),
    ("GET", "/v1/collections", None, 200, wire.Collections),
    ("PATCH", "/v1/collections/c", {"attributes": {"color": "keyword"}}, 200, wire.Collection),
    (
        "POST",
        "/v1/collections/c/points",
        {"ids": ["a", 2], "vectors": {"vector": [[1, 0, 0], [0, 1, 0]]}, "attributes": {"price": [1, 2]}},
        200,
        wire.Written,
    ),
    ("GET", "/v1/collections/c", None, 200, wire.Collection),
    ("PATCH", "/v1/collections/c", {"index": {"recall": 0.9}}, 202, wire.Job),
    ("PATCH", "/v1/collections/c/points", {"ids": [2], "set": {"color": "red"}}, 200, wire.Patched),
    ("POST", "/v1/collections/c/points/get", {"ids": ["a", "zzz"], "with": ["vectors"]}, 200, wire.Points),
    ("POST", "/v1/collections/c/points/count", {"filter": {"price": {"gte": 2}}}, 200, wire.Count),
    ("POST", "/v1/collections/c/points/scan", {"limit": 1}, 200, wire.Page),
    ("POST", "/v1/collections/c/facet", {"field": "color"}, 200, wire.FacetCounts),
    ("POST", "/v1/collections/c/query", {"vector": [1, 0, 0], "k": 2, "explain": True}, 200, wire.Results),
    ("POST", "/v1/collections/c/optimize", {}, 202, wire.Job),
    ("PUT", "/v1/collections/c/hubness", {"bank": {"vectors": BANK}}, 202, wire.Job),
    ("POST", "/v1/collections/c/hubness/release", {"ids": ["a"]}, 200, wire.Released),
    ("GET", "/v1/jobs", None, 200, wire.Jobs),
    ("GET", "/v1/collections/c/quality", None, 200, wire.Quality),
    ("POST", "/v1/collections/c/points/delete", {"ids": ["a"], "dry_run": True}, 200, wire.Deleted),
    ("POST", "/v1/collections/c/points/delete", {"ids": ["a"]}, 200, wire.Deleted),
    ("DELETE", "/v1/collections/c", None, 200, wire.Dropped),
    ("GET", "/livez", None, 200, wire.Health),
    ("GET", "/healthz", None, 200, wire.Health),
    ("GET", "/readyz", None, 200, wire.Health),
    ("GET", "/v1/collections/c", None, 404, wire.Problem),
]


def test_real_replies_fit_their_models(api: TestClient) -> None:
    """One life of a collection; each reply has the documented status, and its model accepts it."""
    for method, path, body, status, model in CALLS:
        reply = api.request(method, path, json=body)
        assert reply.status_code == status, (method, path, reply.text)
        model.model_validate(reply.json())


def test_a_job_has_an_address(api: TestClient) -> None:
    api.put("/v1/collections/c", json={"dim": 3})
    reply = api.post("/v1/collections/c/optimize")
    assert reply.status_code == 202
    assert api.get(reply.headers["location"]).json()["id"] == reply.json()["id"]


def test_a_hubness_fit_over_http(api: TestClient) -> None:
    api.put("/v1/collections/c", json={"dim": 3})
    missing = api.get("/v1/collections/c/hubness")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_hubness_fit")
    rows = [{"id": number, "vector": [1, number, 2]} for number in range(20)]
    api.post("/v1/collections/c/points", json={"points": rows})
    reply = api.put("/v1/collections/c/hubness", json={"bank": {"vectors": BANK}, "method": "nnn"})
    assert reply.status_code == 202
    engine: Any = api.app.state.service.engine  # type: ignore[attr-defined]
    assert engine._catalog.maintenance.jobs.get(reply.json()["id"]).wait(60)
    report = api.get("/v1/collections/c/hubness")
    wire.Hubness.model_validate(report.json())
    found = api.post("/v1/collections/c/query", json={"vector": [1, 2, 3], "hubness": "on"}).json()
    wire.Results.model_validate(found)
    assert found["meta"]["hubness"]["method"] == "nnn"
    assert found["results"][0][0]["bias"] != 0
    rotated = api.post("/v1/collections/c/hubness/rotate", json={"vectors": [[3, 2, 1], [1, 1, 9]]})
    assert rotated.status_code == 202
    assert engine._catalog.maintenance.jobs.get(rotated.json()["id"]).wait(60)
    metrics = api.get("/metrics").text
    assert 'nearfield_normalised_queries_total{collection="c"} 1.0' in metrics
    assert 'nearfield_quarantined_points{collection="c"} 0.0' in metrics
    assert api.delete("/v1/collections/c/hubness").status_code == 200
