/** What of a run could not be read; all the rest is shown on the other pages. */

import { html } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { Coverage, Empty, Head, shown } from '../core/parts.js';
import { t } from '../core/text.js';

/** @type {Record<string, string>} */
const TONES = { error: 'bad', warning: 'warn', note: '' };

/** @param {{run: string}} props */
export function HealthPage({ run }) {
  const asked = useApi(runApi(run, 'health'));
  return html`<${Head} title="Problems" />${shown(
    asked,
    (/** @type {import('../core/types').Health} */ data) => html`<${Coverage} coverage=${data.coverage} />
      ${data.problems.length === 0 && html`<${Empty} title="Everything of this run could be read." />`}
      ${data.problems.map((one, index) => html`<div key=${index} class=${`box ${TONES[one.severity]}`}><strong>${t(one.where)}</strong><p>${t(one.what)}</p><p>${t(one.fix)}</p></div>`)}
      <p class="note">The index of these pages lies in <code>${t(data.index_folder)}</code>; it may be deleted at any time.</p>`,
  )}`;
}
