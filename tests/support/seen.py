"""Whether a person sees an element of a page: its place, what covers it, its colours."""

from __future__ import annotations

import time
from typing import Any

# A browser under load scrolls late; what is never seen fails after so long.
PATIENCE_SECONDS = 60

_WHY_NOT = """(box) => {
  const at = box.getBoundingClientRect();
  if (!at.width || !at.height) return "it takes no room";
  // Long texts need not fit the screen, but where they begin is to be seen.
  const bottom = Math.min(at.bottom, at.top + 60);
  if (at.top < 0 || bottom > innerHeight || at.left < 0 || at.right > innerWidth + 1)
    return `it is at ${at.left},${at.top} to ${at.right},${at.bottom}`;
  const there = document.elementFromPoint(at.left + at.width / 2, (at.top + bottom) / 2);
  if (!box.contains(there)) return `${there?.outerHTML.slice(0, 90)} lies over it`;
  if (parseFloat(getComputedStyle(box).fontSize) < 11) return "its letters are too small";

  const rgba = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return [found.slice(0, 3), found[3] ?? 1];
  };
  const over = (colour, alpha, base) => base.map((b, i) => alpha * colour[i] + (1 - alpha) * b);
  const dark = document.body.classList.contains("dark");
  let opacity = 1, ground = dark ? [0, 0, 0] : [255, 255, 255];
  const line = [];
  for (let each = box; each; each = each.parentElement) line.unshift(each);
  for (const each of line) {
    const style = getComputedStyle(each);
    opacity *= parseFloat(style.opacity);
    ground = over(...rgba(style.backgroundColor), ground);
  }
  const [ink, alpha] = rgba(getComputedStyle(box).color);
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255).map(
      (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(over(ink, alpha * opacity, ground)), light(ground)];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  // WCAG 2.2, 1.4.3.
  return contrast < 4.5 ? `its contrast is ${contrast.toFixed(2)}` : "";
}"""


def why_unseen(element: Any, text: str) -> str:
    """Why nobody sees a part of ``element``, a Playwright locator, that says ``text``; "" if they
    do. Waits for what comes late."""
    element = element.filter(has_text=text).first
    deadline = time.monotonic() + PATIENCE_SECONDS
    why = f"nothing says {text!r}"
    while time.monotonic() < deadline:
        if element.count():
            why = element.evaluate(_WHY_NOT)
            if not why:
                return ""
        time.sleep(0.05)
    return f"{text!r}: {why}"
