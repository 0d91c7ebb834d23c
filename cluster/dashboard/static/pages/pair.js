/** Two episodes of two runs side by side: what one did right and the other wrong. */

import { html } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { param, runHref } from '../core/router.js';
import { Badge, Empty, Head, Reward, shown } from '../core/parts.js';
import { t } from '../core/text.js';
import { Long, Transcript } from './transcript.js';

export function Pair() {
  const sides = [
    { run: param('a'), id: param('ae') },
    { run: param('b'), id: param('be') },
  ];
  if (sides.some((side) => !side.run || !side.id)) {
    return html`<${Head} title="Two episodes" /><${Empty} title="Choose them in Compare."><a href="/compare">Compare evaluations</a> lists the questions on which two runs differ.<//>`;
  }
  return html`<${Head} title="Two episodes" /><div class="sides">${sides.map((side) => html`<div key=${side.run}><${Side} ...${side} /></div>`)}</div>`;
}

/** @param {{run: string, id: string}} props */
function Side({ run, id }) {
  const asked = useApi(runApi(run, 'episode', { id }));
  return shown(asked, (/** @type {import('../core/types').EpisodeDetail} */ detail) => {
    const where = { run, id: detail.row.episode, attempt: detail.row.attempt };
    return html`<div class="card"><h2>${t(run)}</h2><p><a href=${runHref(run, 'episode', { id })}>${t(id)}</a> <${Badge} name=${detail.row.outcome} /> <${Reward} value=${detail.row.reward} /></p>
      <p class="dim">Answer</p><${Long} text=${detail.scorer.answer} where=${where} empty="(no answer)" /></div>
      <p class="note"></p><${Transcript} detail=${detail} where=${where} />`;
  });
}
