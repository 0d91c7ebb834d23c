/** The virtual table of episodes: only the rows in sight are in the page. */

import { html, useEffect, useLayoutEffect, useRef, useState } from '../core/ui.js';
import { go, runHref, setQuery } from '../core/router.js';
import { ago, count, date, num, seconds, words } from '../core/format.js';
import { Badge, Flags, Reward, Signed } from '../core/parts.js';
import { useKeys } from '../core/keys.js';
import { plain, t } from '../core/text.js';

/** @typedef {import('../core/types').EpisodeRow} EpisodeRow */

const HEIGHT = 35;
const AROUND = 12;

/** @param {EpisodeRow} row @param {string} run */
export function episodeHref(row, run) {
  return runHref(run, 'episode', { id: row.episode, attempt: row.attempt || null });
}

/** @type {{name: string, title: string, sort: string, numeric?: boolean, cell: (row: EpisodeRow, run: string) => any}[]} */
const COLUMNS = [
  { name: 'episode', title: 'Episode', sort: 'episode', cell: (row, run) => html`<a href=${episodeHref(row, run)}>${t(row.episode)}${row.attempt ? html`<span class="dim"> attempt ${row.attempt}</span>` : ''}</a>` },
  { name: 'reward', title: 'Reward', sort: 'reward', numeric: true, cell: (row) => html`<${Reward} value=${row.reward} />` },
  { name: 'outcome', title: 'Outcome', sort: 'outcome', cell: (row) => html`<${Badge} name=${row.outcome} />` },
  { name: 'question', title: 'Question', sort: 'question', cell: (row) => html`<span title=${plain(row.question ?? row.task)}>${t(row.question ?? row.task)}</span>` },
  { name: 'answer', title: 'Answer', sort: 'answer', cell: (row) => (row.error ? html`<span class="down" title=${plain(row.error)}>${t(row.error)}</span>` : t(row.answer)) },
  { name: 'state', title: 'State', sort: 'state', cell: (row) => html`<${Badge} name=${row.state} />${row.reason ? html` <span class="dim">${t(words(row.reason))}</span>` : ''}` },
  { name: 'step', title: 'Step', sort: 'step', numeric: true, cell: (row) => (row.step === null ? html`<span class="dim">–</span>` : row.step) },
  { name: 'advantage', title: 'Advantage', sort: 'advantage', numeric: true, cell: (row) => html`<${Signed} value=${row.advantage} />` },
  { name: 'trials', title: 'Trial calls', sort: 'trial_calls', numeric: true, cell: (row) => num(row.trial_calls) },
  { name: 'calls', title: 'Execution calls', sort: 'execution_calls', numeric: true, cell: (row) => num(row.execution_calls) },
  { name: 'errors', title: 'Tool errors', sort: 'tool_errors', numeric: true, cell: (row) => (row.tool_errors ? html`<span class="down">${row.tool_errors}</span>` : num(row.tool_errors)) },
  { name: 'tokens', title: 'Tokens', sort: 'tokens', numeric: true, cell: (row) => count(row.tokens) },
  { name: 'seconds', title: 'Time', sort: 'wall_s', numeric: true, cell: (row) => seconds(row.wall_s) },
  { name: 'flags', title: 'Flags', sort: '', cell: (row) => html`<${Flags} names=${row.flags} />` },
  { name: 'staleness', title: 'Staleness', sort: 'staleness', numeric: true, cell: (row) => num(row.staleness) },
  { name: 'worker', title: 'Worker', sort: 'worker', cell: (row) => t(row.worker) },
  { name: 'mode', title: 'Mode', sort: 'mode', cell: (row) => t(row.mode) },
  { name: 'started', title: 'Started', sort: 'uid', cell: (row) => html`<span class="dim" title=${date(row.started_at)}>${ago(row.started_at)}</span>` },
];

/**
 * @param {{run: string, rows: EpisodeRow[], total: number, sort: string, filter: string, more: () => void,
 *   ticked: string[], setTicked: (ids: string[]) => void}} props
 */
