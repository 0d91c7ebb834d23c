/** All episodes of a run: filtered, sorted, counted; rows never move under the reader. */

import { html, useEffect, useMemo, useState } from '../core/ui.js';
import { get, runApi, useApi } from '../core/api.js';
import { go, param, runHref, setQuery } from '../core/router.js';
import { count, of } from '../core/format.js';
import { Coverage, Empty, ErrorBox, Head, Loading } from '../core/parts.js';
import { useLive } from '../core/live.js';
import { isSnapshot } from '../core/snapshot.js';
import { useKeys } from '../core/keys.js';
import { t } from '../core/text.js';
import { FilterLine } from './filter_line.js';
import { Brush, FacetList } from './facets.js';
import { EpisodeTable } from './episode_table.js';
import { Menus } from './episode_menus.js';

const LIMIT = 100;

/**
 * Pages of the table, all of the snapshot of the first.
 * @param {string} run @param {string} filter @param {string} sort
 */
function usePages(run, filter, sort) {
  const [state, setState] = useState(/** @type {any} */ ({ rows: [], first: null, next: null, error: null, loading: true }));
  const [turn, setTurn] = useState(0);
  const path = runApi(run, 'episodes', { filter, sort, limit: LIMIT });
  useEffect(() => {
    const abort = new AbortController();
    setState((/** @type {any} */ old) => ({ ...old, loading: true, error: null }));
    get(path, abort.signal).then(
      (page) => setState({ rows: page.rows, first: page, next: page.next, error: null, loading: false }),
      (error) => !abort.signal.aborted && setState({ rows: [], first: null, next: null, error, loading: false }),
    );
    return () => abort.abort();
  }, [path, turn]);
  const more = async () => {
    if (!state.next || state.loading) return;
    setState((/** @type {any} */ old) => ({ ...old, loading: true }));
    try {
      const page = await get(runApi(run, 'episodes', { filter, sort, limit: 300, cursor: state.next }));
      setState((/** @type {any} */ old) => (old.first === state.first ? { ...old, rows: [...old.rows, ...page.rows], next: page.next, loading: false } : old));
    } catch (error) {
      setState((/** @type {any} */ old) => ({ ...old, loading: false, moreError: error }));
    }
  };
  // Details of rows that are shown fill in; rows neither come nor go nor change places.
  const refresh = async () => {
    const limit = Math.max(LIMIT, Math.min(500, state.rows.length));
    try {
      const page = await get(runApi(run, 'episodes', { filter, sort, limit }));
      const found = new Map(page.rows.map((/** @type {any} */ row) => [`${row.episode} ${row.attempt}`, row]));
      setState((/** @type {any} */ old) => {
        if (old.first?.snapshot !== state.first?.snapshot) return old;
        const newer = Math.max(old.first.newer, page.total - old.first.total);
        const rows = old.rows.map((/** @type {any} */ row) => found.get(`${row.episode} ${row.attempt}`) ?? row);
        return { ...old, rows, first: { ...old.first, coverage: page.coverage, newer } };
      });
    } catch {
      // The next request of the page says what is wrong.
    }
  };
  return { ...state, more, refresh, reload: () => setTurn((now) => now + 1) };
}

