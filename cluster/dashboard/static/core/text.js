/**
 * Texts of models and tools. They only ever become text nodes; characters that a reader cannot see,
 * or that reorder what is seen, are shown as marks.
 */

import { html } from './ui.js';

/* eslint-disable no-control-regex -- these are what is looked for */
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/u;
const EVERY = new RegExp(HIDDEN, 'gu');
/* eslint-enable no-control-regex */

/** @type {Record<string, string>} */
const NAMES = {
  '0000': 'NUL',
  '0007': 'BEL',
  '0008': 'BS',
  '000D': 'CR',
  '001B': 'ESC',
  '007F': 'DEL',
  '00AD': 'SHY',
  '200B': 'ZWSP',
  '200C': 'ZWNJ',
  '200D': 'ZWJ',
  '200E': 'LRM',
  '200F': 'RLM',
  '202A': 'LRE',
  '202B': 'RLE',
  '202C': 'PDF',
  '202D': 'LRO',
  '202E': 'RLO',
  '2060': 'WJ',
  '2066': 'LRI',
  '2067': 'RLI',
  '2068': 'FSI',
  '2069': 'PDI',
  FEFF: 'BOM',
};

/**
 * Split a text into plain pieces and hidden characters.
 * @param {string} text
 * @returns {{text: string, mark: string}[]} `mark` is the code point of a hidden character, or ''.
 */
export function pieces(text) {
  const found = [];
  let last = 0;
  for (const match of text.matchAll(EVERY)) {
    if (match.index > last) found.push({ text: text.slice(last, match.index), mark: '' });
    const code = Number(match[0].codePointAt(0)).toString(16).toUpperCase().padStart(4, '0');
    found.push({ text: NAMES[code] ?? `U+${code}`, mark: code });
    last = match.index + match[0].length;
  }
  if (last < text.length) found.push({ text: text.slice(last), mark: '' });
  return found;
}

/**
 * Return what Preact shows for a text: text nodes, and marks for hidden characters.
 * @param {string | number | null | undefined} value
 */
export function t(value) {
  if (value === null || value === undefined) return '';
  const text = String(value);
  if (!HIDDEN.test(text)) return text;
  return pieces(text).map((piece) =>
    piece.mark
      ? html`<span class="ctl" title=${`U+${piece.mark}`}>${piece.text}</span>`
      : piece.text,
  );
}

/**
 * The same as a plain string, for titles and labels.
 * @param {string} text
 */
export function plain(text) {
  return pieces(text)
    .map((piece) => (piece.mark ? `[${piece.text}]` : piece.text))
    .join('');
}

/**
 * Set a node's content to a text with marks, without Preact.
 * @param {HTMLElement} node
 * @param {string} text
 */
export function fill(node, text) {
  if (!HIDDEN.test(text)) {
    node.textContent = text;
    return;
  }
  for (const piece of pieces(text)) {
    if (!piece.mark) {
      node.append(piece.text);
      continue;
    }
    const mark = document.createElement('span');
    mark.className = 'ctl';
    mark.textContent = piece.text;
    node.append(mark);
  }
}
