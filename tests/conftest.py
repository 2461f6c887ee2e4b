"""What tests of several folders share: a data directory, and the real server on a free loopback port."""

from __future__ import annotations

import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("conformance")

from scoring import endpoint, nearness  # noqa: E402


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    """An empty data directory for an embedded engine."""
    return tmp_path / "data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a FULL DISK is NOT tested here, mounting a small one is not allowed: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # segments may still be mapped


@pytest.fixture
def limit_files() -> Iterator[Callable[[int | None], None]]:
    """``limit_files(n)``: no file of this process grows past n bytes, writes fail with EFBIG; None ends that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if most is None else most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, old)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with default settings and a scorer ``near``, one for the whole run: name collections
    uniquely."""
    with endpoint(nearness) as made:
        scorers = {"near": {"kind": "tei", "url": made.url}}
        with serving(tmp_path_factory.mktemp("server"), scorers=scorers) as url:
            yield url


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``start_server(api_keys=["..."])`` starts a server with other settings and returns its address."""
    with ExitStack() as stack:

        def start(**settings: Any) -> str:
            return stack.enter_context(serving(tmp_path / "server", **settings))

        yield start


@contextmanager
def serving(data: Path, **settings: Any) -> Iterator[str]:
    """Run the service in a thread of this process, on an engine and sockets of its own."""
    import uvicorn

    from nearfield_index.engine import Engine
    from nearfield_server.app import create_app
    from nearfield_server.commands.serve import engine_options
    from nearfield_server.serving import listen
    from nearfield_server.settings import Settings

    made = Settings(data=data, port=0, **settings)
    app = create_app(made, Engine.open(data, options=engine_options(made)))
    listener = listen(made)  # from here on connections wait in its queue, so that nobody need ask whether it is up
    host, port = listener.getsockname()[:2]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
