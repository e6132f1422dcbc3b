"""The report of a built-in ablation as Chromium shows it: no request, no complaint, readable in every size and scheme.

The checks are those of axe-core that apply to a page without scripts: headings in order, names for images, tables and
scrolling regions, unique identifiers, and contrast (WCAG 2.2: 4.5, large text 3).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import emoji_recipe, finish

from mla_cli.engine.ablate import Plan, ablate

browser = pytest.importorskip("browser", reason="websocket-client is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.find() is None, reason="no Chromium: apt-get install chromium"),
]
PHONE, DESK = 390, 1280
# every element that holds text of its own: what it says, its size, and contrast against the nearest opaque ground
CONTRASTS = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return null;
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), below = ground(node);
    const [a, b] = [light(parse(style.color)), below ? light(below) : NaN].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    found.push({ says: node.textContent.trim().slice(0, 40), ratio: (a + 0.05) / (b + 0.05),
                 large: size >= 24 || (bold && size >= 18.66) });
  }
  return found;
})()"""
STRUCTURE = """({
  language: document.documentElement.lang,
  title: document.title,
  headings: [...document.querySelectorAll("h1,h2,h3,h4,h5,h6")].map((h) => Number(h.tagName[1])),
  empty: [...document.querySelectorAll("h1,h2,h3,h4,a,caption,figcaption,summary")]
    .filter((n) => !n.textContent.trim()).length,
  twice: (() => { const ids = [...document.querySelectorAll("[id]")].map((n) => n.id);
                  return ids.filter((id, i) => ids.indexOf(id) !== i); })(),
  dangling: [...document.querySelectorAll("a[href^='#']")].map((a) => a.getAttribute("href").slice(1))
    .concat([...document.querySelectorAll("[aria-labelledby]")].map((n) => n.getAttribute("aria-labelledby")))
    .filter((id) => !document.getElementById(id)),
  images: [...document.images].map((i) => ({ alt: i.alt, whole: i.complete && i.naturalWidth > 100 })),
  tables: [...document.querySelectorAll("table")].map((t) => ({
    caption: t.caption ? t.caption.textContent : "",
    heads: [...t.querySelectorAll("thead th")].every((h) => h.scope === "col" && h.textContent),
    rows: [...t.querySelectorAll("tbody tr")].every((r) => r.firstElementChild.scope === "row") })),
  unnamed: (() => { const names = [...document.querySelectorAll("section,[role=region]")].map((n) =>
                      document.getElementById(n.getAttribute("aria-labelledby")).textContent);
                    return names.filter((name, i) => !name || names.indexOf(name) !== i); })(),
  scripts: document.scripts.length,
  landmarks: ["header", "nav", "main", "footer"].map((name) => document.querySelectorAll(name).length),
})"""
SCROLLING = """[...document.querySelectorAll("body *")].filter((n) => {
  const way = getComputedStyle(n).overflowX;
  return n.scrollWidth > n.clientWidth + 1 && (way === "auto" || way === "scroll");
}).map((n) => ({ name: n.getAttribute("aria-label") || n.getAttribute("aria-labelledby"), focus: n.tabIndex }))"""


@pytest.fixture
def report(emoji_store, data_dir: Path, tmp_path: Path, in_process: list[str]) -> Path:
    """The page of the default grid on the built-in emoji, two seeds of one epoch."""
    from mla_cli.report.page import write_report

    found = finish(ablate(Plan(emoji_recipe(), [], [0, 1], "0,0.3,0.5", [0, 1, 2]), data_dir, tmp_path / "runs"))
    written: Path = finish(write_report(str(found.path), tmp_path / "runs", tmp_path / "out" / "emoji.html", False))
    return written


@pytest.fixture
def page(tmp_path: Path) -> Iterator["browser.Page"]:
    with browser.tab(tmp_path / "profile") as opened:
        yield opened


def test_the_report_of_an_ablation_in_a_browser(report: Path, page) -> None:
    alone = report.rename(report.parent.parent / "moved.html")  # without its figures' folder
    page.resize(DESK)
    page.scheme("light")
    page.open(alone)
    assert page.requests() == [alone.as_uri()]
    assert page.complaints() == []

    found = page.script(STRUCTURE)
    assert found["language"] == "en" and "ablate-tiny-" in found["title"]
    assert found["headings"][0] == 1 and found["headings"].count(1) == 1
    steps = zip(found["headings"], found["headings"][1:], strict=False)
    assert all(after <= before + 1 for before, after in steps), "no level is left out"
    assert (found["empty"], found["twice"], found["dangling"], found["scripts"]) == (0, [], [], 0)
    assert (found["landmarks"], found["unnamed"]) == ([1, 1, 1, 1], [])
    assert len(found["images"]) > 10 and all(i["whole"] and len(i["alt"]) > 30 for i in found["images"])
    assert len(found["tables"]) > 8 and all(t["caption"] and t["heads"] and t["rows"] for t in found["tables"])

    for width in (PHONE, DESK):
        page.resize(width)
        assert page.script("document.documentElement.scrollWidth") <= width, "no horizontal scrolling"
        assert all(part["name"] and part["focus"] == 0 for part in page.script(SCROLLING))
    tables = {part["name"] for part in page.script(SCROLLING)}
    assert not tables & {f"run-{name}-caption" for name in ("missing-rates", "weights-means", "confusion-pairs")}
    assert page.script("[...document.images].every((i) => i.getBoundingClientRect().width > 200)")

    grounds = {}
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        texts = page.script(CONTRASTS)
        assert len(texts) > 300
        assert [t for t in texts if not t["ratio"] >= (3 if t["large"] else 4.5)] == []
        grounds[scheme] = corner_of_a_figure(page)
    assert min(grounds["light"]) > 240 and max(grounds["dark"]) < 60, "figures follow the scheme"
    page.scheme("dark", media="print")
    assert page.script("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [t for t in page.script(CONTRASTS) if not t["ratio"] >= 4.5] == []
    assert page.printed().startswith(b"%PDF")
    assert page.requests() == [alone.as_uri()]
    assert page.complaints() == []


def corner_of_a_figure(page) -> tuple[int, int, int]:
    """Red, green and blue where the first figure has nothing but its ground."""
    page.script("document.images[0].scrollIntoView({block: 'center', behavior: 'instant'})")
    page.script("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y = page.script(
        "(({x, y}) => [Math.round(x) + 3, Math.round(y) + 3])(document.images[0].getBoundingClientRect())"
    )
    pixel: tuple[int, int, int] = page.picture().getpixel((x, y))
    return pixel
