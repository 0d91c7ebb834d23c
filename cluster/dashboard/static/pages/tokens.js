/**
 * The tokens of an episode with values laid over them: advantage, logprob, mismatch, ...
 *
 * Thirty thousand tokens are drawn without Preact: a span each, whose class is all that changes
 * with the overlay.
 */

import { html, useEffect, useMemo, useRef, useState } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { param, setQuery } from '../core/router.js';
import { count, num } from '../core/format.js';
import { Choice, Loading, ErrorBox } from '../core/parts.js';
import { fill, t } from '../core/text.js';

/** @typedef {import('../core/types').TokenColumns} Columns */
/** @typedef {import('../core/types').Overlay} Overlay */

const PHASES = ['prompt', 'trial', 'experience', 'execution', 'observation'];
const LEVELS = 5;
const CATEGORIES = 6;
/** Tokens of a section: the browser skips the layout of sections out of sight. */
const SECTION = 400;

/** @type {Record<string, string>} */
const KIND = { advantage: 'signed', mismatch: 'signed', version: 'category', loss_mask: 'mask', phase: 'category' };

/** @param {{detail: import('../core/types').EpisodeDetail, run: string}} props */
export function Tokens({ detail, run }) {
  const { row, overlays } = detail;
  const asked = useApi(runApi(run, 'episode/tokens', { id: row.episode, attempt: row.attempt, texts: true }));
  const first = overlays.find((one) => one.available)?.name ?? '';
  const name = param('overlay', first);
  const overlay = overlays.find((one) => one.name === name);
  return html`<div class="bar"><${Choice} label="Overlay" value=${name} options=${[...overlays.map((one) => /** @type {[string, string]} */ ([one.name, one.title])), ['none', 'None']]} onPick=${(/** @type {string} */ value) => setQuery({ overlay: value }, { replace: true })} /></div>
    ${overlay && !overlay.available && html`<div class="box warn" role="note"><strong>${t(overlay.title)} is empty.</strong><p>${t(overlay.reason)}</p></div>`}
    ${overlay?.available && html`<${Scale} overlay=${overlay} />`}
    ${asked.error && html`<${ErrorBox} error=${asked.error} />`}
    ${!asked.data && !asked.error && html`<${Loading} what="Reading tokens" />`}
    ${asked.data && html`<${Drawn} columns=${asked.data} overlay=${overlay?.available ? overlay : null} />`}`;
}

/** @param {{overlay: Overlay}} props */
function Scale({ overlay }) {
  const kind = KIND[overlay.name] ?? 'size';
  const unit = overlay.unit ? ` ${overlay.unit}` : '';
  if (kind === 'category') return html`<p class="scale">Neighbouring values have different colours; ${count(overlay.tokens)} tokens have one.</p>`;
  if (kind === 'mask') return html`<p class="scale"><i class="p3"></i> trained on <i class="z0"></i> not trained on</p>`;
  const low = kind === 'signed' ? -extent(overlay) : (overlay.low ?? 0);
  const high = kind === 'signed' ? extent(overlay) : (overlay.high ?? 0);
  const sizes = ['z0', 'p1', 'p2', 'p3', 'p4', 'p5'];
  const steps = kind === 'signed' ? ['m5', 'm4', 'm3', 'm2', 'm1', 'z0', 'p1', 'p2', 'p3', 'p4', 'p5'] : overlay.name.includes('logprob') ? sizes.reverse() : sizes;
  return html`<p class="scale"><span>${num(low)}</span><span>${steps.map((one) => html`<i key=${one} class=${one}></i>`)}</span><span>${num(high)}${unit}</span><span>· ${count(overlay.tokens)} tokens have a value</span></p>`;
}

/** @param {Overlay} overlay */
function extent(overlay) {
  return Math.max(Math.abs(overlay.low ?? 0), Math.abs(overlay.high ?? 0)) || 1;
}

/**
 * The class that shows a value.
 * @param {Overlay} overlay @param {number | boolean | null | undefined} value
 */
export function paintOf(overlay, value) {
  if (value === null || value === undefined) return 'k none';
  const kind = KIND[overlay.name] ?? 'size';
  if (kind === 'mask') return value ? 'k p3' : 'k none';
  const number = Number(value);
  if (kind === 'category') return `k v${((number % CATEGORIES) + CATEGORIES) % CATEGORIES}`;
  if (kind === 'signed') {
    const level = Math.min(LEVELS, Math.ceil((Math.abs(number) / extent(overlay)) * LEVELS - 1e-9));
    return level ? `k ${number > 0 ? 'p' : 'm'}${level}` : 'k z0';
  }
  const low = overlay.low ?? 0;
  const span = (overlay.high ?? 0) - low || 1;
  // A log-probability says more the lower it is: unlikely tokens are the dark ones.
  const share = overlay.name.includes('logprob') ? ((overlay.high ?? 0) - number) / span : (number - low) / span;
  const level = Math.max(0, Math.min(LEVELS, Math.round(share * LEVELS)));
  return level ? `k p${level}` : 'k z0';
}

