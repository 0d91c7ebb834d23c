/** Menus over a selection of episodes: saved views, export, a set for SFT. */

import { html, useEffect, useRef, useState } from '../core/ui.js';
import { post, runApi } from '../core/api.js';
import { go, href, runHref } from '../core/router.js';
import { count } from '../core/format.js';
import { ErrorBox } from '../core/parts.js';
import { t } from '../core/text.js';

const VIEWS = 'trialrun.views';

/** @returns {{name: string, filter: string, sort: string}[]} */
function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(VIEWS) ?? '[]');
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** @type {{name: string, filter: string, sort: string}[]} */
const READY = [
  { name: 'Failed', filter: 'not outcome=answered', sort: '-uid' },
  { name: 'Wrong answers', filter: 'outcome=answered and reward<0.5', sort: '-uid' },
  { name: 'No trial made', filter: 'phase("trial").calls=0', sort: '-uid' },
  { name: 'Slowest', filter: '', sort: '-wall_s' },
  { name: 'Most credit', filter: 'state=trained', sort: '-advantage' },
  { name: 'Flagged', filter: 'garbled or loop or truncated or answer_in_tool or trial_touched_state', sort: '-uid' },
];

/** @param {{title: string, children?: any}} props */
function Menu({ title, children }) {
  const at = useRef(/** @type {HTMLDivElement | null} */ (null));
  const [open, setOpen] = useState(false);
  useEffect(() => {
    if (!open) return undefined;
    const close = (/** @type {Event} */ event) => {
      if (event instanceof KeyboardEvent ? event.key === 'Escape' : !at.current?.contains(/** @type {Node} */ (event.target))) setOpen(false);
    };
    document.addEventListener('pointerdown', close);
    document.addEventListener('keydown', close);
    return () => {
      document.removeEventListener('pointerdown', close);
      document.removeEventListener('keydown', close);
    };
  }, [open]);
  return html`<div class="menu" ref=${at}><button aria-expanded=${open} onClick=${() => setOpen(!open)}>${title} ▾</button>${open && html`<div>${children}</div>`}</div>`;
}

/** @param {{run: string, filter: string, sort: string, total: number, canWrite: boolean}} props */
export function Menus({ run, filter, sort, total, canWrite }) {
  const [views, setViews] = useState(stored());
  const save = (/** @type {typeof views} */ next) => {
    setViews(next);
    localStorage.setItem(VIEWS, JSON.stringify(next));
  };
  const link = (/** @type {any} */ view) => runHref(run, 'episodes', { filter: view.filter, sort: view.sort === '-uid' ? '' : view.sort });
  const file = (/** @type {string} */ format, /** @type {string} */ what) => href(`/api/v1${runApi(run, 'export')}`, { filter, format, what });
  return html`<${Menu} title="Views">
      <ul>${READY.map((view) => html`<li key=${view.name}><a href=${link(view)}>${view.name}</a></li>`)}
      ${views.map((view) => html`<li key=${`own ${view.name}`}><a href=${link(view)}>${t(view.name)}</a><button class="link" aria-label=${`Forget ${view.name}`} onClick=${() => save(views.filter((one) => one.name !== view.name))}>forget</button></li>`)}</ul>
      <form onSubmit=${(/** @type {any} */ event) => {
        event.preventDefault();
        const name = event.target.elements.name.value.trim();
        if (name) save([...views.filter((one) => one.name !== name), { name, filter, sort }]);
        event.target.reset();
      }}><label class="inline">Save this one as <input class="field" name="name" maxlength="60" /></label></form>
      <p class="dim">Saved in this browser; the address holds a view, too.</p>
    <//>
    <${Menu} title="Export">
      <p class="dim">${count(total)} episodes of this filter</p>
      <ul>
        <li><a href=${file('parquet', 'rows')} download>Rows, Parquet</a></li>
        <li><a href=${file('jsonl', 'rows')} download>Rows, JSONL</a></li>
        <li><a href=${file('jsonl', 'episodes')} download>Whole episodes, JSONL</a></li>
        <li><a href=${file('parquet', 'episodes')} download>Whole episodes, Parquet</a></li>
      </ul>
      ${canWrite && html`<${SftForm} run=${run} filter=${filter} total=${total} />`}
    <//>
    <button onClick=${() => go(runHref(run, 'search', { filter }))}>Search texts</button>`;
}

/** @param {{run: string, filter: string, total: number}} props */
function SftForm({ run, filter, total }) {
  const [state, setState] = useState(/** @type {any} */ ({}));
  const make = async (/** @type {any} */ event) => {
    event.preventDefault();
    const { name, only } = event.target.elements;
    setState({ busy: true });
    try {
      setState({ done: await post(runApi(run, 'sft-set'), { filter, name: name.value, only_correct: only.checked }) });
    } catch (error) {
      setState({ error });
    }
  };
  if (state.done) {
    const left = Object.entries(state.done.left_out);
    return html`<div class="box good" role="status"><strong>${count(state.done.episodes)} episodes written</strong>
      <p><code>${t(state.done.path)}</code></p><p>Train on it: <code>${t(state.done.command)}</code></p>
      ${left.length > 0 && html`<p>Left out: ${left.map(([why, number]) => `${why} (${number})`).join(', ')}</p>`}</div>`;
  }
  return html`<form onSubmit=${make}><strong>Make an SFT set of these</strong>
    <label class="inline">Name <input class="field" name="name" required pattern="[A-Za-z0-9][A-Za-z0-9._\\-]*" maxlength="60" /></label>
    <label class="inline"><input type="checkbox" name="only" defaultChecked /> only correct ones</label>
    <button class="main" disabled=${state.busy || !total}>${state.busy ? 'Writing …' : `Write from ${count(total)}`}</button>
    ${state.error && html`<${ErrorBox} error=${state.error} />`}</form>`;
}
