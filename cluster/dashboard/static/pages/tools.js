/** Tools: how often they are called, how long they take, how often they fail; and the calls. */

import { html, useMemo } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { param, runHref, setQuery } from '../core/router.js';
import { count, of, percent, seconds } from '../core/format.js';
import { Badge, Choice, Coverage, Empty, ErrorBox, Head, Loading, shown } from '../core/parts.js';
import { t } from '../core/text.js';
import { useRows } from './groups.js';

/** @typedef {import('../core/types').ToolRow} ToolRow */

/** @type {[keyof ToolRow, string, (row: ToolRow, most: number) => any][]} */
const COLUMNS = [
  ['calls', 'Calls', (row, most) => html`<span class="reward"><span class="bar" aria-hidden="true"><i style=${{ width: `${(row.calls / most) * 100}%` }}></i></span>${count(row.calls)}</span>`],
  ['episodes', 'Episodes', (row) => count(row.episodes)],
  ['p50_s', 'p50', (row) => seconds(row.p50_s)],
  ['p99_s', 'p99', (row) => seconds(row.p99_s)],
  ['error_rate', 'Errors', (row) => rate(row.error_rate, row.errors)],
  ['timeout_rate', 'Timeouts', (row) => rate(row.timeout_rate, row.timeouts)],
  ['infra_share', 'Infrastructure', (row) => rate(row.infra_share, row.infra)],
  ['mean_result', 'Result length', (row) => count(row.mean_result)],
];

/** @param {number | null} share @param {number} number */
function rate(share, number) {
  if (!number) return html`<span class="dim">0</span>`;
  return html`<span class="down">${percent(share)}</span> <span class="dim">${count(number)}</span>`;
}

/** @param {{run: string}} props */
export function Tools({ run }) {
  const by = param('by', 'tool');
  const phase = param('phase', 'all');
  const asked = useApi(runApi(run, 'tools', { by, filter: param('filter') }));
  return html`<${Head} title="Tools">
      <${Choice} label="Rows" value=${by} options=${[['tool', 'By tool'], ['environment', 'By tool set']]} onPick=${(/** @type {string} */ value) => setQuery({ by: value === 'tool' ? '' : value, tool: '' })} />
      <${Choice} label="Phase" value=${phase} options=${[['all', 'All'], ['trial', 'Trials'], ['execution', 'Execution']]} onPick=${(/** @type {string} */ value) => setQuery({ phase: value === 'all' ? '' : value })} />
    <//>${shown(asked, (data) => html`<${Table} data=${data} run=${run} phase=${phase} />`)}`;
}

/** @param {{data: import('../core/types').ToolFigures, run: string, phase: string}} props */
function Table({ data, run, phase }) {
  const sort = /** @type {keyof ToolRow} */ (param('sort', 'calls'));
  const tool = param('tool');
  const rows = useMemo(
    () => data.rows.filter((row) => row.phase === phase).sort((a, b) => Number(b[sort] ?? -1) - Number(a[sort] ?? -1)),
    [data, phase, sort],
  );
  const most = Math.max(1, ...rows.map((row) => row.calls));
  return html`<${Coverage} coverage=${data.coverage} />
    ${rows.length === 0 && html`<${Empty} title="No call in this selection.">Calls are listed once the details of their episodes are read.<//>`}
    ${rows.length > 0 &&
    html`<div class="scroll"><table><thead><tr><th>${data.by === 'tool' ? 'Tool' : 'Tool set'}</th>
        ${COLUMNS.map(([name, title]) => html`<th class="n" key=${name} aria-sort=${sort === name ? 'descending' : null}><button onClick=${() => setQuery({ sort: name === 'calls' ? '' : name })}>${title}${sort === name ? ' ↓' : ''}</button></th>`)}<th><span class="sr">More</span></th></tr></thead>
      <tbody>${rows.map((row) => {
        const name = row.tool || row.environment;
        return html`<tr key=${`${row.environment} ${name}`} class=${tool === name ? 'on' : ''}>
          <td><a href=${runHref(run, 'tools', { tool: name, phase: phase === 'all' ? '' : phase, by: data.by === 'tool' ? '' : data.by, sort: sort === 'calls' ? '' : sort })}><b>${t(name)}</b></a> ${data.by === 'tool' && html`<span class="dim">${t(row.environment)}</span>`}</td>
          ${COLUMNS.map(([column, , cell]) => html`<td class="n" key=${column}>${cell(row, most)}</td>`)}
          <td class="nowrap"><a href=${runHref(run, 'episodes', { filter: row.filter })}>episodes</a></td></tr>`;
      })}</tbody></table></div>`}
    ${tool && data.by === 'tool' && html`<${Calls} run=${run} tool=${tool} phase=${phase} />`}`;
}

/** @param {{run: string, tool: string, phase: string}} props */
function Calls({ run, tool, phase }) {
  const status = param('status');
  const list = useRows(run, 'calls', { tool, status, phase: phase === 'all' ? '' : phase, limit: 100 });
  return html`<h2>Calls of ${t(tool)}${list.rows && html` <span class="dim">${of(list.total, 'call')}</span>`}</h2>
    <div class="bar"><${Choice} label="Status" value=${status} options=${[['', 'All'], ['ok', 'ok'], ['tool_error', 'Tool error'], ['timeout', 'Timeout'], ['infra_error', 'Infrastructure']]} onPick=${(/** @type {string} */ value) => setQuery({ status: value })} /></div>
    ${list.error && html`<${ErrorBox} error=${list.error} />`}${!list.rows && !list.error && html`<${Loading} />`}
    ${list.rows?.length === 0 && html`<${Empty} title="No such call." />`}
    ${list.rows?.length > 0 && html`<div class="scroll"><table><thead><tr><th>Episode</th><th>Phase</th><th>Status</th><th class="n">Time</th><th class="n">CPU</th><th>Arguments</th><th>Result</th></tr></thead>
      <tbody>${list.rows.map((/** @type {import('../core/types').CallRow} */ row) => html`<tr key=${`${row.uid} ${row.turn} ${row.number}`}><td class="nowrap"><a href=${runHref(run, 'episode', { id: row.episode, attempt: row.attempt || null, turn: row.turn })}>${t(row.episode)}, turn ${row.turn + 1}</a></td>
        <td><span class=${`tag ${row.phase}`}>${row.phase}</span></td><td><${Badge} name=${row.status} /></td><td class="n">${seconds(row.seconds)}</td><td class="n">${seconds(row.cpu_seconds)}</td>
        <td class="wrap mono">${t(row.arguments)}</td><td class="wrap mono">${t(row.result)}</td></tr>`)}</tbody></table></div>
      ${list.next && html`<p><button onClick=${list.more}>More (${count(list.rows.length)} of ${count(list.total)})</button></p>`}`}`;
}
