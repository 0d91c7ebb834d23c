/** Light and dark: as the system has it, unless the reader chose. */

import { signal } from './ui.js';

const KEY = 'trialrun.theme';

/** Counts changes, so that drawings read their colours anew. */
export const painted = signal(0);
export const theme = signal(/** @type {'system' | 'light' | 'dark'} */ (stored()));

function stored() {
  const value = localStorage.getItem(KEY);
  return value === 'light' || value === 'dark' ? value : 'system';
}

export function applyTheme() {
  if (theme.value === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
  painted.value += 1;
}

export function isDark() {
  return theme.value === 'system'
    ? matchMedia('(prefers-color-scheme: dark)').matches
    : theme.value === 'dark';
}

export function switchTheme() {
  theme.value = isDark() ? 'light' : 'dark';
  localStorage.setItem(KEY, theme.value);
  applyTheme();
}

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', applyTheme);

/** @type {HTMLElement | null} */
let probe = null;

/**
 * The colour that a custom property stands for now, for canvases.
 * @param {string} name such as `--accent`
 */
export function color(name) {
  if (!probe) {
    probe = document.createElement('i');
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
