/* The page: texts and how they compare, and search. */
import { html, render, useEffect, useRef, useState } from "./htm-preact.js";
import { Search } from "./search.js";
import { ask, useKey } from "./server.js";
import { Choice, Field, Settings, bodyOf, modelNames, modelOf, outputName, recipeOf, settled } from "./settings.js";
import { Heat, Key, Nearest, Plane, nearest, short } from "./views.js";
import { Prompt, Words } from "./words.js";

const EXAMPLE = `Plants make food from sunlight, water and carbon dioxide.
Photosynthesis turns light into chemical energy.
Leaves are green because of chlorophyll.
The committee met on Tuesday to review the plan.
The board discussed the proposal at its weekly meeting.
How do I reset the password of my account?
I forgot my login details and cannot sign in.
A man is playing a guitar on the stage.`;

/** Tabs with a panel, by arrow keys as by mouse. */
function Tabs({ label, tabs, chosen, choose, children }) {
  const list = useRef();
  const move = event => {
    const at = tabs.findIndex(tab => tab.id === chosen), last = tabs.length - 1;
    const to = { ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + last) % tabs.length, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs[to].id);
    list.current.children[to].focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} ref=${list} onKeyDown=${move}>${tabs.map(tab => html`
      <button key=${tab.id} type="button" role="tab" id=${`tab-${tab.id}`} aria-selected=${tab.id === chosen ? "true" : "false"}
        aria-controls=${`panel-${tab.id}`} tabindex=${tab.id === chosen ? 0 : -1} onClick=${() => choose(tab.id)}>${tab.label}</button>`)}</div>
    ${tabs.map(tab => html`<div key=${tab.id} role="tabpanel" id=${`panel-${tab.id}`} aria-labelledby=${`tab-${tab.id}`} hidden=${tab.id !== chosen}>
      ${tab.id === chosen || tab.kept ? children[tab.id]() : null}</div>`)}`;
}

function KeyForm({ words, enter }) {
  const [key, setKey] = useState("");
  const submit = event => {
    event.preventDefault();
    enter(key);
  };
  return html`<section><h2>This server wants an API key</h2>
    <form onSubmit=${submit} class="search"><${Field} label="API key" wide draw=${id => html`
      <input id=${id} type="password" required autocomplete="off" value=${key} onInput=${event => setKey(event.target.value)} />`} />
      <button class="go" type="submit">Open</button></form>
    <p class="hint">It is kept in the memory of this page until it is closed or loaded anew.</p>
    <p role="alert" class="error">${words}</p></section>`;
}

const VIEWS = [
  { id: "heat", label: "Similarity" }, { id: "nearest", label: "Nearest" }, { id: "map", label: "Map" },
  { id: "words", label: "Words" }, { id: "prompt", label: "Prompt" },
];

function Results({ run, served, chosen, choose }) {
  const [view, setView] = useState("heat");
  const [wanted, want] = useState("");
  const { texts, sides } = run;
  const heads = [...new Set(sides.flatMap(side => Object.keys(side.compared.scores)))];
  const headOf = side => (side.compared.scores[wanted] ? wanted : Object.keys(side.compared.scores)[0]);
  const each = (draw, keyed) => () => html`${keyed && html`<${Key} texts=${texts} />`}<div class=${`sides n${sides.length}`}>${sides.map((side, i) => html`
    <div class="result" key=${i}>${sides.length > 1 && html`<h3>${"AB"[i]}: ${side.title}</h3>`}${draw(side)}</div>`)}</div>`;
  const scored = (draw, keyed) => each(side => draw(side, side.compared.scores[headOf(side)], outputName(headOf(side))), keyed);
  const same = sides.length > 1 && texts.length > 1
    ? texts.filter((_, i) => new Set(sides.map(side => nearest(side.compared.scores[headOf(side)], i)[0].index)).size === 1).length : null;
  const panels = {
    heat: scored((side, scores, head) => html`<${Heat} texts=${texts} scores=${scores} head=${head} />`, true),
    nearest: scored((side, scores) => html`<${Nearest} texts=${texts} scores=${scores} chosen=${chosen} choose=${choose} />`),
    map: each(side => html`<${Plane} texts=${texts} scores=${Object.values(side.compared.scores)[0]} places=${side.compared.places} shown=${side.compared.shown}
      chosen=${chosen} head=${outputName(Object.keys(side.compared.scores)[0])} />`, true),
    words: each(side => html`<${Words} text=${texts[chosen]} terms=${side.compared.terms?.[chosen]} words=${side.compared.words?.[chosen]}
      mayAsk=${recipeOf(served, side.settings).more_heads.includes("sparse")} others=${modelOf(served, side.settings.model).recipes.filter(one => one.heads.includes("sparse")).map(one => one.name)} />`),
    prompt: each(side => html`<${Prompt} prompts=${side.rendered.prompts[chosen]} recipe=${recipeOf(served, side.settings)} />`),
  };
  return html`<section aria-label="Results"><h2>Results</h2><div class="choices">
      <${Choice} label="Text" value=${String(chosen)} options=${texts.map((text, i) => ({ value: String(i), label: `${i + 1}. ${short(text, 60)}` }))} choose=${value => choose(+value)} />
      ${heads.length > 1 && html`<${Choice} label="Scores" value=${wanted || heads[0]} options=${heads.map(head => ({ value: head, label: outputName(head) }))} choose=${want} />`}
    </div>
    ${same !== null && html`<p>The nearest text is the same by both for ${same} of ${texts.length} texts.</p>`}
    <${Tabs} label="Views" tabs=${VIEWS} chosen=${view} choose=${setView}>${panels}<//></section>`;
}

