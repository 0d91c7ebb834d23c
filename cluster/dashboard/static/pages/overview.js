/** A run at a glance: what holds it up, how its episodes end, and twelve charts. */

import { html, useEffect } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { go, runHref } from '../core/router.js';
import { ago, count, percent, words } from '../core/format.js';
import { Coverage, Empty, Head, Pairs, shown } from '../core/parts.js';
import { Chart } from '../core/chart.js';
import { useLive } from '../core/live.js';
import { t } from '../core/text.js';

/** @param {{run: string}} props */
export function Overview({ run }) {
  const asked = useApi(runApi(run, 'overview'));
  const event = useLive(asked.data?.run.state === 'running' ? [run] : [])[run];
  // Charts are drawn anew when a step is recorded, or details have been read.
  const turn = event ? `${event.step}` : '';
  const incomplete = asked.data && !asked.data.coverage.complete;
  useEffect(() => {
    if (turn) asked.reload();
  }, [turn]);
  useEffect(() => {
    if (!incomplete) return undefined;
    const timer = setTimeout(asked.reload, 3000);
    return () => clearTimeout(timer);
  }, [incomplete, asked.data]);
  return html`<${Head} title="Overview" />${shown(asked, (data) => html`<${View} data=${data} run=${run} event=${event} />`)}`;
}

/** @param {{data: import('../core/types').Overview, run: string, event: any}} props */
function View({ data, run, event }) {
  const { run: summary, bottleneck, charts, outcomes, coverage } = data;
  const drawn = charts.filter((chart) => chart.lines.length);
  const empty = charts.filter((chart) => !chart.lines.length);
  return html`<${Coverage} coverage=${coverage} />
    ${summary.last_error && html`<div class="box bad"><strong>Last error</strong> <a href=${runHref(run, 'logs')}>${t(summary.last_error)}</a></div>`}
    <section class="strip" aria-label="The run in figures">
      <${Pairs} pairs=${[
        ['Step', `${count(event?.step ?? summary.step)}${summary.steps ? ` of ${count(summary.steps)}` : ''}`],
        ['Episodes', html`<a href=${runHref(run, 'episodes')}>${count(event?.episodes ?? summary.episodes)}</a>`],
        ['Reward', summary.reward === null ? null : summary.reward.toFixed(3)],
        ['Success', summary.success === null ? null : percent(summary.success)],
        ['Workers', summary.workers === null ? null : html`<a href=${runHref(run, 'fleet')}>${count(summary.workers)}</a>`],
        ['Changed', ago(summary.updated_at)],
      ]} />
      ${bottleneck.part !== 'unknown'
        ? html`<div class=${`hold ${bottleneck.part}`}>
            <span class="meter" aria-hidden="true"><i style=${{ width: `${(bottleneck.share ?? 0) * 100}%` }}></i></span>
            <p><strong>${t(bottleneck.sentence)}</strong> ${bottleneck.fix && html`<span class="fix">Try: ${t(bottleneck.fix)}.</span>`}</p>
          </div>`
        : html`<div class="hold"><p>${t(bottleneck.sentence)}</p></div>`}
    </section>
    <${Outcomes} outcomes=${outcomes} run=${run} />
    ${drawn.length === 0 &&
    html`<${Empty} title="Nothing to draw yet.">Charts appear with the first recorded step. <a href=${runHref(run, 'episodes')}>Episodes</a> are listed as soon as they are stored.<//>`}
    <div class="charts">
      ${drawn.map(
        (chart) => html`<${Chart} key=${chart.id} ...${chart} sync=${`steps-${run}`} stepWords="Open the episodes of this step" onStep=${(/** @type {number} */ step) => go(stepHref(run, chart.id, step))} />`,
      )}
    </div>
    ${drawn.length > 0 && empty.length > 0 && html`<p class="note">Not recorded by this run: ${empty.map((chart) => chart.title.toLowerCase()).join(', ')}.</p>`}`;
}

/** @param {string} run @param {string} chart @param {number} step */
function stepHref(run, chart, step) {
  // These two charts are over the version that sampled an episode, not over the step.
  const field = chart === 'by-split' || chart === 'tool-errors' ? 'version' : 'step';
  return runHref(run, 'episodes', { filter: `${field}=${step}`, sort: 'reward' });
}

/** @param {{outcomes: import('../core/types').OutcomeCount[], run: string}} props */
function Outcomes({ outcomes, run }) {
  if (!outcomes.length) return null;
  return html`<section class="outcomes" aria-label="How episodes ended">
    <div class="stack" aria-hidden="true">${outcomes.map((one) => html`<i key=${one.outcome} class=${`o-${one.outcome}`} style=${{ flexGrow: one.share }}></i>`)}</div>
    <ul>${outcomes.map(
      (one) => html`<li key=${one.outcome}><i class=${`o-${one.outcome}`}></i><a href=${runHref(run, 'episodes', { filter: `outcome=${one.outcome}` })}>${t(words(one.outcome))}</a> <b>${count(one.count)}</b> <span class="dim">${percent(one.share)}</span></li>`,
    )}</ul>
  </section>`;
}
