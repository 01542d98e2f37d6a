"""In JupyterLab and a real Chromium, the widgets do what a reader expects: a moved slider changes the picture.

A notebook is opened as a copy, cut down to the cells that its widgets need (nbval has run the others). All cells are
run, and each picture has a slider moved by the keyboard or another entry of a menu taken. Nothing may be asked of any
other host.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
SETTINGS = {  # no news from the network; every cell in the page, not only those in view
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
SHA = "img => fetch(img.src).then(r => r.arrayBuffer()).then(b => Array.from(new Uint8Array(b)).join())"
OPEN = """async path => {  // in front, with a kernel: a run that is started before there is one is lost
    const panel = await jupyterapp.commands.execute("docmanager:open", { path });
    await panel.context.ready;
    await panel.sessionContext.ready;
}"""
DONE = "every cell has run"

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[dev]")
pytestmark = pytest.mark.browser


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell makes or changes, and those it needs from before."""
    made: set[str] = set()
    needed: set[str] = set()
    for statement in ast.parse(source).body:
        nodes = list(ast.walk(statement))
        changed = {n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
        changed |= {name for n in nodes for name in changed_by(n)}
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        inside = set().union(*map(wanted_inside, table.get_children()))
        here = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
        made_here = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        changed &= here | inside  # not the local names of a function
        needed |= (here | inside | changed) - bound_by_loop(statement) - made
        made |= made_here | changed
    return made, needed


def wanted_inside(scope: symtable.SymbolTable) -> set[str]:
    """The names of the notebook that a function, a class or a comprehension needs, and those within it."""
    own = {s.get_name() for s in scope.get_symbols() if s.is_referenced() and s.is_global()}
    return own.union(*map(wanted_inside, scope.get_children()))


def imported(source: str) -> set[str]:
    """The names that a cell imports."""
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name.split(".")[0] for n in found for alias in n.names}


def bound_by_loop(statement: ast.stmt) -> set[str]:
    """What a `for` of the cell itself runs through."""
    target = statement.target if isinstance(statement, ast.For) else ast.Tuple([])
    return {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}


