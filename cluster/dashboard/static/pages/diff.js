/** Two or more siblings side by side: where they part, and what that did to the reward. */

import { html } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { place, runHref } from '../core/router.js';
import { num, words } from '../core/format.js';
import { Badge, Empty, Head, Reward, Signed, shown } from '../core/parts.js';
import { t } from '../core/text.js';
import { episodeHref } from './episode_table.js';

/** @typedef {import('../core/types').Diff} DiffData */
/** @typedef {import('../core/types').DiffTurn} DiffTurn */

/** @param {{run: string}} props */
export function DiffPage({ run }) {
  const ids = place.value.query.getAll('id');
  const asked = useApi(ids.length > 1 ? runApi(run, 'diff', { id: ids }) : null);
  if (ids.length < 2) {
    return html`<${Head} title="Diff" /><${Empty} title="Choose two or more episodes.">Tick them in <a href=${runHref(run, 'episodes')}>Episodes</a> or in a group, then press <kbd>d</kbd>.<//>`;
  }
  return html`<${Head} title=${`Diff of ${ids.length} episodes`} />${shown(asked, (diff) => html`<${View} diff=${diff} run=${run} />`)}`;
}

/** @param {{diff: DiffData, run: string}} props */
function View({ diff, run }) {
  const token = diff.first_divergent_token;
  const first = diff.first_divergent_turn;
  return html`
    ${!diff.same_task && html`<div class="box warn"><strong>These are episodes of different tasks.</strong></div>`}
    <div class="box">${first === null ? html`<strong>Every turn is the same.</strong>` : html`<strong>They part at turn ${first + 1}</strong>${token.position !== null && html`<span class="dim">, token ${token.position}</span>`}. <a href="#first" onClick=${jump}>Go there</a>
      ${token.contexts.some(Boolean) && html`<ul>${token.contexts.map((text, index) => html`<li key=${index}><code>${t(text)}</code></li>`)}</ul>`}`}</div>
    <div class="sides">${diff.rows.map((row) => html`<div class="card" key=${row.episode}><h2><a href=${episodeHref(row, run)}>${t(row.episode)}</a></h2><p><${Badge} name=${row.outcome} /> <${Reward} value=${row.reward} /> <span class="dim">advantage</span> <${Signed} value=${row.advantage} /></p></div>`)}</div>
    <div class="two"><${Deltas} title="Parts of the reward" rows=${diff.reward_parts} diff=${diff} /><${Deltas} title="Calls" rows=${diff.calls} diff=${diff} /></div>
    <div class="two"><${Deltas} title="Numbers" rows=${diff.numbers} diff=${diff} /></div>
    <h2>Turns</h2>
    ${diff.turns.map((turn) => html`<${Turn} key=${turn.number} turn=${turn} first=${turn.number === first} />`)}`;
}

/** @param {Event} event */
function jump(event) {
  event.preventDefault();
  document.getElementById('first')?.scrollIntoView({ block: 'center' });
}

/** @param {{title: string, rows: import('../core/types').Delta[], diff: DiffData}} props */
function Deltas({ title, rows, diff }) {
  if (!rows.length) return null;
  return html`<section class="card"><h2>${title}</h2><div class="over"><table>
    <thead><tr><th><span class="sr">What</span></th>${diff.rows.map((row) => html`<th class="n" key=${row.episode}>${t(row.episode)}</th>`)}<th class="n">Change</th></tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${row.name}><td>${t(words(row.name))}</td>${row.values.map((value, index) => html`<td class="n" key=${index}>${num(value)}</td>`)}<td class="n">${row.change === 0 ? html`<span class="dim">0</span>` : html`<${Signed} value=${row.change} />`}</td></tr>`)}</tbody>
  </table></div></section>`;
}

/** @param {{turn: DiffTurn, first: boolean}} props */
function Turn({ turn, first }) {
  const phases = [...new Set(turn.phases.filter(Boolean))].join(' / ');
  return html`<details class=${first ? 'dturn first' : 'dturn'} id=${first ? 'first' : null} open=${!turn.same}>
    <summary>Turn ${turn.number + 1} · ${phases} · ${turn.same ? 'the same' : first ? 'here they part' : 'different'}</summary>
    <div class="sides">${turn.sides.map((side, index) => {
      const phase = turn.phases[index] ?? '';
      return html`<div key=${index}>${side === null ? html`<div class="empty">no such turn</div>` : html`<div class=${`turn ${phase}`}><header><span class=${`tag ${phase}`}>${phase}</span></header><div class="body"><pre>${turn.first_difference === null ? t(side.text) : html`${t(side.text.slice(0, turn.first_difference))}<mark class="d">${t(side.text.slice(turn.first_difference))}</mark>`}</pre></div></div>`}</div>`;
    })}</div>
  </details>`;
}
