/** Log lines, searched by a regular expression, merged with those of other runs by time. */

import { html, useEffect, useLayoutEffect, useRef, useState } from '../core/ui.js';
import { get, runApi, useApi } from '../core/api.js';
import { param, place, setQuery } from '../core/router.js';
import { clock, count } from '../core/format.js';
import { Empty, ErrorBox, Field, Head, Loading } from '../core/parts.js';
import { useLive } from '../core/live.js';
import { plain, t } from '../core/text.js';

const LIMIT = 400;

/** @param {{run: string}} props */
export function Logs({ run }) {
  const pattern = param('pattern');
  const also = place.value.query.getAll('also');
  const list = useApi('/runs').data;
  const running = (list?.runs ?? []).some((/** @type {any} */ one) => one.id === run && one.state === 'running');
  const event = useLive(running ? [run] : [])[run];
  const [state, setState] = useState(/** @type {any} */ ({ lines: null, more: false, before: null, error: null }));
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const follow = useRef(true);
  const path = runApi(run, 'logs', { pattern, also, limit: LIMIT });
  const turn = event?.log_changed ? event.at : 0;
  useEffect(() => {
    // A page of older lines is not thrown away while the reader looks at it.
    if (turn && !follow.current) return undefined;
    const abort = new AbortController();
    get(path, abort.signal).then(
      (page) => setState({ ...page, error: null }),
      (error) => !abort.signal.aborted && setState({ lines: null, more: false, before: null, error }),
    );
    return () => abort.abort();
  }, [path, turn]);
  useLayoutEffect(() => {
    if (box.current && follow.current) box.current.scrollTop = box.current.scrollHeight;
  }, [state]);
  const older = async () => {
    follow.current = false;
    const page = await get(runApi(run, 'logs', { pattern, also, limit: LIMIT, before: state.before }));
    setState((/** @type {any} */ old) => ({ ...page, lines: [...page.lines, ...old.lines], error: null }));
  };
  const lines = state.lines;
  return html`<${Head} title="Logs" note=${lines && `${count(lines.length)} lines`} />
    <div class="bar"><${Field} value=${pattern} label="Find by regular expression" onChange=${(/** @type {string} */ value) => setQuery({ pattern: value }, { replace: true })} />
      <button aria-pressed=${pattern === 'error|warning'} onClick=${() => setQuery({ pattern: pattern === 'error|warning' ? '' : 'error|warning' })}>Errors and warnings</button>
      <label class="inline">Merge with <select value="" onChange=${(/** @type {any} */ change) => setQuery({ also: [...also, change.target.value] })}><option value="">another run …</option>${(list?.runs ?? []).filter((/** @type {any} */ one) => one.id !== run && !also.includes(one.id)).map((/** @type {any} */ one) => html`<option key=${one.id} value=${one.id}>${plain(one.name)}</option>`)}</select></label>
      ${also.map((one) => html`<button key=${one} onClick=${() => setQuery({ also: also.filter((other) => other !== one) })}>${t(one)} ✕</button>`)}</div>
    ${state.error && html`<${ErrorBox} error=${state.error} />`}
    ${!lines && !state.error && html`<${Loading} what="Reading logs" />`}
    ${lines?.length === 0 && html`<${Empty} title=${pattern ? 'No line matches.' : 'This run has written no log.'}>${pattern ? html`<button onClick=${() => setQuery({ pattern: '' })}>Show all</button>` : html`A run keeps its log in <code>logs/</code> below its folder.`}<//>`}
    ${lines?.length > 0 &&
    html`${state.more && html`<p><button onClick=${older}>Older lines</button></p>`}
      <div class=${also.length ? 'log multi' : 'log'} ref=${box} tabindex="0" role="log" aria-label="Log lines"
        onScroll=${(/** @type {any} */ scroll) => { follow.current = scroll.target.scrollHeight - scroll.target.scrollTop - scroll.target.clientHeight < 30; }}>
        ${lines.map((/** @type {import('../core/types').LogLine} */ line, /** @type {number} */ index) => html`<div key=${`${line.source} ${line.number} ${index}`} class=${line.level}><time>${line.at ? clock(line.at) : line.number}</time>${also.length > 0 && html`<span class="src" title=${plain(line.source)}>${t(line.source)}</span>`}<span class="tx">${t(line.text)}</span></div>`)}
      </div>`}`;
}
