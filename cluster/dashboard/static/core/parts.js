/** Small parts that all pages use. */

import { html, useEffect, useRef, useState } from './ui.js';
import { t, plain } from './text.js';
import { count, fixed, words } from './format.js';
import { ApiError } from './api.js';
import { color, painted } from './theme.js';

/** @param {{what?: string}} props */
export function Loading({ what = 'Reading' }) {
  return html`<div class="loading" role="status"><span class="spin" aria-hidden="true"></span>${what} …</div>`;
}

/** @param {{error: Error, retry?: () => void}} props */
export function ErrorBox({ error, retry }) {
  const fix = error instanceof ApiError ? error.fix : '';
  return html`<div class="box bad" role="alert">
    <strong>${t(error.message)}</strong>
    ${fix && html`<p>${t(fix)}</p>`}
    ${retry && html`<button onClick=${retry}>Ask again</button>`}
  </div>`;
}

/** @param {{title: string, children?: any}} props */
export function Empty({ title, children }) {
  return html`<div class="empty"><strong>${title}</strong>${children && html`<p>${children}</p>`}</div>`;
}

/**
 * What a page shows while it has no answer; the answer's view otherwise.
 * @param {import('./api.js').Asked} asked
 * @param {(data: any) => any} view
 */
export function shown(asked, view) {
  if (asked.error && !asked.data) return html`<${ErrorBox} error=${asked.error} retry=${asked.reload} />`;
  if (!asked.data) return html`<${Loading} />`;
  return view(asked.data);
}

/** @param {{title: any, children?: any, note?: any}} props */
export function Head({ title, children, note }) {
  return html`<header class="head">
    <h1 tabindex="-1">${title}</h1>
    ${note && html`<p class="note">${note}</p>`}
    ${children && html`<div class="tools">${children}</div>`}
  </header>`;
}

/** @type {Record<string, string>} */
const TONES = {
  answered: 'good',
  trained: 'good',
  running: 'live',
  paused: 'warn',
  finished: 'plain',
  ok: 'good',
  won: 'good',
  lost: 'bad',
  dropped: 'warn',
  retried: 'warn',
  truncated: 'warn',
  deadline: 'warn',
  timeout: 'warn',
  stopped: 'warn',
  policy_error: 'bad',
  infra_failed: 'bad',
  tool_error: 'bad',
  infra_error: 'bad',
  prompt_too_long: 'warn',
  'failed start': 'bad',
  unreadable: 'bad',
};

/** A word with a colour that only repeats what it says. @param {{name: string}} props */
export function Badge({ name }) {
  return html`<span class=${`badge ${TONES[name] ?? 'plain'}`}>${t(words(name))}</span>`;
}

/** @param {{names: string[] | null | undefined, notes?: Record<string, string>}} props */
export function Flags({ names, notes = {} }) {
  return (names ?? []).map(
    (name) => html`<span class="flag" title=${plain(notes[name] ?? FLAG_NOTES[name] ?? '')}>${t(words(name))}</span>`,
  );
}

/** @type {Record<string, string>} */
export const FLAG_NOTES = {
  garbled: 'the policy wrote replacement, control or private-use characters',
  loop: 'the policy repeated a turn or a call, or the same few words',
  truncated: 'a turn or the episode ended at a limit',
  answer_in_tool: "the answer stands literally in a tool's output",
  trial_touched_state: 'trial calls ran in the session that is graded',
};

/** A reward with a bar. @param {{value: number | null | undefined}} props */
export function Reward({ value }) {
  if (value === null || value === undefined) return html`<span class="dim">–</span>`;
  const width = `${Math.max(0, Math.min(1, value)) * 100}%`;
  return html`<span class="reward"><span class="bar" aria-hidden="true"><i style=${{ width }}></i></span>${fixed(value)}</span>`;
}

/** A value with its sign, for advantages. @param {{value: number | null | undefined, digits?: number}} props */
export function Signed({ value, digits = 2 }) {
  if (value === null || value === undefined) return html`<span class="dim">–</span>`;
  const text = fixed(value, digits);
  const tone = value > 0 ? 'up' : value < 0 ? 'down' : 'dim';
  return html`<span class=${tone}>${value > 0 ? `+${text}` : text.replace('-', '−')}</span>`;
}

