"""A student's first minutes in a real browser: open JupyterLab, run notebook 01, see a figure."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
)
START_LIMIT_S = 90.0
RUN_LIMIT_S = 180.0
STOP_LIMIT_S = 40.0

CODE_PROMPTS = "#jp-main-dock-panel .jp-Notebook .jp-CodeCell .jp-InputArea-prompt"
FIGURE = '.jp-OutputArea-output[data-mime-type="image/png"] img'
PROMPTS = f"[...document.querySelectorAll('{CODE_PROMPTS}')].map(e => e.textContent.trim())"
# A cell that waits or runs shows a star; after an error the cells that follow lose theirs.
ENDED = f"""() => {{
    const prompts = {PROMPTS};
    return prompts.some(text => /^\\[\\d+\\]:$/.test(text)) && !prompts.includes('[*]:');
}}"""

# What a toy notebook must do to fail: the checks below are worth nothing if they cannot.
BROKEN = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nraise ValueError('broken')"


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs on a private copy of one notebook."""

    notebook: Path
    url: str
    sessions: str  # the server's list of kernels


def find_browser() -> str | None:
    """The first browser that answers; some systems install a command that only advertises one."""
    for name in filter(None, [os.environ.get("LABKIT_BROWSER"), *BROWSERS]):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser that starts: tried $LABKIT_BROWSER, {', '.join(BROWSERS)}")
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def jupyterlab(folder: Path, notebook: nbformat.NotebookNode) -> Iterator[Lab]:
    """Serve `notebook` as 01_data.ipynb with `labkit lab`; leave no process behind."""
    project = folder / "a project"
    (project / "notebooks").mkdir(parents=True)
    (project / "model_repository").mkdir()
    path = project / "notebooks" / "01_data.ipynb"
    nbformat.write(notebook, path)
    write_settings(folder / "settings")

    port, token = free_port(), secrets.token_hex(16)
    private = {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "LABKIT_WORKSPACE": str(folder / "run"),
        "LABKIT_PROFILE": "smoke",
    }
    command = [sys.executable, "-m", "labkit", "lab", "--port", str(port), "--no-browser"]
    log_path = folder / "jupyterlab.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=project, env=os.environ | private, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until_up(f"{base}/api", process, log_path)
        page = f"{base}/lab/tree/notebooks/01_data.ipynb?token={token}"
        yield Lab(path, page, f"{base}/api/sessions?token={token}")
    finally:
        survivors = stop(process)
    assert survivors == [], "`labkit lab` left processes behind when it was stopped"


def write_settings(folder: Path) -> None:
    """Have every cell in the page at once, and no questions about news."""
    for name, text in {
        "notebook-extension/tracker": '{"windowingMode": "none"}',
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    }.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer; its log:\n{log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> list[str]:
    """Stop JupyterLab as a terminal does; return (and kill) what is left of its processes."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_LIMIT_S)
    _, alive = psutil.wait_procs(family, timeout=10)
    survivors = []
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivors.append(" ".join(child.cmdline())[:200])
            child.kill()
    if process.poll() is None:
        survivors.append("labkit lab")
        process.kill()
        process.wait()
    return survivors


def wait_for_kernel(page: Page, lab: Lab) -> None:
    """Wait until the kernel is up for the server, and then for the page.

    The page alone does not do: its indicator reads "idle" before there is a kernel at all.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        kernels = [session["kernel"] for session in page.request.get(lab.sessions).json()]
        if any(k["connections"] > 0 and k["execution_state"] == "idle" for k in kernels):
            break
        assert time.monotonic() < deadline, f"no kernel came up: {kernels}"
        time.sleep(0.1)
    idle = page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    idle.wait_for(timeout=START_LIMIT_S * 1000)


def run_all_cells(page: Page, lab: Lab) -> None:
    """Open the notebook and choose Run → Run All Cells, as a student does."""
    page.goto(lab.url, timeout=START_LIMIT_S * 1000)
    page.locator(CODE_PROMPTS).first.wait_for(timeout=START_LIMIT_S * 1000)
    wait_for_kernel(page, lab)
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    try:
        page.wait_for_function(ENDED, timeout=RUN_LIMIT_S * 1000)
    except PlaywrightTimeout:
        picture = lab.notebook.with_suffix(".png")
        page.screenshot(path=picture)
        pytest.fail(f"the notebook did not end within {RUN_LIMIT_S:.0f} s; the page: {picture}")


def saved(page: Page, lab: Lab) -> nbformat.NotebookNode:
    """Save in the browser and read the file back, once it is whole."""
    before = lab.notebook.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if lab.notebook.stat().st_mtime_ns != before:
            with contextlib.suppress(nbformat.reader.NotJSONError):  # still being written
                return nbformat.read(lab.notebook, as_version=4)
        time.sleep(0.1)
    pytest.fail("JupyterLab did not save the notebook")


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in cells for output in cell.outputs if output.output_type == kind]


def without_outputs(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def visible_figures(page: Page) -> list[tuple[int, int]]:
    """Width and height, in pixels, of the figures that the page really shows."""
    figures = page.locator(FIGURE)
    sizes = []
    for index in range(figures.count()):
        figures.nth(index).scroll_into_view_if_needed()
        box = figures.nth(index).bounding_box()
        if box is not None:
            sizes.append((round(box["width"]), round(box["height"])))
    return sizes


@pytest.mark.data
@pytest.mark.browser
@pytest.mark.timeout(600)
def test_notebook_01_runs_to_its_end_and_shows_its_figures(
    browser: Browser, tmp_path: Path
) -> None:
    notebook = without_outputs(ROOT / "notebooks" / "01_data.ipynb")
    with jupyterlab(tmp_path, notebook) as lab, browser.new_page() as page:
        run_all_cells(page, lab)
        sizes = visible_figures(page)
        assert sizes, "no figure is to be seen"
        assert all(width > 100 and height > 50 for width, height in sizes)
        executed = saved(page, lab)
    counts = [c.execution_count for c in executed.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert outputs(executed, "error") == []
    assert (tmp_path / "run" / "artifacts" / "splits.json").is_file()


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_a_broken_notebook_is_seen_to_be_broken(browser: Browser, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in (BROKEN, "print('never reached')")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    with jupyterlab(tmp_path, notebook) as lab, browser.new_page() as page:
        run_all_cells(page, lab)
        assert "ValueError" in page.locator(".jp-OutputArea").first.inner_text()
        assert len(visible_figures(page)) == 1
        executed = saved(page, lab)
    assert [error.evalue for error in outputs(executed, "error")] == ["broken"]
    assert executed.cells[1].execution_count is None
