/* How alike texts are: the heat map, the nearest of one, and a plane. A table stands behind each. */
import { html, useState } from "./htm-preact.js";

const DRAWN = 48;
const NAMED = 60;
const KEYED = 20;

export const short = (text, longest = 80) => {
  const line = [...text.replace(/\s+/g, " ").trim()];
  return line.length > longest ? `${line.slice(0, longest - 1).join("")}…` : line.join("");
};

/** A score as a reader needs it: three decimals, fewer where it is large, and thousands with a letter. */
export function number(value, decimals = 3) {
  if (Math.abs(value) >= 10000) return `${(value / 1000).toFixed(decimals - 2)}k`;
  return value.toFixed(Math.max(0, decimals - Math.max(0, Math.floor(Math.log10(Math.abs(value) || 1)))));
}

/** A table that is built when it is opened. */
export function Behind({ label, head, rows, open = false }) {
  const [shown, show] = useState(open);
  return html`<details open=${open} onToggle=${event => show(event.target.open)}><summary>Table</summary>
    ${shown && html`<div class="scroll" tabindex="0" role="region" aria-label=${`${label}, as a table`}>
      <table><thead><tr>${head.map(name => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${rows().map(row => html`<tr>${row.map((cell, at) =>
        at ? html`<td dir="auto">${cell}</td>` : html`<th scope="row">${cell}</th>`)}</tr>`)}</tbody></table></div>`}
  </details>`;
}

function spread(scores) {
  const apart = scores.flatMap((row, i) => row.filter((_, j) => i !== j));
  const low = Math.min(...apart), high = Math.max(...apart);
  return apart.length ? { low, high, at: value => Math.min(1, Math.max(0, (value - low) / (high - low || 1))) } : null;
}

export function Heat({ texts, scores, head }) {
  const count = Math.min(texts.length, DRAWN), size = count > 12 ? 24 : 40, edge = 26, side = size * count + edge;
  const scale = spread(scores) ?? { low: scores[0][0], high: scores[0][0], at: () => 1 };
  const cells = [];
  for (let i = 0; i < count; i++) for (let j = 0; j < count; j++) {
    const x = edge + size * j, y = edge + size * i, value = scores[i][j], share = scale.at(value);
    const tip = `${i + 1} and ${j + 1}: ${number(value)} | ${short(texts[i], NAMED)} | ${short(texts[j], NAMED)}`;
    cells.push(html`<rect class="cell" x=${x} y=${y} width=${size - 1} height=${size - 1} fill-opacity=${share.toFixed(3)} data-tip=${tip} />`);
    if (count <= 12) cells.push(html`<text class=${share > 0.75 ? "on" : share > 0.58 ? "mid" : "off"} x=${x + size / 2} y=${y + size / 2 + 4} text-anchor="middle">${number(value, 2)}</text>`);
  }
  const numbers = Array.from({ length: count }, (_, i) => html`
    <text x="20" y=${edge + size * i + size / 2 + 4} text-anchor="end">${i + 1}</text>
    <text x=${edge + size * i + size / 2} y="19" text-anchor="middle">${i + 1}</text>`);
  const most = texts.length > DRAWN ? ` The first ${DRAWN} of ${texts.length} texts are drawn; the table has all.` : "";
  return html`<figure>
    <svg class="heat" viewBox="0 0 ${side} ${side}" tabindex="0" role="img" data-columns=${count}
      aria-label=${`Scores of ${count} texts with each other; arrow keys read them, and a table follows`}>${numbers}${cells}</svg>
    <figcaption>The stronger the colour, the more alike: ${number(scale.low, 2)} to ${number(scale.high, 2)} (${head}).${most} Point at a cell, or use the arrow keys.</figcaption>
    <${Behind} label="Scores" head=${["", "text", ...texts.map((_, i) => i + 1)]}
      rows=${() => texts.map((text, i) => [i + 1, short(text), ...scores[i].map(value => number(value))])} />
  </figure>`;
}

/** The texts behind the numbers of a drawing. */
export const Key = ({ texts }) => texts.length > KEYED ? null
  : html`<ol class="key">${texts.map(text => html`<li><span dir="auto">${short(text, 120)}</span></li>`)}</ol>`;

/** The other texts by their scores with one, best first. */
export const nearest = (scores, chosen) =>
  scores[chosen].map((score, index) => ({ score, index })).filter(one => one.index !== chosen).sort((a, b) => b.score - a.score);

export function Nearest({ texts, scores, chosen, choose }) {
  const scale = spread(scores);
  const rows = nearest(scores, chosen);
  if (!rows.length) return html`<p>There is one text only; give more.</p>`;
  return html`<div class="scroll plain" tabindex="0" role="region" aria-label="Nearest texts">
    <table class="nearest"><caption>Nearest to “${short(texts[chosen], NAMED)}”</caption>
    <thead><tr><th scope="col">score</th><th scope="col">text</th></tr></thead>
    <tbody>${rows.map(({ score, index }) => html`<tr key=${index}>
      <td class="score"><i class="bar" aria-hidden="true" style=${{ width: `${4 + 96 * scale.at(score)}%` }}></i><span>${number(score)}</span></td>
      <td><button type="button" class="text" dir="auto" title="Show those nearest to this text" onClick=${() => choose(index)}>${texts[index]}</button></td></tr>`)}
    </tbody></table></div>`;
}

export function Plane({ texts, scores, places, shown, chosen, head }) {
  const size = 480, pad = 30, named = texts.length <= NAMED, xs = places.map(p => p[0]), ys = places.map(p => p[1]);
  const low = [Math.min(...xs), Math.min(...ys)];
  const range = Math.max(Math.max(...xs) - low[0], Math.max(...ys) - low[1]) || 1;
  const middle = [(Math.max(...xs) + low[0]) / 2, (Math.max(...ys) + low[1]) / 2];
  const at = places.map(p => [0, 1].map(k => size / 2 + (k ? -1 : 1) * (p[k] - middle[k]) / range * (size - 2 * pad)));
  const lines = texts.length > 1 ? texts.map((_, i) => {
    const to = nearest(scores, i)[0].index;
    return html`<line class="near" x1=${at[i][0].toFixed(1)} y1=${at[i][1].toFixed(1)} x2=${at[to][0].toFixed(1)} y2=${at[to][1].toFixed(1)} />`;
  }) : [];
  const marks = texts.map((text, i) => html`<circle class=${`mark ${i === chosen ? "c1" : "c0"}`} cx=${at[i][0].toFixed(1)} cy=${at[i][1].toFixed(1)}
    r=${named ? 11 : 5} data-tip=${`${i + 1}: ${short(text, 160)}`} />`);
  const names = named ? texts.map((_, i) => html`<text class="name" x=${at[i][0].toFixed(1)} y=${(at[i][1] + 4).toFixed(1)} text-anchor="middle">${i + 1}</text>`) : [];
  return html`<figure>
    <svg class="map" viewBox="0 0 ${size} ${size}" tabindex="0" role="img"
      aria-label=${`Map of ${texts.length} texts; arrow keys read them, and a table follows`}>${lines}${marks.map((mark, i) => [mark, names[i]])}</svg>
    <figcaption>Near points are alike; a line leads from each text to its nearest. The plane shows ${Math.round(shown * 100)} % of the
      differences (kernel PCA of the ${head} scores). Point at a mark, or use the arrow keys.</figcaption>
    <${Behind} label="Map" head=${["", "text", "x", "y"]}
      rows=${() => texts.map((text, i) => [i + 1, short(text), ...places[i].map(value => number(value))])} />
  </figure>`;
}
