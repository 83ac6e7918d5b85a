// Returns what is wrong with a page: contrast, ids, labels, headings, small controls, overflow.
() => {
  const found = [];
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (color, under) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = `rgb(${under.join(" ")})`;
    paint.fillRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const ground = element => {
    const above = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
    return over(getComputedStyle(element).backgroundColor, above);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || element.closest("svg, script, style, noscript, option") || !element.checkVisibility()) continue;
    if (element.closest("[aria-disabled=true]")) continue;
    const back = ground(element), front = over(getComputedStyle(element).color, back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  ids.filter((id, at) => ids.indexOf(id) !== at).forEach(id => found.push(`id twice: ${id}`));
  for (const name of ["aria-controls", "aria-labelledby", "for"])
    document.querySelectorAll(`[${name}]`).forEach(element => {
      if (!document.getElementById(element.getAttribute(name))) found.push(`${name} names nothing`);
    });
  document.querySelectorAll("[role=img] [tabindex], [role=img] button").forEach(element =>
    found.push(`inside an image, where no reader finds it: ${element.outerHTML.slice(0, 60)}`));
  let level = 0;
  document.querySelectorAll("h1, h2, h3, h4").forEach(heading => {
    if (!heading.checkVisibility()) return;
    if (+heading.tagName[1] > level + 1 && level) found.push(`heading ${heading.textContent} skips a level`);
    level = +heading.tagName[1];
  });
  document.querySelectorAll("button, select, input, textarea, summary").forEach(element => {
    const box = element.getBoundingClientRect();
    if (element.checkVisibility() && Math.min(box.width, box.height) < 18) found.push(`small: ${element.outerHTML.slice(0, 60)}`);
  });
  if (document.querySelectorAll("main").length !== 1 || !document.documentElement.lang) found.push("no main, or no lang");
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) found.push(`scrolls sideways by ${wide}`);
  return found;
}
