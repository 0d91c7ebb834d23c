/** Where the reader is: the path and the query are all of a page's state. */

import { isSnapshot } from './snapshot.js';
import { signal } from './ui.js';

/** @typedef {{path: string, query: URLSearchParams}} Place */

/** The address that pages see; a snapshot, whose own address is a file's, has it behind `#`. */
function address() {
  if (!isSnapshot) return location.pathname + location.search;
  return location.hash.startsWith('#/') ? location.hash.slice(1) : '/';
}

/** @returns {Place} */
function read() {
  const [path, query = ''] = address().split('?', 2);
  return { path, query: new URLSearchParams(query) };
}

export const place = signal(read());

/**
 * An address with a query; empty values are left out, lists repeat the name.
 * @param {string} path
 * @param {Record<string, string | number | boolean | string[] | null | undefined>} [query]
 */
export function href(path, query = {}) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== '' && one !== false) {
        given.append(name, String(one));
      }
    }
  }
  const text = given.toString();
  return text ? `${path}?${text}` : path;
}

/**
 * A page of a run.
 * @param {string} run
 * @param {string} page
 * @param {Parameters<typeof href>[1]} [query]
 */
export function runHref(run, page, query) {
  return href(`/runs/${encodeURIComponent(run)}/${page}`, query);
}

/**
 * @param {string} url
 * @param {{replace?: boolean}} [options]
 */
export function go(url, { replace = false } = {}) {
  if (url === address()) return;
  const before = place.value.path;
  if (isSnapshot && replace) location.replace(`#${url}`);
  else if (isSnapshot) location.hash = url;
  else history[replace ? 'replaceState' : 'pushState'](null, '', url);
  place.value = read();
  if (place.value.path !== before) scrollTo(0, 0);
}

/**
 * Change parts of the query and keep the rest.
 * @param {Parameters<typeof href>[1]} changes
 * @param {{replace?: boolean}} [options]
 */
export function setQuery(changes, options) {
  /** @type {Record<string, string[] | string | number | boolean | null | undefined>} */
  const query = {};
  for (const name of new Set(place.value.query.keys())) query[name] = place.value.query.getAll(name);
  go(href(place.value.path, { ...query, ...changes }), options);
}

/** @param {string} name @param {string} [fallback] */
export function param(name, fallback = '') {
  return place.value.query.get(name) ?? fallback;
}

/** Follow links within the pages without loading them anew. */
export function listen() {
  addEventListener(isSnapshot ? 'hashchange' : 'popstate', () => {
    place.value = read();
  });
  document.addEventListener('click', (event) => {
    if (event.defaultPrevented || event.button !== 0) return;
    // The addresses of a snapshot's pages are no files that a new tab could open.
    const elsewhere = event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;
    if (elsewhere && !isSnapshot) return;
    const link = event.target instanceof Element ? event.target.closest('a[href]') : null;
    if (!(link instanceof HTMLAnchorElement) || link.origin !== location.origin) return;
    if (link.hasAttribute('download') || link.target || link.pathname.startsWith('/api/')) return;
    event.preventDefault();
    go(link.pathname + link.search);
  });
}
