/** Search in the texts of episodes: hits appear as they are found, and the search can be ended. */

import { html, useEffect, useRef, useState } from '../core/ui.js';
import { lines, runApi } from '../core/api.js';
import { param, runHref, setQuery } from '../core/router.js';
import { count, of } from '../core/format.js';
import { Badge, Empty, ErrorBox, Head, Reward } from '../core/parts.js';
import { useKeys } from '../core/keys.js';
import { t } from '../core/text.js';
import { FilterLine } from './filter_line.js';

const LIMIT = 300;

/** @param {string | null} path */
function useSearch(path) {
  const [state, setState] = useState(/** @type {any} */ ({ hits: [], progress: null, ended: null, error: null }));
  const abort = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => {
    if (!path) return undefined;
    const own = new AbortController();
    abort.current = own;
    setState({ hits: [], progress: null, ended: null, error: null });
    /** @type {any[]} */
    let waiting = [];
    /** @type {any} */
    let progress = null;
    const flush = () => {
      const found = waiting;
      waiting = [];
      if (found.length || progress) setState((/** @type {any} */ old) => ({ ...old, hits: [...old.hits, ...found], progress: progress ?? old.progress }));
    };
    const timer = setInterval(flush, 100);
    (async () => {
      try {
        for await (const line of lines(path, own.signal)) {
          if (line.type === 'hit') {
            waiting.push(line);
            if (waiting.length === 1 && !progress) flush();
          } else progress = line;
        }
        flush();
        setState((/** @type {any} */ old) => ({ ...old, ended: progress }));
      } catch (error) {
        flush();
        if (!own.signal.aborted) setState((/** @type {any} */ old) => ({ ...old, error }));
        else setState((/** @type {any} */ old) => ({ ...old, ended: { ...progress, stopped: 'you ended it' } }));
      }
      clearInterval(timer);
    })();
    return () => {
      own.abort();
      clearInterval(timer);
    };
  }, [path]);
  return { ...state, cancel: () => abort.current?.abort() };
}

/** @param {{run: string}} props */
export function Search({ run }) {
  const q = param('q');
  const filter = param('filter');
  const pattern = param('pattern') === 'true';
  const cased = param('case') === 'true';
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const found = useSearch(q ? runApi(run, 'search', { q, filter, pattern, case: cased, limit: LIMIT }) : null);
  useKeys([{ keys: 's', what: 'Write what to search', run: () => input.current?.focus() }]);
  useEffect(() => {
    if (!q) input.current?.focus();
  }, []);
  const running = q && !found.ended && !found.error;
  return html`<${Head} title="Search" note="in what policies wrote, and what tools answered" />
    <form class="bar" onSubmit=${(/** @type {any} */ event) => {
      event.preventDefault();
      setQuery({ q: event.target.elements.q.value });
    }}><input class="field" type="search" name="q" ref=${input} defaultValue=${q} aria-label="Text to search" placeholder="Text to search" spellcheck=${false} />
      <label class="inline"><input type="checkbox" checked=${pattern} onChange=${() => setQuery({ pattern: !pattern })} /> regular expression</label>
      <label class="inline"><input type="checkbox" checked=${cased} onChange=${() => setQuery({ case: !cased })} /> match case</label>
      <button class="main">Search</button>${running && html`<button type="button" onClick=${found.cancel}>Cancel</button>`}</form>
    <div class="bar"><${FilterLine} run=${run} value=${filter} onChange=${(/** @type {string} */ value) => setQuery({ filter: value })} /></div>
    ${found.error && html`<${ErrorBox} error=${found.error} />`}
    ${q && found.progress && html`<p class="note" role="status">${running && html`<progress value=${found.progress.episodes} max=${found.progress.of || 1} aria-label="Episodes searched"></progress> `}${of(found.hits.length, 'hit')}, ${count(found.progress.episodes)} of ${count(found.progress.of)} episodes searched${found.ended?.stopped ? `; ended early: ${found.ended.stopped}` : ''}.</p>`}
    ${!q && html`<${Empty} title="Search the texts of episodes.">Restrict it with a filter, such as <code>state=trained</code>. Hits appear while it runs.<//>`}
    ${q && found.ended && found.hits.length === 0 && html`<${Empty} title="Nothing found." />`}
    ${found.hits.length > 0 && html`<div class="scroll">${found.hits.map((/** @type {import('../core/types').SearchHit} */ hit, /** @type {number} */ index) => html`<${Hit} key=${index} hit=${hit} run=${run} />`)}</div>`}`;
}

/** @param {{hit: import('../core/types').SearchHit, run: string}} props */
function Hit({ hit, run }) {
  const turn = /^turns\/(\d+)/.exec(hit.part)?.[1];
  return html`<article class="hit"><div class="meta"><a href=${runHref(run, 'episode', { id: hit.episode, attempt: hit.attempt || null, turn })}><b>${t(hit.episode)}</b></a><span class="dim">${partName(hit.part)}</span><${Badge} name=${hit.outcome} /><${Reward} value=${hit.reward} /></div>
    <p>${t(hit.before)}<mark>${t(hit.match)}</mark>${t(hit.after)}</p></article>`;
}

/** A part in words: `turns/3/calls/0/result` is the result of a call in turn 4. @param {string} part */
function partName(part) {
  const found = /^turns\/(\d+)\/(?:calls\/\d+\/)?(\w+)/.exec(part);
  return found ? `turn ${Number(found[1]) + 1}, ${found[2]}` : part;
}
