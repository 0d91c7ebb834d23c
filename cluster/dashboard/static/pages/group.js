/** A group: its siblings as lanes, trials before execution, so that one sees where they part. */

import { html, useState } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { go, param, runHref } from '../core/router.js';
import { count, fixed, of, words } from '../core/format.js';
import { Badge, Flags, Head, Pairs, Reward, Signed, shown } from '../core/parts.js';
import { useKeys } from '../core/keys.js';
import { plain, t } from '../core/text.js';
import { episodeHref } from './episode_table.js';

/** @typedef {import('../core/types').Lane} Lane */
/** @typedef {import('../core/types').LanePiece} Piece */

/** @param {{run: string}} props */
export function GroupPage({ run }) {
  const asked = useApi(runApi(run, 'group', { id: param('id') }));
  return shown(asked, (group) => html`<${View} group=${group} run=${run} />`);
}

/** Neighbouring turns of a phase. @param {Piece[]} pieces */
export function bands(pieces) {
  /** @type {{phase: string, pieces: Piece[]}[]} */
  const found = [];
  for (const piece of pieces) {
    const last = found.at(-1);
    if (last?.phase === piece.phase) last.pieces.push(piece);
    else found.push({ phase: piece.phase, pieces: [piece] });
  }
  return found;
}

/** @param {{group: import('../core/types').Group, run: string}} props */
function View({ group, run }) {
  const lanes = group.lanes;
  const ids = lanes.map((lane) => lane.row.episode);
  const [ticked, setTicked] = useState(/** @type {string[]} */ ([]));
  const longest = Math.max(1, ...lanes.map((lane) => lane.pieces.reduce((sum, piece) => sum + piece.tokens, 0)));
  const best = Math.max(...lanes.map((lane) => lane.row.reward ?? -Infinity));
  const parts = [...new Set(lanes.flatMap((lane) => Object.keys(lane.reward_parts)))];
  const diff = () => go(runHref(run, 'diff', { id: (ticked.length > 1 ? ticked : extremes(lanes)).slice(0, 8) }));
  const tick = (/** @type {string} */ id) => setTicked(ticked.includes(id) ? ticked.filter((one) => one !== id) : [...ticked, id]);
  useKeys([{ keys: 'd', what: 'Diff of the ticked, or of best and worst', run: () => ids.length > 1 && diff() }], [ticked, lanes]);
  const step = lanes.find((lane) => lane.row.step !== null)?.row.step;
  const reason = lanes.find((lane) => lane.row.reason)?.row.reason;
  return html`<${Head} title=${html`Group ${t(group.group)}`} note=${t(group.task)}>
      <button disabled=${ids.length < 2} onClick=${diff}>${ticked.length > 1 ? `Diff ${ticked.length} ticked` : 'Diff best and worst'}</button>
      <a class="button" href=${runHref(run, 'episodes', { filter: `group="${group.group}"` })}>As a table</a>
    <//>
    <div class="card"><h2>${t(group.question) || 'Question not stored'}</h2>
      <${Pairs} pairs=${[
        ['Episodes', count(lanes.length)],
        ['Mean reward', fixed(group.reward_mean, 3)],
        ['Standard deviation', fixed(group.reward_std, 3)],
        ['Step', step === null || step === undefined ? '' : html`<a href=${runHref(run, 'episodes', { filter: `step=${step}` })}>${step}</a>`],
        ['Dropped because', reason ? html`<a href=${runHref(run, 'ledger', { reason })}>${t(words(reason))}</a>` : ''],
      ]} /></div>
    <div class="gapline"></div>
    ${group.zero_variance && html`<div class="box warn" role="note"><strong>All rewards are equal.</strong> <p>No episode of this group has an advantage, so nothing is learnt from it.</p></div>`}
    ${group.baseline_note && !group.zero_variance && html`<div class="box"><p>${t(group.baseline_note)}</p></div>`}
    <div class="lanes">${lanes.map((lane) => html`<${LaneRow} key=${`${lane.row.episode} ${lane.row.attempt}`} lane=${lane} run=${run} longest=${longest} best=${!group.zero_variance && lane.row.reward === best} ticked=${ticked.includes(lane.row.episode)} tick=${tick} />`)}</div>
    <p class="note">Each block is a turn, as wide as its tokens; <b>!</b> marks a tool error or an invalid turn. <span class="tag trial">trial</span>, <span class="tag experience">experience</span>, <span class="tag execution">execution</span>.</p>
    ${group.open.length > 0 && html`<div class="box"><strong>${of(group.open.length, 'sibling')} in progress</strong><p>${group.open.map((one) => `${one.episode}${one.why ? ` (${one.why})` : ''}`).join(', ')}</p></div>`}
    ${parts.length > 0 &&
    html`<h2>Parts of the reward</h2><div class="scroll"><table>
      <thead><tr><th>Episode</th>${parts.map((part) => html`<th class="n" key=${part}>${t(part)}</th>`)}<th class="n">Reward</th><th class="n">Advantage</th><th class="n">Of its trials</th></tr></thead>
      <tbody>${lanes.map(
        (lane) => html`<tr key=${lane.row.episode}><td><a href=${episodeHref(lane.row, run)}>${t(lane.row.episode)}</a></td>
          ${parts.map((part) => html`<td class="n" key=${part}>${fixed(lane.reward_parts[part])}</td>`)}
          <td class="n">${fixed(lane.row.reward)}</td><td class="n"><${Signed} value=${lane.row.advantage} /></td><td class="n"><${Signed} value=${lane.row.trial_advantage} /></td></tr>`,
      )}</tbody></table></div>`}`;
}

