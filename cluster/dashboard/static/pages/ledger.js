/** The ledger: what became of every episode, and why some were dropped or run again. */

import { html, useMemo } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { go, param, runHref, setQuery } from '../core/router.js';
import { clock, count, of, words } from '../core/format.js';
import { Badge, Choice, Empty, ErrorBox, Head, Loading, shown } from '../core/parts.js';
import { Chart } from '../core/chart.js';
import { t } from '../core/text.js';
import { useRows } from './groups.js';

/** @param {{run: string}} props */
export function Ledger({ run }) {
  const asked = useApi(runApi(run, 'ledger/summary'));
  const reason = param('reason');
  const event = param('event');
  return html`<${Head} title="Ledger" note="Every dropped or retried group, with its reason" />
    ${shown(asked, (summary) => html`<${Summary} summary=${summary} run=${run} reason=${reason} />`)}
    <div class="bar"><${Choice} label="Event" value=${event} options=${[['', 'All'], ['dropped', 'Dropped'], ['re_leased', 'Leased again'], ['rolled_back', 'Rolled back']]} onPick=${(/** @type {string} */ value) => setQuery({ event: value })} />
      ${reason && html`<button onClick=${() => setQuery({ reason: '' })}>Reason: ${t(words(reason))} ✕</button>`}</div>
    <${Rows} run=${run} reason=${reason} event=${event} />`;
}

/** @param {{summary: import('../core/types').LedgerSummary, run: string, reason: string}} props */
function Summary({ summary, run, reason }) {
  const lines = useMemo(() => summary.reasons.map((one) => ({ label: words(one.reason), steps: summary.edges, values: one.counts })), [summary]);
  const states = Object.entries(summary.states);
  return html`<div class="chips">${states.map(([state, number]) => html`<a class="sib" key=${state} href=${runHref(run, 'episodes', { filter: `state=${state}` })}>${t(state)} <b>${count(number)}</b></a>`)}
      ${summary.retries > 0 && html`<span class="dim">${of(summary.retries, 'retry', 'retries')}</span>`}</div>
    ${summary.violations.length > 0 && html`<div class="box warn"><strong>${of(summary.violations.length, 'episode')} left open</strong> although nothing writes to the run.<p>${summary.violations.slice(0, 20).map((one) => html`${t(one)} `)}</p></div>`}
    ${summary.reasons.length > 0 &&
    html`<div class="two"><${Chart} title="Dropped or retried, by reason" unit="episodes" lines=${lines} onStep=${(/** @type {number} */ step) => go(runHref(run, 'episodes', { filter: `step=${step} and state=dropped` }))} stepWords="Open the dropped episodes of this step" height=${200} />
      <div class="scroll"><table><thead><tr><th>Reason</th><th class="n">Episodes</th><th>Meaning</th></tr></thead><tbody>${summary.reasons.map(
        (one) => html`<tr key=${one.reason} class=${one.reason === reason ? 'on' : ''}><td class="nowrap"><button class="link" aria-pressed=${one.reason === reason} onClick=${() => setQuery({ reason: one.reason === reason ? '' : one.reason })}>${t(words(one.reason))}</button></td><td class="n">${count(one.total)}</td><td>${t(one.meaning)}</td></tr>`,
      )}</tbody></table></div></div><p class="note"></p>`}`;
}

/** @param {{run: string, reason: string, event: string}} props */
function Rows({ run, reason, event }) {
  const list = useRows(run, 'ledger', { reason, event, limit: 100 });
  if (list.error) return html`<${ErrorBox} error=${list.error} />`;
  if (!list.rows) return html`<${Loading} />`;
  if (!list.rows.length) return html`<${Empty} title=${`Nothing was dropped or retried${reason || event ? ' for this reason' : ''}.`} />`;
  return html`<div class="scroll"><table><thead><tr><th>Group</th><th>Event</th><th>Why</th><th class="n">Step</th><th>Episodes</th><th>Task</th><th>Ended</th></tr></thead>
    <tbody>${list.rows.map((/** @type {import('../core/types').LedgerRow} */ row, /** @type {number} */ index) => html`<tr key=${`${row.number} ${row.group} ${index}`}><td class="nowrap"><a href=${runHref(run, 'group', { id: row.group })}>${t(row.group)}</a></td><td><${Badge} name=${row.event} /></td>
      <td><b>${t(words(row.reason))}</b> <span class="dim">${t(row.meaning)}</span></td><td class="n">${row.step ?? '–'}</td><td class="n">${count(row.episodes.length)}</td><td class="wrap dim">${t(row.task)}</td><td class="dim">${clock(row.at)}</td></tr>`)}</tbody></table></div>
    ${list.next && html`<p><button onClick=${list.more}>More (${count(list.rows.length)} of ${count(list.total)})</button></p>`}`;
}