/** @param {{run: string, session: any}} props */
export function Episodes({ run, session }) {
  const filter = param('filter');
  const sort = param('sort', '-uid');
  const pages = usePages(run, filter, sort);
  const summary = useApi(runApi(run, '')).data;
  const event = useLive(summary?.state === 'running' ? [run] : [])[run];
  const [base, setBase] = useState(0);
  const first = pages.first;
  useEffect(() => setBase(event?.fresh ?? 0), [first?.snapshot, filter, sort]);
  const newer = Math.max((event?.fresh ?? 0) - base, first?.newer ?? 0);
  const snapshot = first?.snapshot ?? null;
  const [ticked, setTicked] = useState(/** @type {string[]} */ ([]));
  useEffect(() => setTicked([]), [run]);
  const onFilter = (/** @type {string} */ next) => setQuery({ filter: next });
  const diff = () => go(runHref(run, 'diff', { id: ticked.slice(0, 8) }));
  useKeys([{ keys: 'd', what: 'Diff of the ticked episodes', run: () => ticked.length > 1 && diff() }], [ticked]);
  useEffect(() => {
    // Details are read in the background; facets and columns fill in when they are there.
    if (!first || first.coverage.complete) return undefined;
    const timer = setTimeout(pages.refresh, 2500);
    return () => clearTimeout(timer);
  }, [first]);
  return html`<${Head} title="Episodes" note=${first && html`${of(first.total, 'episode')}${filter ? ' match' : ''}`}>
      ${ticked.length > 0 && html`<button disabled=${ticked.length < 2} onClick=${diff}>Diff ${ticked.length} ticked</button>`}
      ${!isSnapshot && html`<${Menus} run=${run} filter=${filter} sort=${sort} total=${first?.total ?? 0} canWrite=${session?.can_write} />`}
    <//>
    ${isSnapshot ? filter && html`<div class="bar"><button onClick=${() => onFilter('')}>${t(filter)} ✕</button></div>` : html`<div class="bar"><${FilterLine} run=${run} value=${filter} onChange=${onFilter} /></div>`}
    <${Coverage} coverage=${first?.coverage} />
    <div class=${isSnapshot ? '' : 'split'}>
      ${!isSnapshot && html`<${FacetList} run=${run} filter=${filter} snapshot=${snapshot} read=${first?.coverage.details ?? 0} onFilter=${onFilter} />`}
      <div>
        ${!isSnapshot && html`<${Brush} run=${run} filter=${filter} snapshot=${snapshot} read=${first?.coverage.details ?? 0} onFilter=${onFilter} />`}
        <${Open} run=${run} key=${event?.step} />
        ${pages.error && html`<${ErrorBox} error=${pages.error} retry=${pages.reload} />`}
        ${first &&
        html`<div>
          ${newer > 0 && html`<div class="newer" role="status"><span>${of(newer, 'new episode')} since this list was read.</span><button onClick=${pages.reload}>Show</button></div>`}
          ${first.total === 0
            ? html`<${Empty} title=${filter ? 'No episode matches.' : 'No episode is stored yet.'}>${filter ? html`<button onClick=${() => onFilter('')}>Clear the filter</button>` : 'Episodes in progress are listed above; stored ones appear here.'}<//>`
            : html`<${EpisodeTable} run=${run} rows=${pages.rows} total=${first.total} sort=${sort} filter=${filter} more=${pages.more} ticked=${ticked} setTicked=${setTicked} />`}
          ${pages.moreError && html`<${ErrorBox} error=${pages.moreError} />`}
        </div>`}
        ${!first && !pages.error && html`<${Loading} what="Reading episodes" />`}
      </div>
    </div>`;
}

/** Episodes in progress. @param {{run: string}} props */
function Open({ run }) {
  const asked = useApi(runApi(run, 'open', { limit: 50 }));
  const groups = useMemo(() => {
    /** @type {Map<string, any[]>} */
    const found = new Map();
    for (const one of asked.data?.episodes ?? []) found.set(one.group, [...(found.get(one.group) ?? []), one]);
    return [...found];
  }, [asked.data]);
  if (!asked.data?.total) return null;
  return html`<details class="box"><summary>${of(asked.data.total, 'episode')} in progress</summary>
    <ul>${groups.map(
      ([group, episodes]) => html`<li key=${group}><a href=${runHref(run, 'group', { id: group })}>${t(group)}</a> <span class="dim">${t(episodes[0].task)}: samples ${episodes.map((one) => one.sample_index).join(', ')}${episodes.some((one) => one.why) ? `; leased again: ${episodes.find((one) => one.why).why}` : ''}</span></li>`,
    )}</ul>
    ${asked.data.total > 50 && html`<p>The newest 50 of ${count(asked.data.total)}.</p>`}
  </details>`;
}
