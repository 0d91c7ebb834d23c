/** The fleet: what every worker did over time, and the requests that steer a running job. */

import { html, useEffect, useMemo, useRef, useState } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { go, param, runHref, setQuery } from '../core/router.js';
import { clock, count, num, of, percent, seconds } from '../core/format.js';
import { Choice, Empty, Head, Pairs, quoted, shown } from '../core/parts.js';
import { color, painted } from '../core/theme.js';
import { useLive } from '../core/live.js';
import { plain, t } from '../core/text.js';
import { Steering } from './steering.js';

/** @typedef {import('../core/types').Fleet} Fleet */
/** @typedef {import('../core/types').FleetCell} Cell */

const ROW = 22;
const LEFT = 120;
const MARKS = 16;

/** @type {Record<string, {title: string, of: (cell: Cell) => number | null, most?: boolean, say: (value: number) => string}>} */
const SHOWN = {
  generate: { title: 'Generate', of: (cell) => cell.generate, say: percent },
  tool: { title: 'Tools', of: (cell) => cell.tool, say: percent },
  queue: { title: 'Queue', of: (cell) => cell.queue, say: percent },
  idle: { title: 'Idle', of: (cell) => (cell.running > 0 ? Math.max(0, 1 - cell.generate - cell.tool - cell.queue) : 1), say: percent },
  running: { title: 'Episodes at once', of: (cell) => cell.running, most: true, say: (value) => num(value) },
  lag: { title: 'Version lag', of: (cell) => cell.lag, most: true, say: (value) => of(value, 'version') },
};

/** @param {{run: string, session: any}} props */
export function FleetPage({ run, session }) {
  const asked = useApi(runApi(run, 'fleet', { buckets: 120, start: param('start'), end: param('end') }));
  const summary = useApi(runApi(run, '')).data;
  const running = summary?.state === 'running';
  const event = useLive(running ? [run] : [])[run];
  const turn = event ? Math.floor(event.at / 5000) : 0;
  useEffect(() => {
    if (turn) asked.reload();
  }, [turn]);
  return html`<${Head} title="Fleet" note=${asked.data && html`${asked.data.alive !== null ? of(asked.data.alive, 'worker') : ''}${asked.data.losses ? html`, <span class="down">${of(asked.data.losses, 'loss', 'losses')}</span>` : ''}`}>
      ${param('start') && html`<button onClick=${() => setQuery({ start: '', end: '' })}>Whole run</button>`}<//>
    ${shown(asked, (fleet) => html`<${Heat} fleet=${fleet} run=${run} />`)}
    <${Steering} run=${run} running=${running} canWrite=${session?.can_write} changed=${event?.at ?? 0} />`;
}

/** @param {{fleet: Fleet, run: string}} props */
function Heat({ fleet, run }) {
  const show = SHOWN[param('show', 'generate')] ?? SHOWN.generate;
  const at = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [hover, setHover] = useState(/** @type {Cell | null} */ (null));
  const paint = painted.value;
  const cells = useMemo(() => new Map(fleet.cells.map((cell) => [`${cell.worker} ${cell.bucket}`, cell])), [fleet]);
  const buckets = Math.max(1, Math.round((fleet.end - fleet.start) / (fleet.bucket_s || 1)));
  useEffect(() => {
    const canvas = at.current;
    if (!canvas) return undefined;
    const draw = () => paintHeat(canvas, fleet, buckets, show);
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(canvas);
    return () => observer.disconnect();
  }, [fleet, show, paint]);
  if (!fleet.workers.length) return html`<${Empty} title="No worker has played an episode yet.">${t(fleet.note) || 'The map is drawn from the details of stored episodes.'}<//>`;
  const find = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {HTMLElement} */ (event.currentTarget).getBoundingClientRect();
    const bucket = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT)) * buckets);
    const worker = fleet.workers[Math.floor((event.clientY - box.top - MARKS) / ROW)];
    return worker === undefined || bucket < 0 ? null : (cells.get(`${worker} ${bucket}`) ?? null);
  };
  const open = (/** @type {Cell | null} */ cell) => {
    if (!cell) return;
    const start = fleet.start + cell.bucket * fleet.bucket_s;
    go(runHref(run, 'episodes', { filter: `worker=${quoted(cell.worker)} and started_at>=${start.toFixed(1)} and started_at<${(start + fleet.bucket_s).toFixed(1)}` }));
  };
  return html`<div class="bar"><${Choice} label="Shown" value=${param('show', 'generate')} options=${Object.entries(SHOWN).map(([name, one]) => [name, one.title])} onPick=${(/** @type {string} */ value) => setQuery({ show: value === 'generate' ? '' : value }, { replace: true })} />
      <span class="dim" role="status">${hover ? html`${t(hover.worker)}, ${clock(fleet.start + hover.bucket * fleet.bucket_s)}: ${of(hover.episodes, 'episode')}, ${num(hover.running)} at once, generate ${percent(hover.generate)}, tools ${percent(hover.tool)}, queue ${percent(hover.queue)}, version ${hover.version ?? '–'}${hover.lag ? `, ${hover.lag} behind` : ''}` : `a cell is ${seconds(fleet.bucket_s)}; click it for its episodes`}</span></div>
    <div class="heat" tabindex="0" role="region" aria-label="Workers by time"><canvas ref=${at} style=${{ height: `${fleet.workers.length * ROW + MARKS + 18}px` }} role="img" aria-label=${`Heat map of ${fleet.workers.length} workers over ${seconds(fleet.end - fleet.start)}; the table below has the same in figures`}
      onMouseMove=${(/** @type {any} */ event) => setHover(find(event))} onMouseLeave=${() => setHover(null)} onClick=${(/** @type {any} */ event) => open(find(event))}></canvas></div>
    <p class="note">${fleet.pushes.length > 0 && `Marks on top are weight pushes (${count(fleet.pushes.length)}). `}${t(fleet.note)}</p>
    <${Table} fleet=${fleet} run=${run} />`;
}

