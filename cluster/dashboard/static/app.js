/** The frame of all pages: sign-in, navigation, keys, and the page that the address names. */

import { html, render, useEffect, useErrorBoundary, useRef, useState, signal } from './core/ui.js';
import { get, post, useApi, ApiError } from './core/api.js';
import { go, listen, place, runHref, href } from './core/router.js';
import { applyTheme, isDark, painted, switchTheme } from './core/theme.js';
import { helpOpen, listenKeys, shownKeys, useKeys } from './core/keys.js';
import { Badge, ErrorBox, Head, Loading } from './core/parts.js';
import { connected, live } from './core/live.js';
import { isSnapshot, kept } from './core/snapshot.js';
import { t } from './core/text.js';

/** @typedef {import('./core/types').Session} Session */

export const session = signal(/** @type {Session | null} */ (null));

/** @type {[string, string, string][]} name, title, key */
const RUN_PAGES = [
  ['overview', 'Overview', 'g o'],
  ['episodes', 'Episodes', 'g e'],
  ['groups', 'Groups', 'g g'],
  ['tools', 'Tools', 'g t'],
  ['ledger', 'Ledger', 'g l'],
  ['fleet', 'Fleet', 'g f'],
  ['evaluation', 'Evaluation', 'g v'],
  ['metrics', 'Metrics', 'g m'],
  ['logs', 'Logs', 'g w'],
  ['config', 'Config', 'g c'],
  ['search', 'Search', 'g s'],
];

/** @type {Record<string, [module: string, name: string]>} */
const PAGES = {
  runs: ['runs', 'Runs'],
  compare: ['compare', 'Compare'],
  pair: ['pair', 'Pair'],
  studies: ['study', 'Study'],
  overview: ['overview', 'Overview'],
  episodes: ['episodes', 'Episodes'],
  groups: ['groups', 'Groups'],
  group: ['group', 'GroupPage'],
  episode: ['episode', 'EpisodePage'],
  diff: ['diff', 'DiffPage'],
  tools: ['tools', 'Tools'],
  ledger: ['ledger', 'Ledger'],
  fleet: ['fleet', 'FleetPage'],
  evaluation: ['evaluation', 'EvaluationPage'],
  metrics: ['metrics', 'Metrics'],
  logs: ['logs', 'Logs'],
  config: ['config', 'Config'],
  search: ['search', 'Search'],
  health: ['health', 'HealthPage'],
};

/** What the address names. @param {string} path */
function route(path) {
  const parts = path.split('/').filter(Boolean).map(decodeURIComponent);
  if (parts[0] === 'runs' && parts.length >= 2) return { page: parts[2] ?? 'overview', run: parts[1] };
  if (parts[0] === 'studies' && parts.length >= 2) return { page: 'studies', run: '', study: parts[1] };
  return { page: parts[0] ?? 'runs', run: '' };
}

/** @type {Map<string, any>} */
const loaded = new Map();

/** @param {string} page */
function usePage(page) {
  const [, setTurn] = useState(0);
  const entry = PAGES[page];
  const module = entry?.[0];
  useEffect(() => {
    if (!module || loaded.has(module)) return;
    import(`./pages/${module}.js`).then(
      (found) => {
        loaded.set(module, found);
        setTurn((turn) => turn + 1);
      },
      (error) => {
        loaded.set(module, { failed: error });
        setTurn((turn) => turn + 1);
      },
    );
  }, [module]);
  if (!entry) return { unknown: true };
  const found = loaded.get(entry[0]);
  return found ? { failed: found.failed, view: found[entry[1]] } : {};
}

/** @param {{page: string, run: string, study?: string}} props */
function Page({ page, run, study }) {
  const found = usePage(page);
  const [error, reset] = useErrorBoundary();
  const at = place.value.path;
  useEffect(() => reset(), [at]);
  useEffect(() => {
    const words = page[0].toUpperCase() + page.slice(1);
    document.title = `${words}${run || study ? ` · ${run || study}` : ''} · trialrun`;
  }, [page, run, study]);
  if (error) return html`<${ErrorBox} error=${error} retry=${reset} />`;
  if (found.unknown) {
    return html`<${Head} title="No such page" /><div class="box bad" role="alert"><strong>There is no page ${t(at)}.</strong><p><a href="/runs">All runs</a></p></div>`;
  }
  if (found.failed) return html`<${ErrorBox} error=${found.failed} retry=${() => location.reload()} />`;
  if (!found.view) return html`<${Loading} />`;
  return html`<${found.view} key=${`${page} ${run}`} run=${run} study=${study} session=${session.value} />`;
}

/** @param {{run: string, page: string}} props */
function RunNav({ run, page }) {
  const asked = useApi(`/runs/${encodeURIComponent(run)}`);
  const summary = asked.data;
  const running = live.value[run]?.running;
  useEffect(() => {
    if (running !== undefined && asked.data) asked.reload();
  }, [running]);
  const left = isSnapshot ? ['search', 'logs'] : [];
  const pages = RUN_PAGES.filter(([name]) => !left.includes(name) && (name !== 'evaluation' || !summary || summary.kind === 'eval'));
  const current = { episode: 'episodes', group: 'groups', diff: 'episodes' }[page] ?? page;
  useKeys(
    RUN_PAGES.map(([name, title, keys]) => ({ keys, what: `Go to ${title}`, run: () => go(runHref(run, name)) })),
    [run],
  );
  return html`<nav class="side" aria-label="Pages of the run">
    <div class="who">
      <span class="name" title=${summary?.path ?? run}>${t(summary?.name ?? run)}</span>
      ${summary && html`<span><${Badge} name=${summary.paused ? 'paused' : summary.state} /> <span class="dim">${t(summary.kind)}</span></span>`}
    </div>
    <ul>
      ${pages.map(
        ([name, title]) => html`<li key=${name}>
          <a href=${runHref(run, name)} aria-current=${current === name ? 'page' : null}>${title}</a>
        </li>`,
      )}
      ${summary?.problems > 0 &&
      html`<li><a href=${runHref(run, 'health')} class="warned" aria-current=${page === 'health' ? 'page' : null}>Problems (${summary.problems})</a></li>`}
    </ul>
  </nav>`;
}

