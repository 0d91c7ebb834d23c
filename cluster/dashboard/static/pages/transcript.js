/** The turns of an episode as a transcript: phases tinted and labelled, calls as cards. */

import { html, useState } from '../core/ui.js';
import { get, runApi } from '../core/api.js';
import { bytes, count, of, seconds, words } from '../core/format.js';
import { Badge, ErrorBox } from '../core/parts.js';
import { t } from '../core/text.js';

/** @typedef {import('../core/types').Text} TextField */
/** @typedef {import('../core/types').Turn} TurnData */
/** @typedef {{run: string, id: string, attempt: number}} Where */

const PIECE = 200_000;

/** A text, and the rest of it on demand. @param {{text: TextField, where: Where, empty?: string}} props */
export function Long({ text, where, empty = '(empty)' }) {
  const [more, setMore] = useState(/** @type {{text: string, next: number | null}} */ ({ text: '', next: text.text.length < text.length ? [...text.text].length : null }));
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [busy, setBusy] = useState(false);
  if (!text.length) return html`<pre class="dim">${empty}</pre>`;
  const read = async () => {
    setBusy(true);
    try {
      const query = { id: where.id, attempt: where.attempt, part: text.part, offset: more.next ?? 0, limit: PIECE };
      const found = await get(runApi(where.run, 'episode/text', query));
      setMore({ text: more.text + found.text, next: found.next });
    } catch (failed) {
      setError(/** @type {Error} */ (failed));
    }
    setBusy(false);
  };
  return html`<pre>${t(text.text)}${t(more.text)}</pre>
    ${more.next !== null && more.next < text.length && html`<p class="cut"><span>${count(more.next)} of ${count(text.length)} characters.</span><button onClick=${read} disabled=${busy}>${busy ? 'Reading …' : 'Read more'}</button></p>`}
    ${error && html`<${ErrorBox} error=${error} />`}`;
}

/** Arguments as a policy wrote them: laid out where they are JSON. @param {{text: TextField, where: Where}} props */
function Arguments({ text, where }) {
  if (text.text.length === text.length && text.length < 20_000) {
    try {
      const given = JSON.parse(text.text);
      if (given && typeof given === 'object' && !Array.isArray(given) && Object.keys(given).length < 40) {
        return html`<pre>${Object.entries(given).map(
          ([name, value]) => html`<span class="dim">${t(name)}</span> ${t(typeof value === 'string' ? value : JSON.stringify(value))}${'\n'}`,
        )}</pre>`;
      }
    } catch {
      // Not JSON: shown as it is.
    }
  }
  return html`<${Long} text=${text} where=${where} empty="(none)" />`;
}

/** @param {{call: import('../core/types').Call, where: Where, isolation: string}} props */
function CallCard({ call, where, isolation }) {
  const failed = call.status !== 'ok';
  return html`<article class=${failed ? 'call bad' : 'call'} aria-label=${`Call of ${call.name}`}>
    <header><span class="name">${t(call.name)}</span><${Badge} name=${call.status} />
      <span class="dim">${seconds(call.seconds)}${call.cpu_seconds ? `, CPU ${seconds(call.cpu_seconds)}` : ''}${call.memory_bytes === null ? '' : `, ${bytes(call.memory_bytes)}`}${isolation ? html` · <span title=${isolation}>sandbox ${t(isolation.split(' ')[0])}</span>` : ''} · ${call.purpose} session</span></header>
    <div class="io"><div><p class="cap">Arguments</p><${Arguments} text=${call.arguments} where=${where} /></div>
    <div><p class="cap">Result</p><${Long} text=${call.result} where=${where} /></div></div>
  </article>`;
}

/** @param {{turn: TurnData, where: Where, isolation: string, at?: boolean, children?: any}} props */
export function TurnCard({ turn, where, isolation, at = false }) {
  return html`<section class=${`turn ${turn.phase}${at ? ' at' : ''}`} id=${`turn-${turn.number}`} aria-label=${`Turn ${turn.number + 1}, ${turn.phase}`}>
    <header><span class=${`tag ${turn.phase}`}>${turn.phase}</span><span>turn ${turn.number + 1}</span><span>${of(turn.end - turn.start, 'token')}</span>
      ${turn.versions.length > 0 && html`<span>policy ${turn.versions.length > 1 ? `versions ${turn.versions.join(', ')}` : `version ${turn.versions[0]}`}</span>`}
      ${turn.finish_reason && turn.finish_reason !== 'stop' && html`<span class="badge warn">${t(words(turn.finish_reason))}</span>`}
      ${turn.policy_error && html`<span class="badge bad">${t(words(turn.policy_error))}</span>`}</header>
    <div class="body"><${Long} text=${turn.text} where=${where} empty="(nothing written)" />
      ${turn.calls.map((call) => html`<${CallCard} key=${call.number} call=${call} where=${where} isolation=${isolation} />`)}
      ${turn.observations.map((text, index) => html`<div class="says" key=${index}><p class="cap">Told to the policy</p><${Long} text=${text} where=${where} /></div>`)}
    </div>
  </section>`;
}

/** @param {{detail: import('../core/types').EpisodeDetail, where: Where, at?: number}} props */
export function Transcript({ detail, where, at = -1 }) {
  const before = detail.messages_before;
  return html`${before.length > 0 &&
    html`<section class="turn" id="before"><header><span class="tag">prompt</span><span>${of(before.length, 'message')} before the first turn</span></header>
      <div class="body">${before.map((one, index) => html`<div class="says" key=${index}><p class="cap">${t(one.role)}</p><${Long} text=${one.content} where=${where} /></div>`)}</div></section>`}
    ${detail.turns.map((turn) => html`<${TurnCard} key=${turn.number} turn=${turn} where=${where} isolation=${detail.isolation} at=${turn.number === at} />`)}
    ${detail.turns.length === 0 && html`<div class="empty"><strong>The policy wrote nothing.</strong><p>${t(detail.error.text) || 'The episode ended before its first turn.'}</p></div>`}`;
}
