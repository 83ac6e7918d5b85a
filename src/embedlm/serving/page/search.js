/* Search in a mounted index. */
import { html, useState } from "./htm-preact.js";
import { ask } from "./server.js";
import { Choice, Field } from "./settings.js";
import { parts } from "./words.js";

const Hit = ({ hit }) => {
  const place = `${hit.file}${hit.line ? `:${hit.line}` : ""}`;
  const seen = hit.image ? { image: hit.image, ...hit.metadata } : hit.metadata;
  const facts = Object.entries(seen).filter(([name, value]) => name !== "file" || value !== hit.file).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return html`<li class="hit"><p class="where"><b>${hit.score.toFixed(4)}</b> <span>${place}</span> ${String(hit.id) !== place && html`<span>id ${String(hit.id)}</span>`}</p>
    <p class="passage" dir="auto">${parts(hit.text, [[...hit.sentence, 1]]).map(([piece, weight]) => weight ? html`<mark class="sentence">${piece}</mark>` : piece)}</p>
    ${facts.length > 0 && html`<p class="hint">${facts.join(" · ")}</p>`}</li>`;
};

export function Search({ served, told, failed, said }) {
  const [name, setName] = useState(served.indexes[0]?.name ?? "");
  const index = served.indexes.find(one => one.name === name);
  const [mode, setMode] = useState("hybrid");
  const [count, setCount] = useState(10);
  const [query, setQuery] = useState("");
  const [found, setFound] = useState(null);
  if (!index) return html`<section><p>No index is mounted. Make one and start the server with it:</p>
    <pre tabindex="0"><code>embedlm index FILES -o notes.index${"\n"}embedlm serve --index notes.index</code></pre></section>`;
  const choose = chosen => {
    const modes = served.indexes.find(one => one.name === chosen).modes;
    setName(chosen);
    if (!modes.includes(mode)) setMode(modes[0]);
  };
  const search = async event => {
    event.preventDefault();
    const begun = performance.now();
    try {
      const { hits } = await ask("v1/search", { query, index: name, mode, top_k: +count });
      setFound(hits);
      told(`${hits.length} hits in ${Math.round(performance.now() - begun)} ms.`);
    } catch (error) {
      setFound(null);
      failed(error);
    }
  };
  return html`<section><h2>Search</h2>
    <form class="search" role="search" onSubmit=${search}>
      <${Field} label="Query" wide draw=${id => html`<input id=${id} type="search" required value=${query}
        onInput=${event => setQuery(event.target.value)} />`} />
      <${Choice} label="Index" value=${name} options=${served.indexes.map(one => ({ value: one.name, label: one.name }))} choose=${choose} />
      <${Choice} label="Mode" value=${mode} options=${index.modes.map(one => ({ value: one, label: one }))} choose=${setMode} />
      <${Field} label="Hits" draw=${id => html`<input id=${id} type="number" min="1" max="1000" required value=${count}
        onInput=${event => setCount(event.target.value)} />`} />
      <button class="go" type="submit">Search</button>
    </form>${said}</section>
    ${found && html`<section aria-label="Hits"><h2>Hits</h2>${found.length
      ? html`<ol class="hits">${found.map(hit => html`<${Hit} key=${`${hit.id} ${hit.chunk}`} hit=${hit} />`)}</ol>`
      : html`<p>Nothing was found.</p>`}</section>`}`;
}
