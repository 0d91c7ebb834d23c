/** The configuration of a run, and what differs between its attempts. */

import { html } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { param, setQuery } from '../core/router.js';
import { Empty, Head, Pairs, shown } from '../core/parts.js';
import { t } from '../core/text.js';

/** @param {{run: string}} props */
export function Config({ run }) {
  const asked = useApi(runApi(run, 'config'));
  return html`<${Head} title="Config" />${shown(asked, (data) => html`<${View} data=${data} />`)}`;
}

/** @param {{data: import('../core/types').ConfigAnswer}} props */
function View({ data }) {
  const { attempts, changes } = data;
  const text = param('find').toLowerCase();
  const picked = Math.min(attempts.length - 1, Number(param('attempt', String(attempts.length - 1))));
  const toml = attempts[picked]?.toml ?? '';
  return html`${attempts.length > 1 &&
    html`<h2>Between attempts</h2>${changes.length === 0
      ? html`<p class="note">The ${attempts.length} attempts had the same configuration.</p>`
      : html`<div class="scroll"><table><thead><tr><th>Key</th>${attempts.map((attempt) => html`<th key=${attempt.label}>${t(attempt.label)}</th>`)}</tr></thead><tbody>${changes.map((change) => html`<tr key=${change.key}><td class="mono">${t(change.key)}</td>${change.values.map((value, index) => html`<td key=${index} class="mono wrap">${value === null ? html`<span class="dim">not set</span>` : index > 0 && value !== change.values[index - 1] ? html`<mark class="d">${t(value)}</mark>` : t(value)}</td>`)}</tr>`)}</tbody></table></div><p class="note"></p>`}`}
    <div class="bar"><label class="inline">Find <input class="field" type="search" value=${param('find')} onInput=${(/** @type {any} */ event) => setQuery({ find: event.target.value }, { replace: true })} /></label>
      ${attempts.length > 1 && html`<label class="inline">Attempt <select value=${picked} onChange=${(/** @type {any} */ event) => setQuery({ attempt: event.target.value })}>${attempts.map((attempt, index) => html`<option key=${index} value=${index}>${attempt.label}</option>`)}</select></label>`}</div>
    ${toml
      ? html`<div class="toml"><pre>${sections(toml, text)}</pre></div>`
      : html`<${Empty} title="No configuration is stored with this run." />`}
    ${Object.keys(data.versions).length > 0 && html`<h2>Versions it was started with</h2><div class="card"><${Pairs} pairs=${Object.entries(data.versions).map(([name, version]) => [name, t(version)])} /></div>`}`;
}

/** Lines that match, each below its section's heading. @param {string} toml @param {string} text */
function sections(toml, text) {
  let heading = '';
  let said = '';
  return toml.split('\n').flatMap((line, index) => {
    if (/^\[.*\]$/.test(line)) {
      heading = line;
      return text ? [] : [html`<b key=${index}>${t(line)}${'\n'}</b>`];
    }
    if (!text) return [html`<span key=${index}>${t(line)}${'\n'}</span>`];
    if (!`${heading} ${line}`.toLowerCase().includes(text) || !line.trim()) return [];
    const head = said === heading ? '' : heading;
    said = heading;
    return [html`<span key=${index}>${head && html`<b>${t(head)}${'\n'}</b>`}${t(line)}${'\n'}</span>`];
  });
}
