"""The site of the documentation, built and served once."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make site` builds. No proxy leads to the network, where there is one."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    made = subprocess.run(
        # The environment is the one that runs the tests, whatever its name.
        [
            *("make", "--no-print-directory", "-o", ".venv/installed-dev", "site"),
            *(f"BIN={Path(sys.executable).parent}", f"SITE={folder}"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on this machine only."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
