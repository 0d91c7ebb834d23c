/** Evaluations against each other: paired differences, and the questions won and lost. */

import { html, useMemo } from '../core/ui.js';
import { useApi } from '../core/api.js';
import { href, param, place, runHref, setQuery } from '../core/router.js';
import { count, fixed, num, percent, words } from '../core/format.js';
import { Badge, Choice, Coverage, Empty, Head, Loading, shown } from '../core/parts.js';
import { plain, t } from '../core/text.js';
import { Interval, useRead } from './evaluation.js';

/** @typedef {import('../core/types').Compare} CompareData */

export function Compare() {
  const runs = place.value.query.getAll('run');
  const list = useApi('/runs');
  return html`<${Head} title="Compare evaluations" />
    ${shown(list, (all) => html`<${Pick} runs=${runs} all=${all.runs} />`)}
    ${runs.length > 1 ? html`<${Result} runs=${runs} />` : html`<${Empty} title="Choose two or more evaluations.">Their episodes are paired by task: a difference is of the same questions.<//>`}`;
}

/** @param {{runs: string[], all: import('../core/types').RunSummary[]}} props */
function Pick({ runs, all }) {
  const given = all.filter((run) => run.kind === 'eval' || runs.includes(run.id));
  const change = (/** @type {number} */ index, /** @type {string} */ id) => {
    const next = [...runs];
    if (id) next[index] = id;
    else next.splice(index, 1);
    setQuery({ run: next });
  };
  const slots = [...runs, ''].slice(0, 6);
  while (slots.length < 2) slots.push('');
  return html`<div class="bar">${slots.map(
    (run, index) => html`<label class="inline" key=${index}>${index === 0 ? 'First' : index === 1 ? 'against' : 'and'}
      <select value=${run} onChange=${(/** @type {any} */ event) => change(index, event.target.value)}><option value="">${run ? 'leave out' : 'choose …'}</option>${given.map((one) => html`<option key=${one.id} value=${one.id}>${plain(one.name)}</option>`)}</select></label>`,
  )}</div>`;
}

/** @param {{runs: string[]}} props */
function Result({ runs }) {
  const asked = useApi(href('/compare', { run: runs, by: param('by') }));
  const coverage = useRead(runs, asked.reload);
  if (asked.error && coverage && !coverage.complete) return html`<${Coverage} coverage=${coverage} /><${Loading} what="Reading the episodes of both" />`;
  return html`<${Coverage} coverage=${coverage} />${shown(asked, (data) => html`<${View} data=${data} />`)}`;
}

/** @param {{data: CompareData}} props */
function View({ data }) {
  const verdict = param('verdict');
  const [first, second] = data.sides;
  const flips = useMemo(() => data.flips.filter((flip) => !verdict || flip.verdict === verdict), [data, verdict]);
  return html`<div class="scroll"><table><thead><tr><th>Side</th><th class="n">Tasks</th><th class="n">Samples</th><th class="n">Score</th><th><span class="sr">More</span></th></tr></thead>
      <tbody>${data.sides.map((side) => html`<tr key=${side.run}><td><b>${t(side.name)}</b></td><td class="n">${count(side.tasks)}</td><td class="n">${count(side.samples)}</td><td class="n"><${Interval} of=${side.score} /></td><td><a href=${runHref(side.run, 'evaluation')}>tables</a></td></tr>`)}</tbody></table></div>
    <p class="note">${count(data.shared)} tasks are in all sides. ${data.notes.map((note) => html`${t(note)} `)}</p>
    <h2>Paired differences</h2>
    <div class="scroll"><table><thead><tr><th><span class="sr">More</span></th><th>First</th><th>Second</th><th class="n">Tasks</th><th class="n">First</th><th class="n">Second</th><th class="n">Difference</th><th class="n">95% interval</th><th class="n">p (Holm)</th></tr></thead>
      <tbody>${data.rows.map((row, index) => html`<tr key=${index}><td>${row.by && row.by !== 'all' ? html`${t(words(row.by))} ${t(row.value)}` : 'all'}</td><td>${t(row.first)}</td><td>${t(row.second)}</td><td class="n">${count(row.tasks)}</td><td class="n">${percent(row.first_score)}</td><td class="n">${percent(row.second_score)}</td>
        <td class="n"><b class=${row.difference > 0 ? 'up' : row.difference < 0 ? 'down' : ''}>${row.difference > 0 ? '+' : ''}${percent(row.difference)}</b></td><td class="n ci">${percent(row.low)} to ${percent(row.high)}</td><td class="n">${num(row.p_holm)}</td></tr>`)}</tbody></table></div>
    <h2>Questions that flipped</h2>
    <div class="bar"><${Choice} label="Verdict" value=${verdict} options=${[['', `All ${data.flips.length}`], ['won', `Won ${data.won}`], ['lost', `Lost ${data.lost}`]]} onPick=${(/** @type {string} */ value) => setQuery({ verdict: value }, { replace: true })} /><span class="dim">by ${t(second?.name)} over ${t(first?.name)}; ${count(data.tied)} tied</span></div>
    ${flips.length === 0
      ? html`<${Empty} title="No question flipped." />`
      : html`<div class="scroll"><table><thead><tr><th>Verdict</th><th>Question</th><th class="n">First</th><th class="n">Second</th><th>Episodes</th></tr></thead>
        <tbody>${flips.map((flip) => html`<tr key=${flip.task}><td><${Badge} name=${flip.verdict} /></td><td class="wrap">${t(flip.question || flip.task)}</td><td class="n">${fixed(flip.first_score)}</td><td class="n">${fixed(flip.second_score)}</td>
          <td class="nowrap"><a href=${href('/pair', { a: first.run, ae: flip.first_episode, b: second.run, be: flip.second_episode })}>both</a> · <a href=${runHref(first.run, 'episode', { id: flip.first_episode })}>first</a> · <a href=${runHref(second.run, 'episode', { id: flip.second_episode })}>second</a></td></tr>`)}</tbody></table></div>`}`;
}