/** @param {{fleet: Fleet, run: string}} props */
function Table({ fleet, run }) {
  const mean = (/** @type {Cell[]} */ cells, /** @type {(cell: Cell) => number} */ value) => {
    const weight = cells.reduce((sum, cell) => sum + cell.running, 0);
    return weight ? cells.reduce((sum, cell) => sum + value(cell) * cell.running, 0) / weight : null;
  };
  const pushes = fleet.pushes.filter((push) => push.seconds !== null);
  return html`<div class="scroll"><table><thead><tr><th>Worker</th><th class="n">Episodes at once</th><th class="n">Generate</th><th class="n">Tools</th><th class="n">Queue</th><th class="n">Version</th><th class="n">Largest lag</th><th><span class="sr">More</span></th></tr></thead><tbody>
    ${fleet.workers.map((worker) => {
      const cells = fleet.cells.filter((cell) => cell.worker === worker);
      return html`<tr key=${worker}><td><b>${t(worker)}</b></td><td class="n">${num(cells.reduce((sum, cell) => sum + cell.running, 0) / Math.max(1, cells.length))}</td><td class="n">${percent(mean(cells, (cell) => cell.generate))}</td><td class="n">${percent(mean(cells, (cell) => cell.tool))}</td><td class="n">${percent(mean(cells, (cell) => cell.queue))}</td>
        <td class="n">${cells.at(-1)?.version ?? '–'}</td><td class="n">${Math.max(0, ...cells.map((cell) => cell.lag ?? 0))}</td><td><a href=${runHref(run, 'episodes', { filter: `worker=${quoted(worker)}` })} aria-label=${`Episodes of ${plain(worker)}`}>episodes</a></td></tr>`;
    })}</tbody></table></div>
    ${pushes.length > 0 && html`<${Pairs} pairs=${[['Weight pushes', count(pushes.length)], ['Mean push', seconds(pushes.reduce((sum, push) => sum + (push.seconds ?? 0), 0) / pushes.length)]]} />`}`;
}

/** @param {HTMLCanvasElement} canvas @param {Fleet} fleet @param {number} buckets @param {typeof SHOWN['idle']} show */
function paintHeat(canvas, fleet, buckets, show) {
  const context = canvas.getContext('2d');
  if (!context) return;
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  context.font = '12px system-ui, sans-serif';
  const cell = (width - LEFT) / buckets;
  const most = show.most ? Math.max(1, ...fleet.cells.map((one) => show.of(one) ?? 0)) : 1;
  fleet.workers.forEach((worker, index) => {
    const top = MARKS + index * ROW;
    context.fillStyle = color('--sunken');
    context.fillRect(LEFT, top, width - LEFT, ROW - 3);
    context.fillStyle = color('--text');
    context.fillText(plain(worker).slice(0, 18), 0, top + 14);
  });
  context.fillStyle = color('--accent');
  for (const one of fleet.cells) {
    const value = show.of(one);
    const row = fleet.workers.indexOf(one.worker);
    if (value === null || row < 0) continue;
    context.globalAlpha = Math.max(0.04, Math.min(1, value / most));
    context.fillRect(LEFT + one.bucket * cell, MARKS + row * ROW, Math.max(1, cell - 0.5), ROW - 3);
  }
  context.globalAlpha = 1;
  context.fillStyle = color('--c2');
  for (const push of fleet.pushes) {
    if (push.at === null) continue;
    context.fillRect(LEFT + ((push.at - fleet.start) / (fleet.end - fleet.start)) * (width - LEFT), 4, 2, MARKS - 7);
  }
  context.fillStyle = color('--muted');
  const foot = MARKS + fleet.workers.length * ROW + 12;
  context.fillText(clock(fleet.start), LEFT, foot);
  context.textAlign = 'right';
  context.fillText(clock(fleet.end), width, foot);
  context.textAlign = 'left';
}