def changed_by(node: ast.AST) -> set[str]:
    """The name whose content a node changes: x.append(1), x.y = 1, x[0] = 1."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        node = node.value.func
    elif not isinstance(getattr(node, "ctx", None), ast.Store):
        return set()
    if not isinstance(node, ast.Attribute | ast.Subscript):
        return set()
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def cells_for_widgets(cells: list[str]) -> list[str]:
    """The cells with a widget, and the earlier ones that they build upon."""
    kept: list[str] = []
    wanted: set[str] = set()
    modules = set().union(*map(imported, cells))
    for source in reversed(cells):
        made, needed = names(source)
        made -= modules - imported(source)  # torch.manual_seed(0) does not make torch
        if "explore(" in source or made & wanted:
            kept.append(source)
            wanted |= needed
    return kept[::-1]


def test_cells_that_the_widgets_do_not_need_are_left_out() -> None:
    cells = ["import a", "def f(x):\n    y = x\n    return a.b(y)", "y = 1", "for x in range(3): print(x)"]
    cells += ["d = {}", "d['k'] = f(2)", "e = d", "explore(lambda x: d[x], x=(1, 2))", "print(d)"]
    assert cells_for_widgets(cells) == [cells[i] for i in (0, 1, 4, 5, 7)]
    cells = ["import a", "y = 1\na.b(y)", "a.c()", "explore(lambda x: a.b(x), x=(1, 2))"]
    assert cells_for_widgets(cells) == [cells[0], cells[3]]
    cells = ["h = 1", "def f():\n    h = 2\n    return [h for p in k]", "p = 3"]  # h and p are the function's own
    assert cells_for_widgets(["k = 4", "p = 5", *cells, "explore(f, x=(1, 2))"]) == [
        "k = 4",
        cells[1],
        "explore(f, x=(1, 2))",
    ]


def changed_later(cells: list[str]) -> set[str]:
    """The names that a widget reads when it is moved, and that a cell below it makes anew or changes."""
    found: set[str] = set()
    reads: dict[str, set[str]] = {}  # by each function so far, when it is called
    modules = set().union(*map(imported, cells))
    for i, source in enumerate(cells):
        inside = symtable.symtable(source, "cell", "exec").get_children()
        reads |= {scope.get_name(): wanted_inside(scope) for scope in inside}
        if "explore(" in source:
            wanted, more = set(), names(source)[1].union(*map(wanted_inside, inside))
            while more:
                wanted |= more
                more = set().union(*(reads.get(name, set()) for name in more)) - wanted
            below = set().union(*(names(later)[0] for later in cells[i + 1 :]))
            found |= (wanted & below) - modules
    return found


def test_a_name_that_is_changed_below_a_widget_that_reads_it_is_found() -> None:
    cells = ["x = y = 1", "def f(n):\n    return x + n", "explore(lambda n: f(n), n=(1, 2))"]
    assert changed_later([*cells, "y = 2", "def g():\n    x = 2"]) == set()
    assert changed_later([*cells, "y = 2", "x = 2"]) == {"x"}


def notebooks_with_widgets() -> list[Path]:
    return [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if any("explore(" in c for c in code_cells(path))]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"after {seconds} s: {what}"
        time.sleep(0.05)
    return result


class Lab:
    """A JupyterLab server of its own, with a folder of notebooks that may be written to."""

    def __init__(self, folder: Path):
        self.root, self.token = folder / "root", secrets.token_hex(16)
        self.root.mkdir()
        if (assets := NOTEBOOKS.parent / "assets").exists():
            shutil.copytree(assets, self.root / "assets")
        for name, content in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = (folder / "lab.log").open("w", encoding="utf-8")
        flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.url.rsplit(':', 1)[1]}"]
        flags += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.root}"]
        flags += [f"--IdentityProvider.token={self.token}", "--expose-app-in-browser"]
        places = {f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("settings", "workspaces")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags],
            env=os.environ | places | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def answers(self) -> bool:
        assert self.process.poll() is None, f"JupyterLab ended: {Path(self.log.name).read_text(encoding='utf-8')}"
        try:
            with urllib.request.urlopen(f"{self.url}/api/status?token={self.token}", timeout=2):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()

    def add(self, name: str, cells: list[str]) -> str:
        """The path of a new notebook with these cells."""
        folder = self.root / "notebooks"
        folder.mkdir(exist_ok=True)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        last = f"print({DONE!r})"
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(c) for c in [*cells, last]], metadata=kernel
        )
        nbformat.write(notebook, folder / name)
        return f"notebooks/{name}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(
                "no Chromium: `apt-get install chromium`, or `playwright install chromium`, or set CHROMIUM=path"
            )
        browser = playwright.chromium.launch(executable_path=path, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        wait_until(server.answers, 120, "JupyterLab does not answer")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def page(browser: Any, lab: Lab) -> Iterator[Any]:
    """JupyterLab, loaded once: a notebook after the other is opened in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or "127.0.0.1"))
    page.goto(f"{lab.url}/lab?token={lab.token}&reset")
    page.wait_for_function("window.jupyterapp", timeout=60_000)
    page.evaluate("async () => { await jupyterapp.restored; }")
    yield page
    page.close()
    assert hosts == {"127.0.0.1"}, "a page must not need the network"


def start(page: Any, path: str) -> Any:
    """Open a notebook and have all its cells run. Returns it at once."""
    page.evaluate(OPEN, path)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    return page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")


def run_all(page: Any, path: str, seconds: float = 240) -> Any:
    """Open a notebook, run every cell, and return it once the last one has printed."""
    notebook = start(page, path)
    failed = notebook.locator('[data-mime-type="application/vnd.jupyter.error"]')
    done = notebook.locator(".jp-OutputArea-output pre", has_text=DONE)
    wait_until(lambda: done.count() or failed.count(), seconds, "the last cell has not printed")
    assert failed.count() == 0, failed.first.inner_text()
    return notebook


def shown(picture: Any) -> str:
    return hashlib.sha256(picture.evaluate(SHA).encode()).hexdigest()


def changes(picture: Any, before: str, seconds: float = 6) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if shown(picture) != before:
            return True
        time.sleep(0.05)
    return False


def moves(control: Any) -> Iterator[None]:
    """A step to the right and to the left on a slider, or the neighbouring entries of a menu; only what does move."""
    if control.evaluate("e => e.tagName") == "SELECT":
        now, entries = control.evaluate("e => [e.selectedIndex, e.length]")
        for other in {(now + 1) % entries, (now - 1) % entries} - {now}:
            control.select_option(index=other)
            yield
        return
    for key in ("ArrowRight", "ArrowLeft"):
        before = control.get_attribute("aria-valuenow")
        control.press(key)
        if control.get_attribute("aria-valuenow") != before:  # at its end a slider stays
            yield


