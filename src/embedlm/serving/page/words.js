/* What a model sees and says of one text: its prompt token by token, and the terms of a sparse head. */
import { html } from "./htm-preact.js";
import { outputName } from "./settings.js";
import { Behind } from "./views.js";

const SEGMENTS = {
  text: "the text", repeat: "the text again", literal: "the recipe's words", instruction: "the instruction",
  demonstrations: "demonstrations", special: "special tokens", eos: "end of sequence", mask: "mask tokens",
};

/** Cut a text at places, [start, stop, weight] in characters; between them the weight is 0. */
export function parts(text, marks) {
  const characters = [...text], found = [];
  let at = 0;
  for (const [start, stop, weight] of marks) {
    if (start < at) continue;
    if (start > at) found.push([characters.slice(at, start).join(""), 0]);
    found.push([characters.slice(start, stop).join(""), weight]);
    at = stop;
  }
  if (at < characters.length) found.push([characters.slice(at).join(""), 0]);
  return found;
}

export function Words({ text, terms, words, mayAsk, others }) {
  if (!terms) return html`<p>${others.length || mayAsk ? "These outputs" : "The outputs of this model"} hold no weights of terms.
    ${mayAsk ? " Tick sparse among the outputs." : ""}${others.length ? ` Recipes that give them here: ${others.join(", ")}.` : ""}</p>`;
  const most = Math.max(...terms.map(one => one.weight), 1e-9), inText = text.toLowerCase();
  const more = terms.filter(one => !inText.includes(one.term.trim().toLowerCase()));
  return html`<p class="words" dir="auto">${parts(text, words).map(([piece, weight]) => weight
      ? html`<mark style=${{ "--share": (weight / most).toFixed(3) }} data-tip=${`${piece}: ${weight.toFixed(3)}`}>${piece}</mark>` : piece)}</p>
    ${!terms.length && html`<p>No term has a weight.</p>`}
    ${more.length > 0 && html`<p>Terms that are not in the text:</p><ul class="chips">${more.slice(0, 16).map(one => html`<li>
      <mark style=${{ "--share": (one.weight / most).toFixed(3) }}>${one.term.trim() || "space"}</mark> <small>${one.weight.toFixed(2)}</small></li>`)}</ul>`}
    <${Behind} label="Terms" head=${["term", "weight", "id"]}
      rows=${() => terms.map(one => [one.term.trim() || "space", one.weight.toFixed(3), one.id])} />`;
}

const visible = piece => piece.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

function Tokens({ prompt, heads }) {
  const shares = prompt.shares[heads[0]], most = Math.max(...shares, 1e-9);
  return html`<p class="tokens">${prompt.pieces.map((piece, i) => html`<span class=${`token s-${prompt.segments[i]}${shares[i] ? " read" : ""}`}
    style=${{ "--share": (shares[i] / most).toFixed(3) }}
    data-tip=${`${visible(piece)}: ${SEGMENTS[prompt.segments[i]]}${shares[i] ? `, ${(100 * shares[i]).toFixed(1)} % of ${heads.map(outputName).join(" and ")}` : ", not read"}`}>${visible(piece)}</span>`)}</p>`;
}

function told(pooling) {
  const kinds = [pooling.kind].flat().join(" and "), over = [pooling.over].flat().join(", ");
  const layer = [pooling.layer].flat().join(", ");
  const sinks = [true, "norm"].includes(pooling.exclude_sink) ? " Attention sinks are left out when it runs." : "";
  return `Pooling: ${kinds} over ${over === "all" ? "all tokens" : over}, layer ${layer}.${sinks}`;
}

export function Prompt({ prompts, recipe }) {
  const heads = Object.keys(prompts[0].shares), several = prompts.length > 1;
  const alike = Object.values(Object.groupBy(heads, head => JSON.stringify(prompts.map(prompt => prompt.shares[head]))));
  const segments = [...new Set(prompts.flatMap(prompt => prompt.segments))];
  const tokens = prompts.reduce((sum, prompt) => sum + prompt.ids.length, 0);
  return html`<p>${told(recipe.pooling)} ${tokens} tokens${several ? ` in ${prompts.length} prompts, whose outputs are averaged` : ""}${prompts.some(p => p.truncated) ? ", shortened" : ""}.</p>
    <ul class="legend">${segments.map(name => html`<li><span class=${`token s-${name}`} aria-hidden="true">a</span> ${SEGMENTS[name]}</li>`)}
      <li><span class="token read" aria-hidden="true" style=${{ "--share": 1 }}>a</span> pooled; the stronger the line, the more it counts</li></ul>
    ${prompts.map((prompt, number) => html`<div class="prompt" key=${number}>
      ${several && html`<h3>Prompt ${number + 1}</h3>`}
      ${alike.map(same => html`${heads.length > 1 && html`<p class="hint">Read by ${same.map(outputName).join(" and ")}:</p>`}
        <${Tokens} prompt=${prompt} heads=${same} />`)}
      <${Behind} label=${several ? `Tokens of prompt ${number + 1}` : "Tokens"} head=${["", "token", "id", "segment", ...heads.map(head => `share of ${outputName(head)}`)]}
        rows=${() => prompt.ids.map((id, i) => [i + 1, visible(prompt.pieces[i]), id, SEGMENTS[prompt.segments[i]], ...heads.map(head => prompt.shares[head][i] ? `${(100 * prompt.shares[head][i]).toFixed(1)} %` : "")])} />
    </div>`)}`;
}
