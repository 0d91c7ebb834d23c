/** All runs: what they are, how far they are, and whether something is wrong. */

import { html, useEffect, useMemo } from '../core/ui.js';
import { useApi } from '../core/api.js';
import { go, href, param, runHref, setQuery } from '../core/router.js';
import { ago, count, date, percent } from '../core/format.js';
import { Badge, Empty, Field, Head, Reward, Spark, shown } from '../core/parts.js';
import { useLive } from '../core/live.js';
import { useKeys } from '../core/keys.js';
import { plain, t } from '../core/text.js';

/** @typedef {import('../core/types').RunSummary} RunSummary */

const AGAIN_MS = 10_000;

export function Runs() {
  const asked = useApi('/runs');
  useEffect(() => {
    // Runs that start meanwhile, and those that are no longer written to.
    const timer = setInterval(() => !document.hidden && asked.reload(), AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<${Head} title="Runs" />${shown(asked, (list) => html`<${List} list=${list} />`)}`;
}

/** @param {{list: import('../core/types').RunList}} props */
function List({ list }) {
  const kind = param('kind');
  const text = param('text');
  const ticked = useMemo(() => param('ticked').split(',').filter(Boolean), [param('ticked')]);
  const events = useLive(list.runs.filter((run) => run.state === 'running').map((run) => run.id));
  const kinds = [...new Set(list.runs.map((run) => run.kind))];
  const runs = list.runs
    .filter((run) => (!kind || run.kind === kind) && run.name.toLowerCase().includes(text.toLowerCase()))
    .sort((a, b) => (b.created_at ?? 0) - (a.created_at ?? 0));
  const tick = (/** @type {string} */ id) =>
    setQuery(
      { ticked: (ticked.includes(id) ? ticked.filter((one) => one !== id) : [...ticked, id]).join(',') },
      { replace: true },
    );
  const overlay = () => go(runHref(ticked[0], 'metrics', { with: ticked.slice(1) }));
  useKeys([{ keys: 'o', what: 'Overlay the ticked runs', run: () => ticked.length > 1 && overlay() }], [ticked]);
  if (!list.runs.length) {
    return html`<${Empty} title="No runs here yet.">Looked in ${list.roots.map((root) => t(root)).join(', ')}. Start one with <code>trialrun train</code>, or look at the recorded one: <code>trialrun dashboard --demo</code>.<//>`;
  }
  return html`<div class="bar">
      <${Field} value=${text} label="Find a run by name" onChange=${(/** @type {string} */ value) => setQuery({ text: value }, { replace: true })} />
      <label class="inline">Kind <select value=${kind} onChange=${(/** @type {any} */ event) => setQuery({ kind: event.target.value })}>
        <option value="">all</option>${kinds.map((one) => html`<option key=${one} value=${one}>${t(one)}</option>`)}
      </select></label>
      <span class="gap"></span>
      ${ticked.length > 0 && html`<span class="dim">${ticked.length} ticked</span>`}
      <button disabled=${ticked.length < 2} onClick=${overlay}>Overlay metrics</button>
      <button disabled=${ticked.length < 2} onClick=${() => go(href('/compare', { run: ticked }))}>Compare evaluations</button>
      ${list.studies.map((study) => html`<a class="button" key=${study} href=${`/studies/${encodeURIComponent(study)}`}>Study ${t(study)}</a>`)}
    </div>
    <div class="scroll"><table class="runs">
      <thead><tr>
        <th><span class="sr">Tick</span></th><th>Run</th><th>Kind</th><th>State</th><th class="n">Step</th>
        <th>Reward</th><th class="n">Last</th><th class="n">Success</th><th class="n">Episodes</th><th class="n">Workers</th><th>Changed</th>
      </tr></thead>
      <tbody>
        ${runs.map((run) => html`<${Row} key=${run.id} run=${run} event=${events[run.id]} ticked=${ticked.includes(run.id)} tick=${tick} />`)}
      </tbody>
    </table></div>
    ${runs.length === 0 && html`<${Empty} title="No run matches."><button onClick=${() => setQuery({ text: '', kind: '' })}>Show all ${list.runs.length}</button><//>`}
    <p class="note">From ${list.roots.map((root, index) => html`${index > 0 && ', '}<code>${t(root)}</code>`)}</p>`;
}

/** @param {{run: RunSummary, event: any, ticked: boolean, tick: (id: string) => void}} props */
function Row({ run, event, ticked, tick }) {
  const step = event?.step ?? run.step;
  const first = run.kind === 'eval' ? 'evaluation' : 'overview';
  return html`<tr class=${ticked ? 'on' : ''}>
    <td><input type="checkbox" checked=${ticked} onChange=${() => tick(run.id)} aria-label=${`Tick ${plain(run.name)}`} /></td>
    <td class="main"><a href=${runHref(run.id, first)} title=${plain(run.path)}>${t(run.name)}</a>
      ${run.last_error && html`<a class="error" href=${runHref(run.id, 'logs')}>${t(run.last_error)}</a>`}
      ${run.problems > 0 && html`<a class="error" href=${runHref(run.id, 'health')}>${run.problems} parts cannot be read</a>`}</td>
    <td>${t(run.kind)}</td>
    <td><${Badge} name=${run.paused ? 'paused' : run.state} /></td>
    <td class="n">${step ? count(step) : '–'}${run.steps ? html`<span class="dim"> / ${count(run.steps)}</span>` : ''}</td>
    <td><${Spark} values=${run.reward_spark} label=${`Reward of ${plain(run.name)} over the steps`} /></td>
    <td class="n"><${Reward} value=${run.reward} /></td>
    <td class="n">${percent(run.success)}</td>
    <td class="n">${run.episodes === null ? html`<span class="dim" title="The index is being made">…</span>` : count(event?.episodes ?? run.episodes)}</td>
    <td class="n">${count(run.workers)}</td>
    <td class="dim" title=${date(run.updated_at)}>${ago(run.updated_at)}</td>
  </tr>`;
}
