// Draw gives way to Stop and comes back: the keyboard's focus goes along, not to the page.
(() => {
  const OTHER = { "draw": "stop", "stop": "draw", "study": "study-stop", "study-stop": "study" };
  let held = ""; // the button of a pair that has the focus, also once it is gone

  const note = (target) => {
    const id = target.closest?.("button")?.id;
    held = id in OTHER ? id : "";
  };
  // A press elsewhere lets go, even where nothing there takes the focus. Safari focuses no button
  // that is clicked, so the click counts too.
  for (const kind of ["focusin", "pointerdown", "click"]) {
    document.addEventListener(kind, (event) => note(event.target), true);
  }
  new MutationObserver(() => {
    if (!held || document.activeElement !== document.body) return;
    const next = [held, OTHER[held]].map((id) => document.getElementById(id));
    next.find((button) => button?.offsetParent)?.focus({ preventScroll: true });
  }).observe(document, { subtree: true, childList: true, attributes: true });
})();
