/** Keyboard keys: pages name theirs, `?` shows all of them. */

import { signal, useEffect } from './ui.js';

/** @typedef {{keys: string, what: string, run: () => void}} Key */

/** @type {Set<Key[]>} */
const groups = new Set();
export const helpOpen = signal(false);
export const shownKeys = signal(/** @type {Key[]} */ ([]));

let first = '';
let firstAt = 0;

/** @param {EventTarget | null} target */
function writing(target) {
  if (!(target instanceof HTMLElement)) return false;
  return target.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(target.tagName);
}

export function listenKeys() {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
    if (event.defaultPrevented) return;
    const now = Date.now();
    const chord = now - firstAt < 1200 ? `${first} ${event.key}` : '';
    const all = [...groups].reverse().flat();
    const found =
      (chord && all.find((key) => key.keys === chord)) || all.find((key) => key.keys === event.key);
    if (found) {
      event.preventDefault();
      first = '';
      found.run();
    } else {
      first = event.key;
      firstAt = now;
    }
  });
}

/**
 * Keys while a component is shown; later ones go first.
 * @param {Key[]} keys
 * @param {unknown[]} [depends]
 */
export function useKeys(keys, depends = []) {
  useEffect(() => {
    groups.add(keys);
    shownKeys.value = [...groups].flat();
    return () => {
      groups.delete(keys);
      shownKeys.value = [...groups].flat();
    };
  }, depends);
}
