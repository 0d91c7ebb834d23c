/** Groups: which ones taught something, which had equal rewards, which were dropped and why. */

import { html, useEffect, useState } from '../core/ui.js';
import { get, runApi } from '../core/api.js';
import { param, runHref, setQuery } from '../core/router.js';
import { count, fixed, of, words } from '../core/format.js';
import { Choice, Empty, ErrorBox, Head, Loading } from '../core/parts.js';
import { isSnapshot } from '../core/snapshot.js';
import { t } from '../core/text.js';
import { FilterLine } from './filter_line.js';

/**
 * Rows of a route with cursors: the first page, and more on demand.
 * @param {string} run @param {string} route @param {Record<string, any>} query
 */
export function useRows(run, route, query) {
  const [state, setState] = useState(/** @type {any} */ ({ rows: null, next: null, total: 0, error: null }));
  const path = runApi(run, route, query);
  useEffect(() => {
    const abort = new AbortController();
    get(path, abort.signal).then(
      (page) => setState({ ...page, error: null }),
      (error) => !abort.signal.aborted && setState({ rows: null, next: null, total: 0, error }),
    );
    return () => abort.abort();
  }, [path]);
  const more = async () => {
    const page = await get(runApi(run, route, { ...query, cursor: state.next }));
    setState((/** @type {any} */ old) => ({ ...old, rows: [...old.rows, ...page.rows], next: page.next }));
  };
  return { ...state, more };
}

/** @param {{run: string}} props */
export function Groups({ run }) {
  const filter = param('filter');
  const equal = param('zero_variance');
  const list = useRows(run, 'groups', { filter, zero_variance: equal, limit: 100 });
  return html`<${Head} title="Groups" note=${list.rows && of(list.total, 'group')}>
      <${Choice} label="Which groups" value=${equal} options=${[['', 'All'], ['false', 'Rewards differ'], ['true', 'Rewards equal']]} onPick=${(/** @type {string} */ value) => setQuery({ zero_variance: value })} />
    <//>
    ${!isSnapshot && html`<div class="bar"><${FilterLine} run=${run} value=${filter} onChange=${(/** @type {string} */ value) => setQuery({ filter: value })} /></div>`}
    ${list.error && html`<${ErrorBox} error=${list.error} />`}
    ${!list.rows && !list.error && html`<${Loading} />`}
    ${list.rows?.length === 0 && html`<${Empty} title="No group matches." />`}
    ${list.rows?.length > 0 &&
    html`<div class="scroll"><table>
        <thead><tr><th>Group</th><th>Task</th><th class="n">Episodes</th><th class="n">Mean reward</th><th class="n">From</th><th class="n">To</th><th>Rewards</th><th class="n">Step</th><th class="n">Trained</th><th class="n">Dropped</th><th>Why</th></tr></thead>
        <tbody>${list.rows.map(
          (/** @type {import('../core/types').GroupRow} */ row) => html`<tr key=${row.group}>
            <td class="nowrap"><a href=${runHref(run, 'group', { id: row.group })}>${t(row.group)}</a></td><td class="wrap">${t(row.task)}</td>
            <td class="n">${count(row.episodes)}</td><td class="n">${fixed(row.reward_mean)}</td><td class="n">${fixed(row.reward_min)}</td><td class="n">${fixed(row.reward_max)}</td>
            <td>${row.zero_variance ? html`<span class="badge warn">equal: nothing to learn</span>` : html`<span class="badge good">differ</span>`}</td>
            <td class="n">${row.step ?? '–'}</td><td class="n">${count(row.trained)}</td><td class="n">${count(row.dropped)}</td><td>${t(words(row.reason))}</td>
          </tr>`,
        )}</tbody></table></div>
      ${list.next && html`<p><button onClick=${list.more}>More (${count(list.rows.length)} of ${count(list.total)})</button></p>`}`}`;
}
