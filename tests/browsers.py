"""The browser that tests look at pages with, where there is one."""

import shutil

NO_BROWSER = "no Chromium"
SERIOUS = ("serious", "critical")
"""Faults of accessibility that a page may not have, as axe-core calls them."""
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("figure, .pairs > div, h2, h3, h4, table, .plot, .slider")]
    .map((one) => [one, one.getBoundingClientRect()]).filter(([one, box]) => one.checkVisibility() && box.width && box.height);
  const found = [];
  for (const [a, p] of boxes) for (const [b, q] of boxes) {
    if (a === b || a.contains(b) || b.contains(a)) continue;
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1) found.push(a.outerHTML.slice(0, 80) + " | " + b.outerHTML.slice(0, 80));
  }
  const cut = [...document.querySelectorAll("figcaption span, td, th, p, h4")]
    .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline"
      && !one.closest(".scroll"));
  return [...found, ...cut.map((one) => "cut: " + one.outerHTML.slice(0, 80))];
}"""
"""What overlaps on a page, and what text is cut."""
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def listen(page) -> tuple[list[str], list[str]]:
    """Return what a page will have said, its errors included, and the addresses it will have asked for."""
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    return said, asked
