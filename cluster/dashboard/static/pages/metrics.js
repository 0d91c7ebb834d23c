/** All metrics of a run, found by a regular expression, smoothed, and laid over other runs. */

import { html, useEffect, useMemo, useState } from '../core/ui.js';
import { get, runApi, useApi } from '../core/api.js';
import { go, param, place, runHref, setQuery } from '../core/router.js';
import { of } from '../core/format.js';
import { Empty, ErrorBox, Field, Head, Loading } from '../core/parts.js';
import { Chart, smoothed } from '../core/chart.js';
import { useLive } from '../core/live.js';
import { plain, t } from '../core/text.js';

/** @typedef {import('../core/types').Series} Series */

const FIRST = 24;

/** Metrics of several runs. @param {string[]} runs @param {number} turn */
function useSeries(runs, turn) {
  const [state, setState] = useState(/** @type {{all: Series[][] | null, error: Error | null}} */ ({ all: null, error: null }));
  const key = runs.join('\n');
  useEffect(() => {
    const abort = new AbortController();
    Promise.all(runs.map((run) => get(runApi(run, 'metrics'), abort.signal))).then(
      (answers) => setState({ all: answers.map((answer) => answer.series), error: null }),
      (error) => !abort.signal.aborted && setState({ all: null, error }),
    );
    return () => abort.abort();
  }, [key, turn]);
  return state;
}

/** @param {string} pattern */
function matcher(pattern) {
  try {
    return { regex: new RegExp(pattern, 'i'), error: '' };
  } catch (error) {
    return { regex: null, error: /** @type {Error} */ (error).message };
  }
}

/** @param {{run: string}} props */
export function Metrics({ run }) {
  const others = place.value.query.getAll('with');
  const runs = [run, ...others];
  const list = useApi('/runs').data;
  const names = new Map((list?.runs ?? []).map((/** @type {any} */ one) => [one.id, plain(one.name)]));
  const running = (list?.runs ?? []).filter((/** @type {any} */ one) => runs.includes(one.id) && one.state === 'running').map((/** @type {any} */ one) => one.id);
  const events = useLive(running);
  const steps = runs.map((one) => events[one]?.step ?? 0).reduce((a, b) => a + b, 0);
  const { all, error } = useSeries(runs, steps);
  const pattern = param('match');
  const smooth = Number(param('smooth', '0'));
  const { regex, error: wrong } = matcher(pattern);
  const [shown, setShown] = useState(FIRST);
  const charts = useMemo(() => {
    /** @type {Map<string, {series: Series, lines: import('../core/chart.js').Line[]}>} */
    const found = new Map();
    (all ?? []).forEach((series, index) => {
      for (const one of series) {
        if (!regex || !(regex.test(one.name) || regex.test(one.title))) continue;
        const entry = found.get(one.name) ?? { series: one, lines: [] };
        const label = runs.length > 1 ? (names.get(runs[index]) ?? runs[index]) : one.name;
        entry.lines.push({ label, steps: one.steps, values: smooth ? smoothed(one.values, smooth) : one.values });
        found.set(one.name, entry);
      }
    });
    return [...found.values()].filter((entry) => entry.lines.some((line) => line.values.some((value) => value !== null)));
  }, [all, pattern, smooth, list]);
  return html`<${Head} title="Metrics" note=${all && of(charts.length, 'metric')} />
    <div class="bar"><${Field} value=${pattern} label="Find by regular expression" onChange=${(/** @type {string} */ value) => setQuery({ match: value }, { replace: true })} />
      <label class="inline">Smoothing <input type="range" min="0" max="0.98" step="0.02" value=${smooth} onInput=${(/** @type {any} */ event) => setQuery({ smooth: event.target.value === '0' ? '' : event.target.value }, { replace: true })} /> ${smooth ? smooth.toFixed(2) : 'off'}</label>
      <label class="inline">Lay over <select value="" onChange=${(/** @type {any} */ event) => setQuery({ with: [...others, event.target.value] })}><option value="">another run …</option>${(list?.runs ?? []).filter((/** @type {any} */ one) => !runs.includes(one.id)).map((/** @type {any} */ one) => html`<option key=${one.id} value=${one.id}>${plain(one.name)}</option>`)}</select></label>
      ${others.map((one) => html`<button key=${one} onClick=${() => setQuery({ with: others.filter((other) => other !== one) })}>${t(names.get(one) ?? one)} ✕</button>`)}</div>
    ${wrong && html`<p class="wrong" role="status">${t(wrong)}</p>`}
    ${error && html`<${ErrorBox} error=${error} />`}
    ${!all && !error && html`<${Loading} what="Reading metrics" />`}
    ${all && charts.length === 0 && html`<${Empty} title=${pattern ? 'No metric matches.' : 'This run has recorded no metric.'}>${pattern ? html`<button onClick=${() => setQuery({ match: '' })}>Show all</button>` : 'Training and SFT record metrics by step; evaluations have tables instead.'}<//>`}
    <div class="charts">${charts.slice(0, shown).map(({ series, lines }) => html`<${Chart} key=${series.name} title=${series.title} unit=${series.unit} lines=${lines} note=${[series.meaning, series.over, series.averaging].filter(Boolean).join(' ')} sync=${`metrics-${run}`} stepWords="Open the episodes of this step" onStep=${(/** @type {number} */ step) => go(runHref(run, 'episodes', { filter: `step=${step}` }))} />`)}</div>
    ${charts.length > shown && html`<p class="note"><button onClick=${() => setShown(shown + 48)}>Show ${Math.min(48, charts.length - shown)} more</button></p>`}`;
}