/** Runs of one phase, cut into sections. @param {number[]} phases */
export function sections(phases) {
  /** @type {{phase: number, start: number, end: number}[]} */
  const found = [];
  for (let at = 0; at < phases.length; at += 1) {
    const last = found.at(-1);
    if (last && last.phase === phases[at] && at - last.start < SECTION) last.end = at + 1;
    else found.push({ phase: phases[at], start: at, end: at + 1 });
  }
  return found;
}

/** @param {HTMLElement} root @param {Columns} columns @returns {HTMLElement[]} a node for each token */
function build(root, columns) {
  /** @type {HTMLElement[]} */
  const nodes = [];
  const all = document.createDocumentFragment();
  for (const { phase, start, end } of sections(columns.phase)) {
    const section = document.createElement('section');
    section.className = PHASES[phase] ?? '';
    const tag = document.createElement('span');
    tag.className = 'tag';
    tag.textContent = `${PHASES[phase] ?? phase} · tokens ${start} to ${end - 1}`;
    section.append(tag);
    for (let at = start; at < end; at += 1) {
      const node = document.createElement('span');
      node.className = 'k';
      node.dataset.at = String(at);
      if (columns.text) fill(node, columns.text[at]);
      else node.textContent = String(columns.token_id[at]);
      section.append(node);
      nodes.push(node);
    }
    all.append(section);
  }
  root.replaceChildren(all);
  return nodes;
}

/** @param {{columns: Columns, overlay: Overlay | null}} props */
function Drawn({ columns, overlay }) {
  const root = useRef(/** @type {HTMLDivElement | null} */ (null));
  const nodes = useRef(/** @type {HTMLElement[]} */ ([]));
  const [at, setAt] = useState(0);
  const now = useRef(0);
  const values = useMemo(() => (overlay ? /** @type {any} */ (columns)[overlay.name] : null), [columns, overlay]);
  useEffect(() => {
    if (root.current) nodes.current = build(root.current, columns);
  }, [columns]);
  useEffect(() => {
    nodes.current.forEach((node, index) => {
      node.className = overlay ? paintOf(overlay, values?.[index]) : 'k';
    });
  }, [columns, overlay, values]);
  const choose = (/** @type {number} */ next) => {
    const index = Math.max(0, Math.min(columns.token_id.length - 1, next));
    nodes.current[now.current]?.classList.remove('at');
    nodes.current[index]?.classList.add('at');
    now.current = index;
    setAt(index);
    return index;
  };
  const over = (/** @type {any} */ event) => {
    const node = event.target.closest?.('.k');
    if (node?.dataset.at) choose(Number(node.dataset.at));
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!step) return;
    event.preventDefault();
    nodes.current[choose(now.current + step)]?.scrollIntoView({ block: 'nearest' });
  };
  if (!columns.token_id.length) return html`<div class="empty"><strong>No tokens are stored.</strong></div>`;
  return html`${columns.text_reason && html`<p class="note">Shown as ids: ${t(columns.text_reason)}</p>`}
    <${Inspector} columns=${columns} at=${at} />
    <div class=${columns.text ? 'tokens' : 'tokens ids'} ref=${root} tabindex="0" role="group" aria-label=${`${count(columns.token_id.length)} tokens; arrow keys move`} onMouseOver=${over} onKeyDown=${move}></div>`;
}

/** @param {{columns: Columns, at: number}} props */
function Inspector({ columns, at }) {
  /** @type {[string, any][]} */
  const said = [
    ['advantage', columns.advantage[at]],
    ['logprob', columns.logprob[at]],
    ['trainer', columns.trainer_logprob[at]],
    ['mismatch', columns.mismatch[at]],
    ['entropy', columns.entropy[at]],
    ['version', columns.version[at]],
    ['staleness', columns.staleness[at]],
  ];
  return html`<div class="inspect"><span class="dim">token ${at}</span><b class="mono">${t(columns.text ? JSON.stringify(columns.text[at]).slice(1, -1) : '')}</b><span class="dim">id ${columns.token_id[at]}</span><span class=${`tag ${PHASES[columns.phase[at]]}`}>${PHASES[columns.phase[at]]}</span><span class="dim">${columns.loss_mask[at] ? 'trained on' : 'not trained on'}</span>
    ${said.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => html`<span key=${name}><span class="dim">${name}</span> ${num(value, 4)}</span>`)}</div>`;
}
