// Shows the title of a span as a tooltip on hover, tap or arrow keys. Without this script the browser shows the title.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
const hints = new WeakMap();
let current = null; // the span whose tooltip is shown
let pointed = 0; // horizontal position of the pointer

function hide() {
  if (current) current.classList.remove("current");
  current = null;
  tip.hidden = true;
}

function place() {
  if (!current) return;
  const lines = [...current.getClientRects()];
  const box = lines.find((line) => pointed >= line.left && pointed <= line.right) || lines[0];
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(12, Math.min(box.left, innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8)}px`;
}

function show(span, x) {
  if (span === current) return;
  hide();
  current = span;
  pointed = x;
  span.classList.add("current");
  tip.textContent = hints.get(span);
  tip.hidden = false;
  place();
}

document.querySelectorAll(".written").forEach((response) => {
  const spans = [...response.querySelectorAll(".span")];
  spans.forEach((span) => {
    hints.set(span, span.title);
    span.removeAttribute("title");
  });
  for (const kind of ["pointerover", "click"]) {
    response.addEventListener(kind, (event) => {
      const span = event.target.closest(".span");
      if (span) show(span, event.clientX);
      else hide();
    });
  }
  response.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide();
  });
  response.addEventListener("blur", hide);
  response.addEventListener("keydown", (event) => {
    const at = spans.indexOf(current);
    const to = { ArrowRight: at + 1, ArrowLeft: Math.max(at - 1, 0), Home: 0, End: spans.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || !spans.length) return;
    event.preventDefault();
    const span = spans[Math.min(to, spans.length - 1)];
    span.scrollIntoView({ block: "nearest", behavior: "instant" });
    show(span, -1);
  });
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".written")) hide();
});
addEventListener("scroll", place, { passive: true, capture: true });