/** How much of the details is read. @param {{coverage: any}} props */
export function Coverage({ coverage }) {
  if (!coverage || coverage.complete) return null;
  return html`<p class="coverage" role="status">
    Details of ${count(coverage.details)} of ${count(coverage.episodes)} episodes are read; figures
    from details count only those. <progress value=${coverage.details} max=${coverage.episodes || 1} aria-label="Details read"></progress>
  </p>`;
}

/**
 * A line of values without axes.
 * @param {{values: (number | null)[], label: string, width?: number, height?: number}} props
 */
export function Spark({ values, label, width = 110, height = 24 }) {
  const at = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const paint = painted.value;
  useEffect(() => {
    const canvas = at.current;
    const context = canvas?.getContext('2d');
    if (!canvas || !context) return;
    const scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.scale(scale, scale);
    const known = values.filter((value) => value !== null);
    const low = Math.min(...known);
    const span = Math.max(...known) - low || 1;
    context.strokeStyle = color('--accent');
    context.lineWidth = 1.5;
    context.lineJoin = 'round';
    context.beginPath();
    let open = false;
    values.forEach((value, index) => {
      if (value === null) {
        open = false;
        return;
      }
      const x = 2 + (index / Math.max(1, values.length - 1)) * (width - 4);
      const y = height - 3 - ((value - low) / span) * (height - 6);
      if (open) context.lineTo(x, y);
      else context.moveTo(x, y);
      open = true;
    });
    context.stroke();
  }, [values.join(), paint, width, height]);
  if (values.filter((value) => value !== null).length < 2) return html`<span class="dim">–</span>`;
  return html`<canvas ref=${at} class="spark" role="img" aria-label=${label} style=${{ width: `${width}px`, height: `${height}px` }}></canvas>`;
}

/**
 * A row of choices of which one is taken.
 * @param {{label: string, value: string, options: [string, string][], onPick: (value: string) => void}} props
 */
export function Choice({ label, value, options, onPick }) {
  return html`<div class="choice" role="group" aria-label=${label}>
    ${options.map(
      ([name, title]) =>
        html`<button key=${name} aria-pressed=${value === name} onClick=${() => onPick(name)}>${title}</button>`,
    )}
  </div>`;
}

/** @param {{pairs: [string, any][]}} props */
export function Pairs({ pairs }) {
  const given = pairs.filter(([, value]) => value !== '' && value !== null && value !== undefined);
  return html`<dl class="pairs">
    ${given.map(([name, value]) => html`<div key=${name}><dt>${t(name)}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** A text field that reports after a pause or on Enter. @param {{value: string, label: string, placeholder?: string, onChange: (value: string) => void, inputRef?: any, type?: string}} props */
export function Field({ value, label, placeholder, onChange, inputRef, type = 'search' }) {
  const timer = useRef(0);
  // Its own state: the page may be drawn anew while somebody writes.
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return html`<input
    type=${type}
    class="field"
    ref=${inputRef}
    value=${text}
    aria-label=${label}
    placeholder=${placeholder ?? label}
    spellcheck=${false}
    autocomplete="off"
    onInput=${(/** @type {any} */ event) => {
      clearTimeout(timer.current);
      const written = event.target.value;
      setText(written);
      timer.current = window.setTimeout(() => onChange(written), 350);
    }}
    onKeyDown=${(/** @type {any} */ event) => {
      if (event.key === 'Enter') {
        clearTimeout(timer.current);
        onChange(event.target.value);
      } else if (event.key === 'Escape') event.target.blur();
    }}
  />`;
}

/** A text of a filter's value. @param {string} value */
export function quoted(value) {
  return `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
}

/** Join conditions of the filter language. @param {(string | null | undefined)[]} conditions */
export function both(...conditions) {
  const given = conditions.filter(Boolean);
  if (given.length < 2) return given[0] ?? '';
  return given.map((one) => (/\bor\b/i.test(one ?? '') ? `(${one})` : one)).join(' and ');
}