function Help() {
  const at = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const open = helpOpen.value;
  useEffect(() => {
    if (open && !at.current?.open) at.current?.showModal();
    if (!open) at.current?.close();
  }, [open]);
  const close = () => {
    helpOpen.value = false;
  };
  return html`<dialog ref=${at} class="help" onClose=${close} aria-labelledby="help-title">
    <h2 id="help-title">Keys</h2>
    <dl>
      ${shownKeys.value.map(
        (key) => html`<div key=${key.keys + key.what}><dt>${key.keys.split(' ').map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${key.what}</dd></div>`,
      )}
    </dl>
    <button onClick=${close}>Close</button>
  </dialog>`;
}

function Top() {
  const dark = (painted.value, isDark());
  const state = connected.value;
  return html`<header class="top">
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => {
      event.preventDefault();
      document.getElementById('main')?.focus();
    }}>Skip to content</a>
    <a class="brand" href="/runs"><img src="/static/icon.svg" alt="" width="20" height="20" />trialrun</a>
    <nav aria-label="Main"><a href="/runs" aria-current=${route(place.value.path).page === 'runs' ? 'page' : null}>Runs</a>
    ${!isSnapshot && html`<a href="/compare" aria-current=${route(place.value.path).page === 'compare' ? 'page' : null}>Compare</a>`}</nav>
    <span class="gap"></span>
    ${isSnapshot && html`<${Made} />`}
    ${session.value?.demo && html`<span class="badge plain">recorded demo</span>`}
    ${session.value?.role === 'viewer' && !isSnapshot && html`<span class="badge plain">viewer</span>`}
    ${state !== 'off' && html`<span class=${`live ${state}`} title=${state === 'on' ? 'Changes arrive as they happen' : 'The stream is interrupted; it connects again by itself'}>${state === 'on' ? 'live' : 'reconnecting'}</span>`}
    <button class="quiet" onClick=${switchTheme} aria-label=${dark ? 'Use light colours' : 'Use dark colours'}>${dark ? 'Light' : 'Dark'}</button>
    <button class="quiet" onClick=${() => { helpOpen.value = true; }} aria-label="Keyboard keys">?</button>
  </header>`;
}

/** What a snapshot is of. */
function Made() {
  const [text, setText] = useState('snapshot');
  useEffect(() => {
    kept().then((all) => setText(`snapshot of ${all.made}: ${all.rows.length} of ${all.of} episodes`));
  }, []);
  return html`<span class="badge plain made">${text}</span>`;
}

function App() {
  const at = route(place.value.path);
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  const path = place.value.path;
  const moved = useRef(path);
  useEffect(() => {
    if (moved.current !== path) main.current?.focus({ preventScroll: true });
    moved.current = path;
  }, [path]);
  useKeys([
    { keys: '?', what: 'Show these keys', run: () => { helpOpen.value = true; } },
    { keys: 'g r', what: 'Go to Runs', run: () => go('/runs') },
    { keys: 'T', what: 'Switch between light and dark', run: switchTheme },
  ]);
  return html`<${Top} />
    <div class=${at.run ? 'frame' : 'frame wide'}>
      ${at.run && html`<${RunNav} key=${at.run} run=${at.run} page=${at.page} />`}
      <main id="main" tabindex="-1" ref=${main}><${Page} ...${at} /></main>
    </div>
    <${Help} />`;
}

/** @param {{error: Error | null}} props */
function SignIn({ error }) {
  return html`<main class="signin">
    <h1>trialrun</h1>
    <p>Open the address that <code>trialrun dashboard</code> printed, or paste its token.</p>
    ${error instanceof ApiError && error.problem.status !== 401 && html`<${ErrorBox} error=${error} />`}
    <form onSubmit=${(/** @type {any} */ event) => {
      event.preventDefault();
      start(event.target.elements.token.value);
    }}>
      <label>Token <input class="field" name="token" type="password" autocomplete="current-password" required /></label>
      <button class="main">Sign in</button>
    </form>
  </main>`;
}

/** @param {string} token */
async function start(token) {
  const root = /** @type {HTMLElement} */ (document.getElementById('app'));
  try {
    session.value = token ? await post('/session', { token }) : await get('/session');
  } catch (error) {
    render(html`<${SignIn} error=${error} />`, root);
    return;
  }
  if (place.value.path === '/') go('/runs', { replace: true });
  render(html`<${App} />`, root);
}

applyTheme();
listen();
listenKeys();
const token = isSnapshot ? '' : (new URLSearchParams(location.hash.slice(1)).get('token') ?? '');
if (location.hash && !isSnapshot) history.replaceState(null, '', href(location.pathname) + location.search);
document.querySelector('.boot')?.remove();
start(token);
