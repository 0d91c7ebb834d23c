/** The filter line: completion while typing, and "did you mean" where it goes wrong. */

import { html, useEffect, useMemo, useRef, useState } from '../core/ui.js';
import { ApiError, get, runApi, useApi } from '../core/api.js';
import { count } from '../core/format.js';
import { t } from '../core/text.js';
import { useKeys } from '../core/keys.js';

/** @typedef {{text: string, insert: string, meaning: string}} Suggestion */

/**
 * @param {{run: string, value: string, onChange: (filter: string) => void}} props
 */
export function FilterLine({ run, value, onChange }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [text, setText] = useState(value);
  const [caret, setCaret] = useState(0);
  const [open, setOpen] = useState(false);
  const [picked, setPicked] = useState(-1);
  const language = useApi('/filter-language').data;
  const check = useCheck(run, text);
  useEffect(() => setText(value), [value]);
  useKeys([{ keys: '/', what: 'Write a filter', run: () => input.current?.focus() }]);
  const found = useMemo(() => suggestions(language, text, caret), [language, text, caret]);
  const take = (/** @type {Suggestion} */ one) => {
    const start = wordStart(text, caret);
    const next = text.slice(0, start) + one.insert + text.slice(caret);
    setText(next);
    const at = start + one.insert.length;
    setCaret(at);
    setPicked(-1);
    requestAnimationFrame(() => input.current?.setSelectionRange(at, at));
    input.current?.focus();
  };
  const commit = (/** @type {string} */ filter) => {
    setOpen(false);
    setPicked(-1);
    onChange(filter.trim());
  };
  const keydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      if (!found.length) return;
      event.preventDefault();
      setOpen(true);
      const step = event.key === 'ArrowDown' ? 1 : -1;
      setPicked((now) => (now + step + found.length) % found.length);
    } else if (event.key === 'Tab' && open && found.length && picked >= 0) {
      event.preventDefault();
      take(found[picked]);
    } else if (event.key === 'Enter') {
      if (open && picked >= 0) take(found[picked]);
      else commit(text);
    } else if (event.key === 'Escape') {
      if (open) setOpen(false);
      else input.current?.blur();
    }
  };
  const problem = check.problem;
  return html`<div class="filterline">
      <input
        class="field" type="text" ref=${input} value=${text} role="combobox" spellcheck=${false}
        autocomplete="off" autocapitalize="off" aria-label="Filter" aria-autocomplete="list"
        aria-expanded=${open && found.length > 0} aria-controls="completions" aria-invalid=${Boolean(problem)}
        aria-activedescendant=${open && picked >= 0 ? `completion-${picked}` : null}
        placeholder=${'Filter: reward<0.2 and tool("search").errors>0   (press /)'}
        onInput=${(/** @type {any} */ event) => {
          setText(event.target.value);
          setCaret(event.target.selectionStart);
          setOpen(true);
          setPicked(-1);
        }}
        onKeyDown=${keydown}
        onFocus=${() => setOpen(true)}
        onBlur=${() => setTimeout(() => setOpen(false), 150)}
      />
      ${value && html`<button onClick=${() => commit('')}>Clear</button>`}
      ${html`<ul class="complete" id="completions" role="listbox" aria-label="Completions" hidden=${!(open && found.length)}>
        ${found.map(
          (one, index) => html`<li key=${one.text} id=${`completion-${index}`} role="option" aria-selected=${index === picked}
            onMouseDown=${(/** @type {Event} */ event) => {
              event.preventDefault();
              take(one);
            }}><code>${one.text}</code><span>${one.meaning}</span></li>`,
        )}
      </ul>`}
    </div>
    ${problem && html`<${Wrong} text=${text} problem=${problem} fix=${(/** @type {string} */ next) => { setText(next); commit(next); }} />`}
    ${!problem && check.total !== null && text.trim() !== value && html`<p class="note" role="status">${count(check.total)} match; press Enter.</p>`}`;
}

/** @param {{text: string, problem: any, fix: (text: string) => void}} props */
function Wrong({ text, problem, fix }) {
  const start = problem.position ?? text.length;
  const end = start + (problem.length || 1);
  return html`<div class="wrong" role="status">
    <span>${t(problem.detail)} </span>
    ${problem.position !== null && problem.position !== undefined && html`<span class="mono">${text.slice(0, start)}<mark>${text.slice(start, end) || ' '}</mark>${text.slice(end)}</span> `}
    ${problem.suggestions?.length > 0 && html`<span>Did you mean ${problem.suggestions.slice(0, 4).map(
      (/** @type {string} */ one) => html`<button class="link" key=${one} onClick=${() => fix(text.slice(0, start) + one + text.slice(end))}>${t(one)}</button> `,
    )}?</span>`}
    ${!problem.suggestions?.length && problem.fix && html`<span class="dim">${t(problem.fix)}</span>`}
  </div>`;
}

/**
 * Ask the server about a filter after a pause.
 * @param {string} run
 * @param {string} text
 */
function useCheck(run, text) {
  const [state, setState] = useState(/** @type {{total: number | null, problem: any}} */ ({ total: null, problem: null }));
  useEffect(() => {
    if (!text.trim()) {
      setState({ total: null, problem: null });
      return undefined;
    }
    const abort = new AbortController();
    const timer = setTimeout(() => {
      get(runApi(run, 'filter', { filter: text }), abort.signal).then(
        (answer) => setState({ total: answer.total, problem: null }),
        (error) => {
          if (error instanceof ApiError) setState({ total: null, problem: error.problem });
        },
      );
    }, 220);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [run, text]);
  return state;
}

/** @param {string} text @param {number} caret */
function wordStart(text, caret) {
  let start = caret;
  while (start > 0 && /[\w.]/.test(text[start - 1])) start -= 1;
  return start;
}

/**
 * @param {import('../core/types').FilterLanguage | null} language
 * @param {string} text
 * @param {number} caret
 * @returns {Suggestion[]}
 */
export function suggestions(language, text, caret) {
  if (!language) return [];
  if (!text) return language.examples.map((one) => ({ text: one, insert: one, meaning: 'example' }));
  const word = text.slice(wordStart(text, caret), caret).toLowerCase();
  const before = text.slice(0, wordStart(text, caret));
  if ((before.match(/"/g) ?? []).length % 2 === 1) return [];
  if (!word && !/(^|\band|\bor|\bnot|\()\s*$/i.test(before)) return [];
  const fields = language.fields
    .filter((field) => field.name.toLowerCase().includes(word))
    .sort((a, b) => Number(b.name.startsWith(word)) - Number(a.name.startsWith(word)))
    .map((field) => ({
      text: field.type === 'flag' ? field.name : field.example,
      insert: field.example.includes('(') ? field.example : field.name,
      meaning: field.meaning,
    }));
  return fields.filter((one) => one.insert !== word).slice(0, 9);
}
