/** An evaluation: how often it is right, with errors, by what the tasks are tagged with. */

import { html, useEffect, useRef, useState } from '../core/ui.js';
import { get, runApi, useApi } from '../core/api.js';
import { href, param, runHref, setQuery } from '../core/router.js';
import { count, num, of, percent, words } from '../core/format.js';
import { Badge, Coverage, Empty, Head, shown } from '../core/parts.js';
import { t } from '../core/text.js';

/** @typedef {import('../core/types').Estimate} Estimate */
/** @typedef {import('../core/types').EvalTableRow} EvalRow */

/** A share with its interval. @param {{of: Estimate | null | undefined, share?: boolean}} props */
export function Interval({ of: estimate, share = true }) {
  if (!estimate || estimate.value === null) return html`<span class="dim">–</span>`;
  const say = share ? (/** @type {number | null} */ value) => percent(value) : (/** @type {number | null} */ value) => num(value);
  const { low, high } = estimate;
  return html`<b>${say(estimate.value)}</b>${low !== null && high !== null && html` <span class="ci" title=${`95% interval over ${estimate.clusters} tasks`}>${say(low)} to ${say(high)}</span>`}`;
}

/**
 * How much of the runs' details is read; `again` is called each time there is more of them.
 * @param {string[]} runs
 * @param {() => void} again
 */
export function useRead(runs, again) {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const last = useRef(-1);
  const key = runs.join('\n');
  useEffect(() => {
    let timer = 0;
    let over = false;
    const look = async () => {
      try {
        const all = await Promise.all(runs.map((run) => get(runApi(run, 'health'))));
        const sum = (/** @type {string} */ name) => all.reduce((total, one) => total + Number(one.coverage[name]), 0);
        const now = { episodes: sum('episodes'), details: sum('details'), complete: all.every((one) => one.coverage.complete) };
        if (over) return;
        setFound(now);
        if (last.current >= 0 && now.details !== last.current) again();
        last.current = now.details;
        if (!now.complete) timer = window.setTimeout(look, 2000);
      } catch {
        // The page's own request says what is wrong.
      }
    };
    if (runs.length) look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [key]);
  return found;
}

/** @param {{run: string}} props */
export function EvaluationPage({ run }) {
  const by = param('by');
  const asked = useApi(runApi(run, 'evaluation', { by }));
  const coverage = useRead([run], asked.reload);
  return html`<${Head} title="Evaluation"><a class="button" href=${href('/compare', { run })}>Compare with …</a><//><${Coverage} coverage=${coverage} />${shown(asked, (data) => html`<${View} data=${data} run=${run} />`)}`;
}

/** @param {{data: import('../core/types').Evaluation, run: string}} props */
function View({ data, run }) {
  const ks = [...new Set(data.rows.flatMap((row) => Object.keys(row.pass_at_k)))].sort((a, b) => Number(a) - Number(b));
  const groups = [...new Set(data.rows.map((row) => row.by))];
  const majority = data.rows.some((row) => row.majority);
  return html`${!data.complete && html`<div class="box warn"><strong>It is not complete.</strong><p>The figures count the episodes that are stored.</p></div>`}
    <div class="chips">${Object.entries(data.outcomes).map(([outcome, number]) => html`<a class="sib" key=${outcome} href=${runHref(run, 'episodes', { filter: `outcome=${outcome}` })}><${Badge} name=${outcome} /> ${count(number)}</a>`)}
      ${Object.entries(data.failures).map(([reason, number]) => html`<span class="sib" key=${reason}>${t(words(reason))} ${count(number)}</span>`)}</div>
    ${data.rows.length === 0 && html`<${Empty} title="No episode is stored." />`}
    ${groups.map((group) => html`<section key=${group}><h2>${group && group !== 'all' ? `By ${words(group)}` : 'Overall'}</h2><div class="scroll"><table>
      <thead><tr><th>${group && group !== 'all' ? t(words(group)) : 'Tasks of'}</th><th class="n">Tasks</th><th class="n">Samples</th>${ks.map((k) => html`<th class="n" key=${k}>pass@${k}</th>`)}${majority && html`<th class="n">Majority</th>`}<th class="n">Trial calls</th><th class="n">Tool errors</th><th class="n">Malformed</th><th class="n">Tokens</th><th class="n">Lost</th><th><span class="sr">More</span></th></tr></thead>
      <tbody>${data.rows.filter((row) => row.by === group).map((row) => html`<tr key=${row.value}><td><b>${t(row.value || 'all')}</b></td><td class="n">${count(row.tasks)}</td><td class="n">${count(row.samples)}</td>
        ${ks.map((k) => html`<td class="n" key=${k}><${Interval} of=${row.pass_at_k[k]} /></td>`)}${majority && html`<td class="n"><${Interval} of=${row.majority} /></td>`}
        <td class="n">${num(row.trial_calls.value)}</td><td class="n">${percent(row.tool_error_rate.value)}</td><td class="n">${percent(row.malformed_rate.value)}</td><td class="n">${num(row.tokens.value)}</td><td class="n">${count(row.lost)}</td>
        <td class="nowrap"><a href=${runHref(run, 'episodes', { filter: row.filter })}>episodes</a> · <a href=${runHref(run, 'episodes', { filter: `${row.filter ? `${row.filter} and ` : ''}reward<0.5` })}>wrong</a></td></tr>`)}</tbody></table></div></section>`)}
    <p class="note">${data.notes.map((note) => html`${t(note)} `)}</p>
    <form class="bar" onSubmit=${(/** @type {any} */ event) => {
      event.preventDefault();
      setQuery({ by: event.target.elements.by.value.trim() });
    }}><label class="inline">Split by a tag <input class="field" name="by" defaultValue=${param('by')} placeholder="such as depth" /></label><button>Split</button></form>
    <p class="note">Intervals are of 95%, over tasks (${of(data.rows[0]?.tasks ?? 0, 'task')}).</p>`;
}
