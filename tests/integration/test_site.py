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
            if not to.exists() or (anchors is not None and urllib.parse.unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(SITE)}: {target}")
    assert broken == []
    assert loaded == []


# A page that looks at all others in frames, and sends what it has seen.
INSPECTOR = """<!doctype html><body><script>
const seen = {};
const frame = (width) => {
  const made = document.createElement("iframe");
  made.style.cssText = `width:${width}px;height:800px;border:0`;
  document.body.append(made);
  return made;
};
const load = (frame, url) => new Promise((done) => {
  frame.onload = () => setTimeout(() => done(frame.contentDocument), 50);
  frame.src = url;
});
const until = async (condition) => {
  for (let i = 0; i < 200 && !condition(); i++) await new Promise((done) => setTimeout(done, 50));
};
const luminance = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const background = (element) => {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const contrast = (element) => {
  const pair = [getComputedStyle(element).color, background(element)].map(luminance).sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
};
const look = async (page, narrow) => {
  const doc = await load(narrow, page);
  const root = doc.documentElement, report = {};
  report.overflow = root.scrollWidth - root.clientWidth;
  const article = doc.querySelector("article");
  report.wide = article ? [...article.querySelectorAll("p, li, img, pre, h1, h2, h3, dt, dd")]
    .filter((x) => !x.closest(".table-wrapper, pre, .highlight, .output") &&
      x.getBoundingClientRect().right > root.clientWidth + 1).map((x) => x.outerHTML.slice(0, 80)) : [];
  report.broken = [...doc.images].filter((x) => !x.complete || !x.naturalWidth).map((x) => x.src);
  const blocks = [...doc.querySelectorAll("article div.highlight > pre")];
  report.blocks = blocks.length;
  report.without_button = blocks.filter((x) => !x.parentElement.querySelector("button.copybtn")).length;
  report.contrast = {};
  for (const theme of ["light", "dark"]) {
    doc.body.dataset.theme = theme;
    const texts = [...doc.querySelectorAll("article p, article li, article td, article pre, article a")];
    report.contrast[theme] = Math.min(21, ...texts.map(contrast));
  }
  return report;
};
const copied = async (wide) => {
  const doc = await load(wide, "api/callbacks.html");
  let text = null;
  doc.execCommand = () => { text = doc.activeElement.value; return true; };
  doc.querySelector("button.copybtn").click();
  await until(() => text !== null);
  return text;
};
const search = async (wide) => {
  const doc = await load(wide, "search.html?q=EarlyStopping");
  await until(() => doc.querySelector("#search-results li a"));
  const links = [...doc.querySelectorAll("#search-results li a")].map((x) => x.href);
  const target = links.find((x) => x.endsWith("#fitopt.callbacks.EarlyStopping"));
  if (!target) return {links};
  const page = await load(wide, target);
  return {links, text: page.getElementById("fitopt.callbacks.EarlyStopping").textContent};
};
(async () => {
  try {
    const narrow = frame(390), wide = frame(1200);
    seen.pages = {};
    for (const page of PAGES) seen.pages[page] = await look(page, narrow);
    seen.copied = await copied(wide);
    seen.search = await search(wide);
  } catch (error) { seen.error = `${error} ${error.stack}`; }
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""


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
            self.wfile.write(INSPECTOR.replace("PAGES", json.dumps(PAGES)).encode())

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
    browser = subprocess.Popen([BROWSER, *options, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    assert "patience" in seen["search"].get("text", ""), seen["search"]


def test_code_is_copied_without_its_prompts(seen):
    assert seen["copied"].startswith("class StopWhenSmall(Callback):\n    limit: float\n")
    assert {page: one["without_button"] for page, one in seen["pages"].items() if one["without_button"]} == {}


def test_every_picture_loads(seen):
    assert {page: one["broken"] for page, one in seen["pages"].items() if one["broken"]} == {}


def test_nothing_overflows_on_a_narrow_screen(seen):
    assert {page: one["overflow"] for page, one in seen["pages"].items() if one["overflow"] > 0} == {}
    assert {page: one["wide"] for page, one in seen["pages"].items() if one["wide"]} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_background(seen, theme):
    pale = {page: one["contrast"][theme] for page, one in seen["pages"].items()}
    assert {page: contrast for page, contrast in pale.items() if contrast < 4.5} == {}  # WCAG's AA
