"use strict";
const root = document.documentElement, tip = document.getElementById("tip");
document.getElementById("scheme").addEventListener("click", () => {
  const dark = root.dataset.scheme ? root.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.scheme = dark ? "light" : "dark";
});
const show = (mark, x, y) => {
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 8)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + "px";
};
const hide = () => { tip.hidden = true; };
document.addEventListener("pointermove", event => {
  const mark = event.target.closest("[data-tip]");
  mark ? show(mark, event.clientX, event.clientY) : hide();
});
document.addEventListener("focusin", event => {
  const mark = event.target.closest("[data-tip]");
  if (!mark) return hide();
  const box = mark.getBoundingClientRect();
  show(mark, box.left, box.bottom - 12);
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") hide();
  const map = event.target.closest("svg.map, svg.heat");
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: +map?.dataset.columns, ArrowUp: -map?.dataset.columns }[event.key];
  if (!map || (!step && !["Home", "End"].includes(event.key))) return;
  event.preventDefault();
  const marks = [...map.querySelectorAll("[data-tip]")], before = +(map.dataset.at ?? -1);
  const next = before < 0 ? 0 : (before + step + marks.length) % marks.length;
  const at = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : next;
  marks[before]?.classList.remove("at");
  marks[at].classList.add("at");
  map.dataset.at = at;
  const box = marks[at].getBoundingClientRect();
  show(marks[at], box.left, box.bottom);
});
