/** Line charts over steps, with uPlot. */

import uPlot from '../vendor/uplot.js';
import { html, useEffect, useMemo, useRef, useState } from './ui.js';
import { isSnapshot } from './snapshot.js';
import { t } from './text.js';
import { num } from './format.js';
import { color, painted } from './theme.js';

/** @typedef {{label: string, steps: number[], values: (number | null)[], dim?: boolean}} Line */

const COLORS = ['--c1', '--c2', '--c3', '--c4', '--c5', '--c6', '--c7', '--c8'];

let styled = false;

function style() {
  if (styled || isSnapshot) return; // a snapshot has its styles in the page
  styled = true;
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = '/static/vendor/uplot.css';
  document.head.append(link);
}

/**
 * All lines over the union of their steps, as uPlot takes them.
 * @param {Line[]} lines
 */
export function joined(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const index = new Map(steps.map((step, at) => [step, at]));
  const columns = lines.map((line) => {
    /** @type {(number | null | undefined)[]} */
    const column = new Array(steps.length).fill(undefined);
    line.steps.forEach((step, at) => {
      column[/** @type {number} */ (index.get(step))] = line.values[at];
    });
    return column;
  });
  return /** @type {any} */ ([steps, ...columns]);
}

/**
 * Exponentially smoothed values; gaps stay gaps.
 * @param {(number | null)[]} values
 * @param {number} weight of the past, from 0 to below 1
 */
export function smoothed(values, weight) {
  let last = /** @type {number | null} */ (null);
  return values.map((value) => {
    if (value === null) return null;
    last = last === null ? value : last * weight + value * (1 - weight);
    return last;
  });
}

/** @param {Line} line */
function last(line) {
  return line.values.findLast((value) => value !== null && value !== undefined) ?? null;
}

/**
 * @param {{title: string, unit?: string, lines: Line[], note?: string, height?: number,
 *   onStep?: (step: number) => void, stepWords?: string, sync?: string}} props
 */
export function Chart({ title, unit = '', lines, note = '', height = 168, onStep, stepWords, sync }) {
  const at = useRef(/** @type {HTMLDivElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const [cursor, setCursor] = useState(/** @type {number | null} */ (null));
  const paint = painted.value;
  const data = useMemo(() => joined(lines), [lines]);
  const shape = lines.map((line) => line.label).join('\n');
  const step = useRef(onStep);
  step.current = onStep;
  useEffect(() => {
    style();
    const node = at.current;
    if (!node || !lines.length) return undefined;
    const made = new uPlot(options(node, height, unit, lines, sync, setCursor), data, node);
    plot.current = made;
    const pick = () => {
      const index = made.cursor.idx;
      if (step.current && index !== null && index !== undefined) step.current(made.data[0][index]);
    };
    made.over.addEventListener('click', pick);
    const observer = new ResizeObserver(() => made.setSize({ width: node.clientWidth, height }));
    observer.observe(node);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, unit, paint, height]);
  useEffect(() => plot.current?.setData(data), [data]);
  const steps = data[0];
  const move = (/** @type {KeyboardEvent} */ event) => {
    const now = cursor ?? steps.length - 1;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (event.key === 'Enter' && onStep && cursor !== null) onStep(steps[cursor]);
    if (to === undefined || !plot.current) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(steps.length - 1, to));
    plot.current.setCursor({ left: plot.current.valToPos(steps[index], 'x'), top: 10 });
    setCursor(index);
  };
  const ends = lines.map((line) => `${line.label}: ${num(last(line))}`).join('; ');
  return html`<figure class="chart">
    <figcaption>
      <span class="title">${t(title)}</span>
      ${unit && html`<span class="unit">${t(unit)}</span>`}
      ${cursor !== null && steps[cursor] !== undefined && html`<span class="at">step ${steps[cursor]}</span>`}
      ${note && html`<${Note} text=${note} />`}
    </figcaption>
    ${lines.length === 0
      ? html`<div class="nothing" style=${{ height: `${height}px` }}>${t(note || 'Nothing was recorded.')}</div>`
      : html`<div
          class=${onStep ? 'plot clicks' : 'plot'}
          ref=${at}
          tabindex="0"
          role="img"
          title=${onStep ? stepWords : null}
          aria-label=${`${title}${unit ? ` in ${unit}` : ''}, ${steps.length} steps. Last ${ends}.${onStep ? ' Arrow keys choose a step, Enter opens its episodes.' : ''}`}
          onKeyDown=${move}
        ></div>`}
    <ul class="legend">
      ${lines.map((line, index) => {
        const value = cursor === null ? last(line) : data[index + 1][cursor];
        return html`<li key=${line.label}><i class=${`k${index % COLORS.length}`}></i>${t(line.label)} <b>${num(value)}</b></li>`;
      })}
    </ul>
  </figure>`;
}

/** A text behind an information mark. @param {{text: string}} props */
export function Note({ text }) {
  const [open, setOpen] = useState(false);
  return html`<span class="info">
    <button class="mark" aria-expanded=${open} aria-label="What this counts" onClick=${() => setOpen(!open)} onBlur=${() => setOpen(false)}>i</button>
    ${open && html`<span class="tip" role="note">${t(text)}</span>`}
  </span>`;
}

/**
 * @param {HTMLElement} node @param {number} height @param {string} unit @param {Line[]} lines
 * @param {string | undefined} sync @param {(index: number | null) => void} onCursor
 */
function options(node, height, unit, lines, sync, onCursor) {
  const muted = color('--muted');
  const font = '11px system-ui, sans-serif';
  const grid = { stroke: color('--grid'), width: 1 };
  const single = lines.every((line) => line.steps.length < 2);
  return /** @type {any} */ ({
    width: node.clientWidth || 300,
    height,
    legend: { show: false },
    cursor: {
      y: false,
      points: { size: 7 },
      sync: sync ? { key: sync } : undefined,
      drag: { x: false, y: false },
    },
    hooks: {
      setCursor: [(/** @type {any} */ self) => onCursor(self.cursor.idx ?? null)],
    },
    scales: {
      x: { time: false },
      y: unit === 'share' ? { range: [0, 1.02] } : { range: padded },
    },
    axes: [
      { stroke: muted, font, grid: { show: false }, ticks: { show: false }, size: 22, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] },
      { stroke: muted, font, grid, ticks: { show: false }, size: 46, splits: undefined, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((value) => num(value)) },
    ],
    series: [
      {},
      ...lines.map((line, index) => ({
        stroke: color(COLORS[index % COLORS.length]),
        width: line.dim ? 1 : 1.6,
        alpha: line.dim ? 0.35 : 1,
        spanGaps: false,
        points: { show: single, size: 6 },
      })),
    ],
  });
}

/** @param {any} _ @param {number} low @param {number} high */
function padded(_, low, high) {
  if (low === null || high === null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const pad = (high - low) * 0.08;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}
