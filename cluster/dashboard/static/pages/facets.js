/** Facets with counts, and a histogram whose bars can be brushed into a filter. */

import { html, useEffect, useRef, useState } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { count, num, words } from '../core/format.js';
import { color, painted } from '../core/theme.js';
import { quoted } from '../core/parts.js';
import { param, setQuery } from '../core/router.js';
import { t } from '../core/text.js';

/**
 * The filter that a facet's value stands for.
 * @param {{field: string, quote: boolean}} facet
 * @param {string} value
 */
export function facetFilter(facet, value) {
  if (facet.field === 'flag') return value;
  if (facet.field === 'tool') return `tool(${quoted(value)}).calls>0`;
  return `${facet.field}=${facet.quote ? quoted(value) : value}`;
}

/** @param {string} filter @param {string} condition */
export function holds(filter, condition) {
  return filter.split(/\s+and\s+/).includes(condition);
}

/** Add a condition, or take it away where it is there. @param {string} filter @param {string} condition */
export function toggled(filter, condition) {
  const parts = filter.split(/\s+and\s+/).filter(Boolean);
  if (parts.includes(condition)) return parts.filter((one) => one !== condition).join(' and ');
  const now = /\bor\b/i.test(filter) ? `(${filter})` : filter;
  return now ? `${now} and ${condition}` : condition;
}

/** Ask again when more details were read. @param {import('../core/api.js').Asked} asked @param {number} read */
function useFresh(asked, read) {
  const last = useRef(read);
  useEffect(() => {
    if (asked.data && last.current !== read) asked.reload();
    last.current = read;
  }, [read]);
}

/** @param {{run: string, filter: string, snapshot: number | null, read: number, onFilter: (filter: string) => void}} props */
export function FacetList({ run, filter, snapshot, read, onFilter }) {
  const asked = useApi(snapshot === null ? null : runApi(run, 'facets', { filter, snapshot }));
  useFresh(asked, read);
  const facets = /** @type {any[]} */ (asked.data?.facets ?? []);
  const total = asked.data?.total || 1;
  const shown = facets.filter((facet) => facet.values.length > 1 || (facet.values.length === 1 && ['flag', 'tool', 'reason', 'outcome', 'state'].includes(facet.field)));
  return html`<details class="onlynarrow" open=${matchMedia('(min-width: 821px)').matches}>
    <summary class="button">Facets</summary>
    <div class="facets" aria-label="Facets" role="group">
      ${shown.map(
        (facet) => html`<section key=${facet.field}>
          <h2>${t(facet.title)}</h2>
          ${facet.values.slice(0, 9).map((/** @type {any} */ one) => {
            const condition = facetFilter(facet, one.value);
            return html`<button key=${one.value} aria-pressed=${holds(filter, condition)} onClick=${() => onFilter(toggled(filter, condition))}>
              <i style=${{ width: `calc((100% - 12px) * ${one.count / total})` }}></i>
              <span>${t(words(one.value) || 'none')}</span><span class="n">${count(one.count)}</span>
            </button>`;
          })}
          ${facet.others > 0 && html`<p class="dim">and ${count(facet.others)} others</p>`}
        </section>`,
      )}
    </div>
  </details>`;
}

const FIELDS = [
  ['reward', 'Reward'],
  ['advantage', 'Advantage'],
  ['wall_s', 'Seconds'],
  ['tokens', 'Tokens'],
  ['turns', 'Turns'],
  ['tool_s', 'Seconds in tools'],
  ['staleness', 'Staleness'],
];