const linesOf = text => text.split(/\r?\n/).map(line => line.trim()).filter(Boolean);

async function runOf(served, settings, texts, truncate) {
  const sides = await Promise.all(settings.map(async side => {
    const body = bodyOf(served, side, texts);
    const [compared, rendered] = await Promise.all([ask("v1/compare", { ...body, truncate }), ask("v1/render", body)]);
    return { compared, rendered, settings: side, title: `${side.model}, ${side.recipe}${side.role ? `, ${side.role}` : ""}` };
  }));
  return { texts, sides };
}

function Texts({ served, told, failed, said, written, write }) {
  const first = settled(served, { role: "", instruction: "" }, modelNames(served)[0]);
  const [a, setA] = useState(first);
  const [b, setB] = useState(settled(served, first, modelNames(served)[0], served.models[0].recipes[1]?.name));
  const [two, setTwo] = useState(false);
  const [truncate, setTruncate] = useState(false);
  const [run, setRun] = useState(null);
  const [busy, setBusy] = useState(false);
  const [chosen, choose] = useState(0);
  const texts = linesOf(written);
  const submit = async event => {
    event?.preventDefault();
    if (busy) return;
    const begun = performance.now();
    setBusy(true);
    told("Working …");
    try {
      const found = await runOf(served, two ? [a, b] : [a], texts, truncate);
      const cut = new Set(found.sides.flatMap(side => side.compared.truncated));
      choose(at => Math.min(at, texts.length - 1));
      setRun(found);
      told(`${texts.length} texts, ${found.sides.map(side => side.compared.tokens).join(" and ")} tokens, ${Math.round(performance.now() - begun)} ms.`
        + (cut.size ? ` Shortened: text ${[...cut].map(i => i + 1).join(", ")}.` : ""));
    } catch (error) {
      failed(error);
    }
    setBusy(false);
  };
  const hasKey = event => (event.ctrlKey || event.metaKey) && event.key === "Enter" && submit(event);
  return html`<section><form onSubmit=${submit}>
      <${Field} label="Texts, one a line" wide draw=${id => html`<textarea id=${id} rows="8" dir="auto" spellcheck="false" value=${written}
        onInput=${event => write(event.target.value)} onKeyDown=${hasKey}></textarea>`} />
      <p class="hint">${texts.length} texts of at most ${served.limits.texts}. Ctrl+Enter compares.</p>
      <div class=${`sides n${two ? 2 : 1}`}>
        <${Settings} served=${served} side=${a} title=${two ? "A" : "How they are read"} change=${setA} />
        ${two && html`<${Settings} served=${served} side=${b} title="B" change=${setB} />`}
      </div>
      <div class="row"><button class="go" type="submit" aria-disabled=${busy ? "true" : "false"}>Compare</button>
        <label class="check"><input type="checkbox" checked=${two} onChange=${event => setTwo(event.target.checked)} /> Side by side with another recipe</label>
        <label class="check"><input type="checkbox" checked=${truncate} onChange=${event => setTruncate(event.target.checked)} /> Shorten texts that are too long</label></div>
    </form>${said}</section>
    ${run && html`<${Results} run=${run} served=${served} chosen=${chosen} choose=${choose} />`}`;
}

function App() {
  const [served, setServed] = useState(null);
  const [refused, setRefused] = useState(null);
  const [status, told] = useState("Asking the server what it has …");
  const [error, setError] = useState("");
  const [written, write] = useState(EXAMPLE);
  const [keyed, setKeyed] = useState(false);
  const say = words => {
    setError("");
    told(words);
  };
  const [place, setPlace] = useState("texts");
  const go = id => {
    say("");
    setPlace(id);
  };
  const fail = problem => {
    told("");
    if (problem.status === 401) {
      setServed(null);
      setRefused(problem.message);
    } else setError(problem.status ? `${problem.message} (status ${problem.status})` : problem.message);
  };
  const open = async key => {
    useKey(key);
    try {
      setServed(await ask("v1/served"));
      setRefused(null);
      setKeyed(Boolean(key));
      say("");
      if (key) document.getElementById("main").focus();
    } catch (problem) {
      fail(problem.status === 401 && !key ? { ...problem, status: 401, message: "" } : problem);
    }
  };
  useEffect(() => void open(""), []);
  const said = html`<div class="said"><p role="status" class="status">${status}</p><p role="alert" class="error">${error}</p></div>`;
  const given = id => ({ served, told: say, failed: fail, said: place === id && said });
  return html`${!served && said}
    ${refused !== null && html`<${KeyForm} words=${refused} enter=${open} />`}
    ${served && (served.models.length ? html`<${Tabs} label="Pages" tabs=${[{ id: "texts", label: "Texts", kept: true }, { id: "search", label: "Search", kept: true }]} chosen=${place} choose=${go}>
      ${{ texts: () => html`<${Texts} ...${given("texts")} written=${written} write=${write} />`, search: () => html`<${Search} ...${given("search")} />` }}<//>`
      : html`<${Search} ...${given(place)} />`)}
    ${served && html`<footer>EmbedLM ${served.version}.${keyed ? "" : html` Routes: <a href="docs">docs</a>, <a href="openapi.json">OpenAPI</a>.`}</footer>`}`;
}

const main = document.getElementById("main");
main.replaceChildren();
render(html`<${App} />`, main);
