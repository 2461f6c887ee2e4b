"""The surface: what is exported, what importing costs, that both colours and both error tables agree."""

import inspect
import subprocess
import sys

import pytest

import nearfield
from nearfield import aio, client, errors, operations


def test_the_export_list_is_complete_and_sorted():
    public = {name for name in vars(nearfield) if not name.startswith("_")} - {"annotations", "os", "Any"}
    names = {name for name in public if not inspect.ismodule(getattr(nearfield, name))} - {"TYPE_CHECKING"}

    assert names <= set(nearfield.__all__)
    assert sorted(nearfield.__all__) == nearfield.__all__
    assert all(getattr(nearfield, name) is not None for name in nearfield.__all__)


def test_importing_loads_nothing_heavy():
    heavy = "nearfield_index,pyarrow,pandas,pydantic,httpx2,nearfield.wire,nearfield.local,faiss"
    code = f"import sys, nearfield; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [(client.Client, aio.AsyncClient), (client.Collection, aio.AsyncCollection)],
)
def test_both_colours_have_the_same_methods(blocking, awaited):
    def signatures(owner):
        methods = {name: each for name, each in vars(owner).items() if not name.startswith("_") and callable(each)}
        return {name: list(inspect.signature(each).parameters.values()) for name, each in methods.items()}

    assert signatures(blocking) == signatures(awaited)


def test_every_engine_error_has_a_row():
    engine = pytest.importorskip("nearfield_index.errors")
    names = {each.__name__ for each in vars(engine).values() if inspect.isclass(each)}
    names = {name for name in names if issubclass(getattr(engine, name), engine.NearfieldError)} - {"NearfieldError"}

    assert names == set(errors.TABLE)


@pytest.mark.parametrize(("status", "kind"), errors.TABLE.values(), ids=errors.TABLE)
def test_an_error_is_the_same_over_http_and_embedded(status, kind):
    name = kind.__name__
    engine_class = type(name, (Exception,), {"code": kind.default_code, "field": "k", "hint": "do that"})
    embedded = errors.from_engine(engine_class("it went wrong"))
    body = errors.problem(status, kind.default_code, "it went wrong", field="k", hint="do that")
    remote = errors.from_problem(status, body)

    assert type(embedded) is type(remote) is kind
    assert errors.status_of(name) == status == embedded.status == remote.status
    assert str(embedded) == str(remote) == "it went wrong (at k); do that"
    assert embedded.code == remote.code == kind.default_code


def test_subclasses_of_engine_errors_and_strangers_are_known():
    parent = type("NotFound", (Exception,), {})
    assert type(errors.from_engine(type("PointNotFound", (parent,), {})("x"))) is errors.NotFound
    assert type(errors.from_engine(ValueError("x"))) is errors.ServerFailed
    assert type(errors.from_problem(418, "teapot")) is errors.InvalidRequest
    assert type(errors.from_problem(599, None)) is errors.ServerFailed


def test_every_call_has_one_route():
    assert len(set(operations.ROUTES.values())) == len(operations.ROUTES)


def test_without_the_engine_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['nearfield_index'] = None\n"
        "import nearfield\n"
        f"try: nearfield.open({str(tmp_path)!r})\n"
        "except ImportError as missing: print(missing)"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert "nearfield[embedded]" in tried.stdout


@pytest.mark.parametrize("url", ["localhost:7333", "ftp://x", ""])
def test_an_address_without_a_scheme_is_refused(url):
    with pytest.raises(errors.InvalidRequest, match="http://"):
        nearfield.connect(url)


def test_a_closed_client_says_so():
    nf = nearfield.connect("http://127.0.0.1:9")
    nf.close()
    with pytest.raises(nearfield.InvalidRequest, match="closed"):
        nf.collections()


def test_no_server_is_a_connection_failure():
    with (
        nearfield.connect("http://127.0.0.1:9", retries=0) as nf,
        pytest.raises(nearfield.ConnectionFailed, match="is the server running"),
    ):
        nf.collections()


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_a_url_would_lose_are_refused(name):
    with nearfield.connect("http://127.0.0.1:9", retries=0) as nf, pytest.raises(nearfield.InvalidRequest):
        nf.drop(name)