/** @param {{run: string, filter: string, snapshot: number | null, read: number, onFilter: (filter: string) => void}} props */
export function Brush({ run, filter, snapshot, read, onFilter }) {
  const field = param('by', 'reward');
  const asked = useApi(snapshot === null ? null : runApi(run, 'histogram', { field, filter, snapshot, bins: 40 }));
  useFresh(asked, read);
  const histogram = asked.data;
  const at = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [range, setRange] = useState(/** @type {[number, number] | null} */ (null));
  const [hover, setHover] = useState(/** @type {number | null} */ (null));
  const paint = painted.value;
  const counts = /** @type {number[]} */ (histogram?.counts ?? []);
  const edges = /** @type {number[]} */ (histogram?.edges ?? []);
  useEffect(() => {
    const canvas = at.current;
    if (!canvas) return undefined;
    const draw = () => paintBars(canvas, counts, range);
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(canvas);
    return () => observer.disconnect();
  }, [counts, range, paint]);
  const bin = (/** @type {PointerEvent} */ event) => {
    const box = /** @type {HTMLElement} */ (event.currentTarget).getBoundingClientRect();
    return Math.max(0, Math.min(counts.length - 1, Math.floor(((event.clientX - box.left) / box.width) * counts.length)));
  };
  const apply = (/** @type {[number, number]} */ [first, last]) => {
    const [a, b] = [Math.min(first, last), Math.max(first, last)];
    const end = b === counts.length - 1 ? '<=' : '<';
    const condition = `${field}>=${round(edges[a], -1)} and ${field}${end}${round(edges[b + 1], 1)}`;
    const rest = filter.split(/\s+and\s+/).filter((one) => one && !one.startsWith(`${field}>=`) && !one.startsWith(`${field}<`));
    onFilter([...rest, condition].join(' and '));
    setRange(null);
  };
  const focus = range ? range[1] : hover;
  return html`<div class="histo">
    <label class="inline"><span class="sr">Histogram of</span><select value=${field} onChange=${(/** @type {any} */ event) => setQuery({ by: event.target.value === 'reward' ? '' : event.target.value }, { replace: true })}>
      ${FIELDS.map(([name, title]) => html`<option key=${name} value=${name}>${title}</option>`)}
    </select></label>
    <canvas ref=${at} role="img" aria-label=${`Histogram of ${field}: ${counts.length} bars from ${num(edges[0])} to ${num(edges.at(-1))}. Drag to filter; by keyboard write ${field}>=… in the filter.`}
      onPointerDown=${(/** @type {any} */ event) => {
        if (!counts.length) return;
        event.target.setPointerCapture(event.pointerId);
        setRange([bin(event), bin(event)]);
      }}
      onPointerMove=${(/** @type {any} */ event) => {
        if (!counts.length) return;
        setHover(bin(event));
        if (range) setRange([range[0], bin(event)]);
      }}
      onPointerUp=${() => range && apply(range)}
      onPointerLeave=${() => setHover(null)}
    ></canvas>
    <span class="range">${focus !== null && edges.length > focus + 1
      ? html`${num(edges[range ? Math.min(...range) : focus])} to ${num(edges[(range ? Math.max(...range) : focus) + 1])}: <b>${count(range ? counts.slice(Math.min(...range), Math.max(...range) + 1).reduce((a, b) => a + b, 0) : counts[focus])}</b>`
      : edges.length ? html`${num(edges[0])} to ${num(edges.at(-1))}${histogram.missing ? html`, ${count(histogram.missing)} without` : ''}` : 'no values'}<br />${'drag to filter'}</span>
  </div>`;
}

/** A bound in few digits that still holds the bar. @param {number} value @param {number} side */
function round(value, side) {
  if (Number.isInteger(value)) return String(value);
  const scale = 10 ** Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return String((side < 0 ? Math.floor(value * scale) : Math.ceil(value * scale)) / scale);
}

/** @param {HTMLCanvasElement} canvas @param {number[]} counts @param {[number, number] | null} range */
function paintBars(canvas, counts, range) {
  const context = canvas.getContext('2d');
  if (!context) return;
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  const top = Math.max(...counts, 1);
  const [low, high] = range ? [Math.min(...range), Math.max(...range)] : [-1, counts.length];
  const bar = width / Math.max(1, counts.length);
  counts.forEach((value, index) => {
    if (!value) return;
    context.fillStyle = color(index >= low && index <= high ? '--accent' : '--edge');
    const tall = Math.max(2, Math.sqrt(value / top) * (height - 4));
    context.fillRect(index * bar + 0.5, height - tall, Math.max(1, bar - 1.5), tall);
  });
}
