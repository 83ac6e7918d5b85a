/* How texts are read: the model, the recipe, the role, the instruction and the outputs. */
import { html, useRef } from "./htm-preact.js";

const OUTPUTS = { dense: "dense", sparse: "sparse", multi_vector: "multi-vector" };
export const outputName = head => OUTPUTS[head] ?? head;

let made = 0;

/** A control with its label; `draw` is given the id that joins them. */
export function Field({ label, wide, draw }) {
  const id = useRef(null);
  id.current ??= `field-${++made}`;
  return html`<div class=${wide ? "field wide" : "field"}><label for=${id.current}>${label}</label>${draw(id.current)}</div>`;
}

export const Choice = ({ label, value, options, choose }) => html`<${Field} label=${label} draw=${id => html`
  <select id=${id} value=${value} onChange=${event => choose(event.target.value)}>
    ${options.map(one => html`<option key=${one.value} value=${one.value}>${one.label}</option>`)}
  </select>`} />`;

/** The models of a server, those with an adapter too. */
export const modelNames = served => served.models.flatMap(one => [one.name, ...one.adapters.map(a => `${one.name}:${a}`)]);

export const modelOf = (served, name) =>
  served.models.find(one => one.name === name || one.adapters.some(a => `${one.name}:${a}` === name));

export const recipeOf = (served, side) =>
  modelOf(served, side.model)?.recipes.find(one => one.name === side.recipe);

/** Settings that a model and a recipe allow, with as much of the old ones as possible. */
export function settled(served, side, model, recipe) {
  const found = modelOf(served, model);
  const chosen = found.recipes.find(one => one.name === recipe) ?? found.recipes[0];
  const role = chosen.roles.includes(side.role) ? side.role : "";
  return { ...side, model, recipe: chosen.name, role, heads: chosen.heads };
}

/** What is sent for one side. */
export function bodyOf(served, side, texts) {
  const recipe = recipeOf(served, side), own = modelOf(served, side.model).recipes[0].name;
  const takes = recipe.instructed.includes(side.role || null);
  const same = side.heads.length === recipe.heads.length && recipe.heads.every(head => side.heads.includes(head));
  return {
    texts,
    model: side.model,
    ...(side.recipe === own ? {} : { recipe: side.recipe }),
    ...(side.role ? { role: side.role } : {}),
    ...(takes && side.instruction ? { instruction: side.instruction } : {}),
    ...(same ? {} : { heads: side.heads }),
  };
}

const Outputs = ({ side, recipe, change }) => {
  const all = Object.keys(OUTPUTS).filter(head => recipe.heads.includes(head) || recipe.more_heads.includes(head));
  const turn = (head, on) => {
    const heads = all.filter(one => (one === head ? on : side.heads.includes(one)));
    if (heads.length) change({ ...side, heads });
  };
  return html`<fieldset class="outputs"><legend>Outputs</legend>
    ${all.map(head => html`<label class="check" key=${head}>
      <input type="checkbox" checked=${side.heads.includes(head)}
        disabled=${side.heads.length === 1 && side.heads[0] === head}
        onChange=${event => turn(head, event.target.checked)} /> ${outputName(head)}</label>`)}
  </fieldset>`;
};

export const Settings = ({ served, side, title, change }) => {
  const recipe = recipeOf(served, side), models = modelNames(served);
  const recipes = modelOf(served, side.model).recipes;
  const plain = value => ({ value, label: value });
  return html`<fieldset class="side"><legend>${title}</legend>
    ${models.length > 1 && html`<${Choice} label="Model" value=${side.model} options=${models.map(plain)}
      choose=${name => change(settled(served, side, name, side.recipe))} />`}
    <${Choice} label="Recipe" value=${side.recipe}
      options=${recipes.map((one, at) => ({ value: one.name, label: at ? one.name : `${one.name} (the model's own)` }))}
      choose=${name => change(settled(served, side, side.model, name))} />
    <${Choice} label="Role" value=${side.role} options=${[{ value: "", label: "none" }, ...recipe.roles.map(plain)]}
      choose=${role => change({ ...side, role })} />
    ${recipe.instructed.includes(side.role || null) && html`<${Field} label="Instruction" draw=${id => html`
      <input id=${id} type="text" value=${side.instruction} placeholder="the recipe's own"
        onInput=${event => change({ ...side, instruction: event.target.value })} />`} />`}
    <${Outputs} side=${side} recipe=${recipe} change=${change} />
    <p class="hint">${recipe.summary}${side.recipe === recipes[0].name ? "" : " The model reads it with weights that may not be trained for it."}</p>
  </fieldset>`;
};
