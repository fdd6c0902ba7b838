"""The site that Sphinx has built, if it is there: its links, and how it looks in a browser."""

import contextlib
import functools
import html.parser
import http.server
import json
import pathlib
import queue
import shutil
import subprocess
import threading
import urllib.parse

import pytest

INSPECTOR = pathlib.Path(__file__).parents[1] / "data/site_inspector.html"  # looks at all pages
SITE = pathlib.Path(__file__).parents[2] / "docs/_build/html"
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if not {"_modules", "_static"} & set(path.relative_to(SITE).parts)
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    not PAGES, reason="the site is not built: sphinx-build -W -b html docs docs/_build/html"
)


class Page(html.parser.HTMLParser):
    """The anchors of a page, and what it links to and shows."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.targets = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.targets |= {found[name] for name in ("href", "src", "data") if found.get(name)}


def test_every_link_within_the_site_leads_somewhere_and_nothing_comes_from_elsewhere():
    pages = {path: Page(path.read_text()) for path in SITE.rglob("*.html")}
    broken, loaded = [], []
    for path, page in pages.items():
        for target in page.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                loaded += [target] if parts.path.endswith((".js", ".css", ".png", ".svg")) else []
                continue
            to = path.parent / urllib.parse.unquote(parts.path) if parts.path else path
            anchors = pages[to.resolve()].anchors if parts.fragment and to.suffix == ".html" else None
            if not to.exists() or (
                anchors is not None and urllib.parse.unquote(parts.fragment) not in anchors
            ):
                broken.append(f"{path.relative_to(SITE)}: {target}")
    assert broken == []
    assert loaded == []


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser has seen of all pages."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    answers = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/inspector":
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(INSPECTOR.read_text().replace("PAGES", json.dumps(PAGES)).encode())

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/inspector"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1700,1000"]
    options += [f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]
    browser = subprocess.Popen(
        [BROWSER, *options, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield answers.get(timeout=300)
    finally:
        browser.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            browser.wait(timeout=10)
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_search_finds_early_stopping_and_leads_to_it(seen):
    assert "error" not in seen, seen.get("error")
    assert seen["search"]["links"][0].endswith("#fitopt.callbacks.EarlyStopping")
    assert "patience" in seen["search"]["text"]


def found(seen, what):
    """Of each page where there is some of it."""
    return {page: one[what] for page, one in seen["pages"].items() if one[what]}


def test_code_is_copied_without_its_prompts(seen):
    assert seen["copied"].startswith("class StopWhenSmall(Callback):\n    limit: float\n")
    assert found(seen, "without_button") == {}


def test_every_picture_loads(seen):
    assert found(seen, "broken") == {}


def test_nothing_overflows_on_a_narrow_screen(seen):
    assert found(seen, "overflow") == {}
    assert found(seen, "wide") == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_background(seen, theme):
    contrasts = {page: one["contrast"][theme] for page, one in seen["pages"].items()}
    assert {page: ratio for page, ratio in contrasts.items() if ratio < 4.5} == {}  # WCAG's AA
