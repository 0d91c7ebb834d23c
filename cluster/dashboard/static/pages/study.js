/** A study: arms by settings; each cell opens the episodes behind its figure. */

import { html } from '../core/ui.js';
import { useApi } from '../core/api.js';
import { href, runHref } from '../core/router.js';
import { num, of, percent } from '../core/format.js';
import { Empty, Head, shown } from '../core/parts.js';
import { t } from '../core/text.js';

/** @param {{study: string}} props */
export function Study({ study }) {
  const asked = useApi(study ? `/studies/${encodeURIComponent(study)}` : null);
  if (!study) return html`<${Head} title="Studies" /><${Empty} title="Choose a study from Runs." />`;
  return html`<${Head} title=${html`Study ${t(study)}`} />${shown(asked, (data) => html`<${View} data=${data} />`)}`;
}

/** @param {{data: import('../core/types').Study}} props */
function View({ data }) {
  const cells = new Map(data.cells.map((cell) => [`${cell.arm}\n${cell.setting}`, cell]));
  return html`${data.unfinished.length > 0 && html`<div class="box warn"><strong>${of(data.unfinished.length, 'stage')} without a result</strong><p>${data.unfinished.map((one) => html`${t(one)} `)}</p></div>`}
    <div class="scroll"><table><thead><tr><th>Arm</th>${data.settings.map((setting) => html`<th class="n" key=${setting}>${t(setting)}</th>`)}</tr></thead>
    <tbody>${data.arms.map((arm) => html`<tr key=${arm}><td><b>${t(arm)}</b></td>${data.settings.map((setting) => {
      const cell = cells.get(`${arm}\n${setting}`);
      if (!cell || cell.accuracy === null) return html`<td class="n dim" key=${setting}>–</td>`;
      return html`<td class="n" key=${setting}>${cell.run ? html`<a href=${runHref(cell.run, 'episodes')}><b>${percent(cell.accuracy)}</b></a>` : html`<b>${percent(cell.accuracy)}</b>`}
        <div class="ci">${cell.low === null ? '' : `${percent(cell.low)} to ${percent(cell.high)}`}</div><div class="ci">${of(cell.seeds, 'seed')}, ${of(cell.tasks, 'task')}${cell.trial_calls === null ? '' : `, ${num(cell.trial_calls)} trials`}</div>
        ${cell.runs.length > 1 && html`<div class="ci">${cell.runs.map((run, index) => html`<a key=${run} href=${runHref(run, 'episodes')}>seed ${index + 1}</a> `)}<a href=${href('/compare', { run: cell.runs.slice(0, 4) })}>compare</a></div>`}</td>`;
    })}</tr>`)}</tbody></table></div>
    <p class="note">${data.notes.map((note) => html`${t(note)} `)}</p>`;
}
