/** Requests to a running job: looked at first, sent second, kept in the audit. */

import { html, useEffect, useState } from '../core/ui.js';
import { post, runApi, useApi } from '../core/api.js';
import { date } from '../core/format.js';
import { Empty, ErrorBox, shown } from '../core/parts.js';
import { t } from '../core/text.js';

/** Kinds of requests that this server takes, read from its own description. @param {any} openapi */
export function kindsOf(openapi) {
  const found = new Set();
  for (const schema of Object.values(openapi?.components?.schemas ?? {})) {
    const kind = /** @type {any} */ (schema).properties?.kind;
    if (kind?.const) found.add(kind.const);
    for (const one of kind?.enum ?? []) found.add(one);
  }
  return found;
}

/** @type {[string, string][]} */
const SIMPLE = [
  ['pause', 'Pause'],
  ['resume', 'Resume'],
  ['checkpoint', 'Checkpoint'],
];

/** @param {{run: string, running: boolean, canWrite: boolean, changed: number}} props */
export function Steering({ run, running, canWrite, changed }) {
  const audit = useApi(runApi(run, 'audit'));
  useEffect(() => {
    if (changed) audit.reload();
  }, [changed]);
  return html`<div class="two">
    ${canWrite && html`<section class="card"><h2>Steer</h2>${running ? html`<${Requests} run=${run} sent=${audit.reload} />` : html`<p class="dim">Only a running job can be steered; this one is not.</p>`}</section>`}
    <section class="card"><h2>Audit</h2>${shown(audit, (data) =>
      data.entries.length === 0
        ? html`<${Empty} title="Nobody has asked for anything." />`
        : html`${data.waiting > 0 && html`<p class="dim">${data.waiting} waiting for the job.</p>`}<ul>${data.entries.map(
            (/** @type {import('../core/types').AuditEntry} */ one, /** @type {number} */ index) => html`<li key=${index} class=${`box ${one.refused ? 'bad' : 'good'}`}><b>${t(one.request)}</b>${one.completed && ' took effect'} <span class="dim">${t(one.actor)}, ${date(one.at)}</span><p>${t(one.refused || one.note)}</p></li>`,
          )}</ul>`,
    )}</section></div>`;
}

/** @param {{run: string, sent: () => void}} props */
function Requests({ run, sent }) {
  const kinds = kindsOf(useApi('/openapi.json').data);
  const [workers, setWorkers] = useState('');
  const [group, setGroup] = useState('');
  const [abort, setAbort] = useState(false);
  const within = { ...(group.trim() && { group: group.trim() }), ...(abort && { abort }) };
  const [look, setLook] = useState(/** @type {any} */ (null));
  const [result, setResult] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const preview = async (/** @type {any} */ body) => {
    setError(null);
    setResult(null);
    try {
      setLook({ body, ...(await post(runApi(run, 'steer/preview'), body)) });
    } catch (failed) {
      setError(/** @type {Error} */ (failed));
    }
  };
  const send = async () => {
    const { body } = look;
    setLook({ ...look, busy: true });
    try {
      setResult(await post(runApi(run, 'steer', { wait_s: 20 }), body));
    } catch (failed) {
      setError(/** @type {Error} */ (failed));
    }
    setLook(null);
    sent();
  };
  return html`<form class="bar" onSubmit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      preview({ kind: 'scale', workers: Number(workers), ...within });
    }}>
      <label class="inline">Workers <input class="field" type="number" min="0" max="9999" required value=${workers} onInput=${(/** @type {any} */ event) => setWorkers(event.target.value)} /></label>
      <label class="inline">of group <input class="field" type="text" value=${group} placeholder="default" onInput=${(/** @type {any} */ event) => setGroup(event.target.value)} /></label>
      <label class="inline" title="Without it they end their episodes first"><input type="checkbox" checked=${abort} onChange=${(/** @type {any} */ event) => setAbort(event.target.checked)} /> surplus workers stop at once</label>
      <button>Scale …</button><button type="button" onClick=${() => preview({ kind: 'scale_by', change: 1, ...within })}>+1 …</button><button type="button" onClick=${() => preview({ kind: 'scale_by', change: -1, ...within })}>−1 …</button>
      ${SIMPLE.filter(([kind]) => kinds.has(kind)).map(([kind, title]) => html`<button type="button" key=${kind} onClick=${() => preview({ kind })}>${title} …</button>`)}
      <button type="button" class="danger" onClick=${() => preview({ kind: 'stop' })}>Stop …</button>
    </form>
    ${look && html`<div class="box warn" role="status"><strong>${t(look.sentence)}</strong>${look.reason && html`<p>${t(look.reason)}</p>`}
      ${look.allowed && html`<button class=${look.body.kind === 'stop' ? 'danger' : 'main'} disabled=${look.busy} onClick=${send}>${look.busy ? 'The job is asked …' : 'Do it'}</button>`} <button onClick=${() => setLook(null)}>Leave it</button></div>`}
    ${result && html`<div class=${`box ${result.accepted ? 'good' : 'bad'}`} role="status"><strong>${result.accepted ? 'The job took it.' : 'The job refused it.'}</strong><p>${t(result.refused || result.note)}</p></div>`}
    ${error && html`<${ErrorBox} error=${error} />`}`;
}