def some_control_moves(widget: Any, picture: Any) -> bool:
    """Whether moving some slider, or taking another entry of a menu, changes the picture."""
    before = shown(picture)
    controls = widget.locator(".noUi-handle, select")
    return any(changes(picture, before) for i in range(controls.count()) for _ in moves(controls.nth(i)))


@pytest.mark.parametrize("path", notebooks_with_widgets(), ids=lambda path: path.stem)
def test_a_widget_still_moves_when_all_cells_have_run(path: Path) -> None:
    assert changed_later(code_cells(path)) == set(), "a cell below the widget uses these names again: rename them"


@pytest.mark.parametrize("path", notebooks_with_widgets(), ids=lambda path: path.stem)
def test_moving_a_control_changes_the_picture(path: Path, lab: Lab, page: Any) -> None:
    notebook = run_all(page, lab.add(path.name, cells_for_widgets(code_cells(path))))
    widgets = notebook.locator(".jp-OutputArea-output .widget-vbox", has=page.locator("img"))
    assert widgets.count() > 0
    for i in range(widgets.count()):
        picture = widgets.nth(i).locator("img")
        assert picture.get_attribute("title"), "a picture says what it shows"
        assert some_control_moves(widgets.nth(i), picture), f"no control of widget {i + 1} changes its picture"


EXPLORE = """
from minids import plot
from minids.widgets import LivePlot, explore

def draw(n=2):
    if n == 4:
        raise RuntimeError("four <is> too many")
    return plot.curves({"n": range(n)})

explore(draw, n=(1, 9))
"""
LIVE = """
import time
from minids import plot
from minids.widgets import LivePlot

with LivePlot(plot.curves, every=0.1) as live:
    for n in range(1, 41):
        live.update({"n": list(range(n))})
        time.sleep(0.1)
"""


CHAT = """
from minids.widgets import chat

def echo(messages):
    yield from (f"{len(messages)}: ", "<i>", messages[-1]["content"].upper())

chat(echo, "hello")
"""


def test_what_is_sent_is_answered_on_the_page(lab: Lab, page: Any) -> None:
    widget = run_all(page, lab.add("chat.ipynb", [CHAT])).locator(".widget-vbox")
    log, field = widget.get_by_role("log"), widget.locator("input[type=text]")
    widget.get_by_role("button", name="Send").click()
    sync_api.expect(log).to_contain_text("1: <i>HELLO", timeout=20_000)
    field.fill("and you")
    widget.get_by_role("button", name="Send").click()
    sync_api.expect(log).to_contain_text("3: <i>AND YOU", timeout=20_000)


def test_an_error_while_moving_is_shown_and_goes_away(lab: Lab, page: Any) -> None:
    widget = run_all(page, lab.add("explore.ipynb", [EXPLORE])).locator(".widget-vbox")
    handle, picture, alert = widget.locator(".noUi-handle"), widget.locator("img"), widget.get_by_role("alert")
    before = shown(picture)
    handle.press("ArrowRight")
    wait_until(lambda: shown(picture) != before, 20, "the picture has not changed")
    handle.press("ArrowRight")
    sync_api.expect(alert).to_contain_text("RuntimeError: four <is> too many", timeout=20_000)
    handle.press("ArrowRight")
    sync_api.expect(alert).to_have_count(0, timeout=20_000)


def test_a_live_plot_moves_while_its_cell_runs_and_ends_as_a_plain_picture(lab: Lab, page: Any) -> None:
    notebook = start(page, lab.add("live.ipynb", [LIVE]))
    moving = notebook.locator("img.jupyter-widgets")
    moving.wait_for(timeout=60_000)
    seen = {shown(moving)}
    wait_until(lambda: seen.add(shown(moving)) or len(seen) >= 3, 30, "the picture stands still")
    notebook.locator(".jp-OutputArea-output pre", has_text=DONE).wait_for(timeout=60_000)
    assert moving.count() == 0
    assert notebook.locator('.jp-RenderedImage img[src^="data:image/png"]').count() == 1