/** Best and worst by reward. @param {Lane[]} lanes */
function extremes(lanes) {
  const sorted = [...lanes].sort((a, b) => (a.row.reward ?? 0) - (b.row.reward ?? 0));
  return [sorted[0].row.episode, sorted[sorted.length - 1].row.episode];
}

/** @param {{lane: Lane, run: string, longest: number, best: boolean, ticked: boolean, tick: (id: string) => void}} props */
function LaneRow({ lane, run, longest, best, ticked, tick }) {
  const { row, pieces } = lane;
  return html`<div class=${best ? 'lane best' : 'lane'}>
    <div class="who"><input type="checkbox" checked=${ticked} onChange=${() => tick(row.episode)} aria-label=${`Tick ${plain(row.episode)}`} /><a href=${episodeHref(row, run)}>${t(row.episode)}</a> <${Badge} name=${row.outcome} />
      <div class="dim">${row.answer === null ? '' : html`answer ${t(row.answer) || '(none)'}`}</div><${Flags} names=${row.flags} /></div>
    <div class="bands" role="list" aria-label=${`Turns of ${plain(row.episode)}`}>
      ${bands(pieces).map((band, index) => {
        const tokens = band.pieces.reduce((sum, piece) => sum + piece.tokens, 0);
        return html`<div key=${index} role="listitem" class=${`band ${band.phase}`} style=${{ flexGrow: tokens }}>
          <span class="tag">${band.phase}</span>
          ${band.pieces.map((piece) => {
            const said = `${piece.phase} turn ${piece.turn + 1}: ${of(piece.tokens, 'token')}, ${of(piece.calls, 'call')}${piece.errors ? `, ${of(piece.errors, 'error')}` : ''}${piece.policy_error ? `, ${plain(piece.policy_error)}` : ''}`;
            return html`<a key=${piece.turn} class=${piece.errors || piece.policy_error ? 'err' : ''} style=${{ flexGrow: piece.tokens || 1 }} href=${`${episodeHref(row, run)}&turn=${piece.turn}`} title=${said} aria-label=${said}></a>`;
          })}
        </div>`;
      })}
      <span aria-hidden="true" style=${{ flexGrow: Math.max(0, longest - pieces.reduce((sum, piece) => sum + piece.tokens, 0)) }}></span>
    </div>
    <div class="nums"><${Reward} value=${row.reward} /><div class="dim">advantage <${Signed} value=${row.advantage} /></div></div>
  </div>`;
}