export function EpisodeTable({ run, rows, total, sort, filter, more, ticked, setTicked }) {
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const [view, setView] = useState({ top: 0, tall: 600 });
  const [at, showAt] = useState(-1);
  // Keys may come faster than rows are drawn.
  const now = useRef(-1);
  const setAt = (/** @type {number} */ next) => {
    now.current = next;
    showAt(next);
  };
  useLayoutEffect(() => {
    if (box.current) box.current.scrollTop = 0;
    setAt(-1);
  }, [sort, filter]);
  useEffect(() => {
    const node = box.current;
    if (!node) return undefined;
    const read = () => setView({ top: node.scrollTop, tall: node.clientHeight });
    const observer = new ResizeObserver(read);
    observer.observe(node);
    node.addEventListener('scroll', read, { passive: true });
    return () => {
      observer.disconnect();
      node.removeEventListener('scroll', read);
    };
  }, []);
  const from = Math.max(0, Math.floor(view.top / HEIGHT) - AROUND);
  const to = Math.min(rows.length, Math.ceil((view.top + view.tall) / HEIGHT) + AROUND);
  useEffect(() => {
    if (to >= rows.length - 30 && rows.length < total) more();
  }, [to, rows.length]);
  const move = (/** @type {number} */ step) => {
    const next = Math.max(0, Math.min(rows.length - 1, now.current + step));
    setAt(next);
    const node = box.current;
    if (!node) return;
    if (next * HEIGHT < node.scrollTop) node.scrollTop = next * HEIGHT;
    else if ((next + 2) * HEIGHT > node.scrollTop + node.clientHeight) node.scrollTop = (next + 2) * HEIGHT - node.clientHeight;
  };
  const tick = (/** @type {string} */ id) => setTicked(ticked.includes(id) ? ticked.filter((one) => one !== id) : [...ticked, id]);
  useKeys(
    [
      { keys: 'j', what: 'Next episode', run: () => move(1) },
      { keys: 'k', what: 'Previous episode', run: () => move(-1) },
      { keys: 'Enter', what: 'Open the episode', run: () => rows[now.current] && go(episodeHref(rows[now.current], run)) },
      { keys: 'x', what: 'Tick the episode', run: () => rows[now.current] && tick(rows[now.current].episode) },
      { keys: 'G', what: 'Open its group', run: () => rows[now.current] && go(runHref(run, 'group', { id: rows[now.current].group })) },
    ],
    [rows, ticked, run],
  );
  const by = (/** @type {string} */ name) => setQuery({ sort: sort === `-${name}` ? name : `-${name}` });
  return html`<div class="vtable" ref=${box} tabindex="0" role="region" aria-label="Table of episodes">
    <table aria-rowcount=${total + 1}>
      <thead><tr aria-rowindex="1">
        <th><span class="sr">Tick</span></th>
        ${COLUMNS.map((column) => {
          const dir = sort === column.sort ? 'ascending' : sort === `-${column.sort}` ? 'descending' : null;
          return html`<th key=${column.name} class=${column.numeric ? 'n' : ''} aria-sort=${dir} scope="col">
            ${column.sort ? html`<button onClick=${() => by(column.sort)}>${column.title}${dir ? (dir === 'ascending' ? ' ↑' : ' ↓') : ''}</button>` : column.title}
          </th>`;
        })}
      </tr></thead>
      <tbody>
        ${from > 0 && html`<tr key="above" class="space" aria-hidden="true"><td colspan=${COLUMNS.length + 1} style=${{ height: `${from * HEIGHT}px` }}></td></tr>`}
        ${rows.slice(from, to).map((row, index) => html`<tr
            key=${`${row.episode} ${row.attempt}`} class=${from + index === at ? 'at' : ''} aria-rowindex=${from + index + 2}
            onClick=${(/** @type {any} */ event) => {
              if (!event.target.closest('a, input, button') && !String(getSelection())) go(episodeHref(row, run));
            }}>
            <td><input type="checkbox" checked=${ticked.includes(row.episode)} onChange=${() => tick(row.episode)} aria-label=${`Tick ${plain(row.episode)}`} /></td>
            ${COLUMNS.map((column) => html`<td key=${column.name} class=${column.numeric ? 'n' : ''}>${column.cell(row, run)}</td>`)}
          </tr>`)}
        ${to < rows.length && html`<tr key="below" class="space" aria-hidden="true"><td colspan=${COLUMNS.length + 1} style=${{ height: `${(rows.length - to) * HEIGHT}px` }}></td></tr>`}
      </tbody>
    </table>
    ${rows.length < total && html`<p class="note">${count(rows.length)} of ${count(total)} read; scroll for more.</p>`}
  </div>`;
}
