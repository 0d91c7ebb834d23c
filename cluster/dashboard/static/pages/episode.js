/** An episode: what was tried, what was done, what it earned, and which tokens got the credit. */

import { html, useEffect, useState } from '../core/ui.js';
import { runApi, useApi } from '../core/api.js';
import { go, param, place, runHref, setQuery } from '../core/router.js';
import { count, date, fixed, num, seconds, words } from '../core/format.js';
import { Badge, FLAG_NOTES, Head, Pairs, Reward, Signed, shown } from '../core/parts.js';
import { useKeys } from '../core/keys.js';
import { t } from '../core/text.js';
import { Long, Transcript } from './transcript.js';
import { Tokens } from './tokens.js';

/** @typedef {import('../core/types').EpisodeDetail} Detail */

/** @param {{run: string}} props */
export function EpisodePage({ run }) {
  const asked = useApi(runApi(run, 'episode', { id: param('id'), attempt: param('attempt') }));
  return shown(asked, (detail) => html`<${View} detail=${detail} run=${run} key=${`${detail.row.episode} ${detail.row.attempt}`} />`);
}

/** @type {[string, string][]} */
const TABS = [
  ['', 'Transcript'],
  ['tokens', 'Tokens'],
  ['raw', 'Raw'],
];

/** @param {{detail: Detail, run: string}} props */
function View({ detail, run }) {
  const { row, siblings } = detail;
  const tab = param('tab');
  const at = Number(param('turn', '-1'));
  const where = { run, id: row.episode, attempt: row.attempt };
  const here = siblings.findIndex((one) => one.episode === row.episode && one.attempt === row.attempt);
  const sibling = (/** @type {number} */ step) => {
    const list = here < 0 ? siblings : siblings.filter((_, index) => index !== here);
    const next = here < 0 ? list[0] : siblings[here + step];
    if (next) go(runHref(run, 'episode', { id: next.episode, attempt: next.attempt || null, tab, overlay: param('overlay') }));
  };
  const turn = (/** @type {number} */ step) => {
    const next = Math.max(0, Math.min(detail.turns.length - 1, Number(param('turn', '-1')) + step));
    setQuery({ turn: next, tab: '' }, { replace: true });
  };
  useEffect(() => {
    if (at >= 0 && !tab) document.getElementById(`turn-${at}`)?.scrollIntoView({ block: 'start' });
  }, [at, tab]);
  useKeys(
    [
      { keys: 'j', what: 'Next turn', run: () => turn(1) },
      { keys: 'k', what: 'Previous turn', run: () => turn(-1) },
      { keys: 'n', what: 'Next sibling', run: () => sibling(1) },
      { keys: 'p', what: 'Previous sibling', run: () => sibling(-1) },
      { keys: 't', what: 'Tokens or transcript', run: () => setQuery({ tab: tab === 'tokens' ? '' : 'tokens' }) },
      { keys: 'G', what: 'Open its group', run: () => go(runHref(run, 'group', { id: row.group })) },
    ],
    [at, tab, detail],
  );
  return html`<${Head} title=${html`Episode ${t(row.episode)}`} note=${html`<${Badge} name=${row.outcome} /> <${Reward} value=${row.reward} /> ${detail.consumed_at && html`<span class="dim">· ${t(detail.consumed_at)}</span>`}`}>
      <a class="button" href=${runHref(run, 'group', { id: row.group })}>Group ${t(row.group)}</a>
      ${siblings.length > 0 && html`<a class="button" href=${runHref(run, 'diff', { id: [row.episode, other(detail)] })}>Diff with ${t(other(detail))}</a>`}
    <//>
    <${Siblings} detail=${detail} run=${run} />
    ${detail.error.length > 0 && html`<div class="box bad"><strong>It failed</strong><${Long} text=${detail.error} where=${where} /></div>`}
    ${(row.flags ?? []).length > 0 && html`<div class="box warn">${row.flags?.map((flag) => html`<p key=${flag}><span class="flag">${t(words(flag))}</span> ${t(detail.flag_notes[flag] ?? FLAG_NOTES[flag] ?? '')}</p>`)}</div>`}
    <div class="ep">
      <${Outline} detail=${detail} at=${at} />
      <div><nav class="tabs" aria-label="Views of the episode">${TABS.map(
          ([name, title]) => html`<a key=${name} href=${runHref(run, 'episode', { id: row.episode, attempt: row.attempt || null, tab: name, overlay: name === 'tokens' ? param('overlay') : '' })} aria-current=${tab === name ? 'page' : null}>${title}</a>`,
        )}</nav>
        ${tab === 'tokens' ? html`<${Tokens} detail=${detail} run=${run} />` : tab === 'raw' ? html`<${Raw} detail=${detail} />` : html`<${Transcript} detail=${detail} where=${where} at=${at} />`}
      </div>
      <${Facts} detail=${detail} run=${run} where=${where} />
    </div>`;
}

/** The sibling that differs most in reward. @param {Detail} detail */
function other(detail) {
  const own = detail.row.reward ?? 0;
  const others = detail.siblings.filter((one) => one.episode !== detail.row.episode);
  others.sort((a, b) => Math.abs((b.reward ?? 0) - own) - Math.abs((a.reward ?? 0) - own));
  return others[0]?.episode ?? detail.row.episode;
}

/** @param {{detail: Detail, run: string}} props */
function Siblings({ detail, run }) {
  const { row } = detail;
  const all = detail.siblings.some((one) => one.episode === row.episode)
    ? detail.siblings
    : [...detail.siblings, { episode: row.episode, attempt: row.attempt, sample_index: row.sample_index, reward: row.reward, outcome: row.outcome }].sort((a, b) => a.sample_index - b.sample_index);
  if (all.length < 2 && detail.attempts.length < 2) return null;
  return html`<div class="chips" role="navigation" aria-label="Siblings"><span class="dim">Siblings</span>
    ${all.map((one) => html`<a class="sib" key=${`${one.episode} ${one.attempt}`} href=${runHref(run, 'episode', { id: one.episode, attempt: one.attempt || null, tab: param('tab'), overlay: param('overlay') })} aria-current=${one.episode === row.episode ? 'page' : null} title=${words(one.outcome)}>${one.sample_index} <span class="dim">${fixed(one.reward)}</span></a>`)}
    ${detail.attempts.length > 1 && html`<span class="dim">Attempts</span>${detail.attempts.map((attempt) => html`<a class="sib" key=${attempt} href=${runHref(run, 'episode', { id: row.episode, attempt })} aria-current=${attempt === row.attempt ? 'page' : null}>${attempt}</a>`)}`}
  </div>`;
}

/** @param {{detail: Detail, at: number}} props */
function Outline({ detail, at }) {
  return html`<nav class="outline" aria-label="Turns">${detail.turns.map((turn) => {
    const failed = turn.policy_error || turn.calls.some((call) => call.status !== 'ok');
    const said = turn.calls.length ? turn.calls.map((call) => call.name).join(', ') : turn.phase === 'execution' && turn === detail.turns.at(-1) ? 'answer' : turn.phase;
    return html`<a key=${turn.number} class=${`${turn.phase}${turn.number === at ? ' at' : ''}`} href=${withTurn(turn.number)}><span class="dim">${turn.number + 1}</span><span>${t(said)}</span>${failed ? html`<span class="x" title="error">!</span>` : ''}</a>`;
  })}</nav>`;
}

/** @param {number} turn */
function withTurn(turn) {
  const query = new URLSearchParams(place.value.query);
  query.set('turn', String(turn));
  query.delete('tab');
  return `${place.value.path}?${query}`;
}

/** @param {{detail: Detail, run: string, where: any}} props */
function Facts({ detail, run, where }) {
  const { row, scorer } = detail;
  const tags = Object.entries(detail.tags);
  return html`<aside class="facts" aria-label="Facts">
    <section class="card"><h2>What the scorer saw</h2>
      <${Long} text=${scorer.answer} where=${where} empty="(no answer)" />
      <${Pairs} pairs=${[
        ['Verdict', scorer.correct === null ? '' : html`<span class=${`badge ${scorer.correct ? 'good' : 'bad'}`}>${scorer.correct ? 'correct' : 'not correct'}</span>`],
        ...scorer.parts.map((part) => /** @type {[string, any]} */ ([part.name, fixed(part.value, 3)])),
        ['Reward', html`<b>${fixed(scorer.reward, 3)}</b>`],
      ]} />${scorer.note && html`<p class="note">${t(scorer.note)}</p>`}</section>
    <section class="card"><h2>In training</h2><${Pairs} pairs=${[
      ['State', html`<${Badge} name=${row.state} />`],
      ['Because', row.reason ? html`<a href=${runHref(run, 'ledger', { reason: row.reason })}>${t(words(row.reason))}</a>` : ''],
      ['Step', row.step === null ? '' : html`<a href=${runHref(run, 'episodes', { filter: `step=${row.step}` })}>${row.step}</a>`],
      ['Advantage', row.advantage === null ? '' : html`<${Signed} value=${row.advantage} digits=${3} />`],
      ['Of its trials', row.trial_advantage === null ? '' : html`<${Signed} value=${row.trial_advantage} digits=${3} />`],
      ['Staleness', row.staleness === null ? '' : `${row.staleness} versions`],
      ['Sampled by version', row.oldest_version < 0 ? 'none' : `${row.oldest_version}`],
    ]} /></section>
    <section class="card"><h2>Numbers</h2><${Pairs} pairs=${[
      ['Tokens', count(row.tokens)],
      ['Sampled', row.sampled_tokens === null ? '' : count(row.sampled_tokens)],
      ['Time', seconds(row.wall_s)],
      ['Generation', row.generate_s === null ? '' : seconds(row.generate_s)],
      ['Tools', row.tool_s === null ? '' : seconds(row.tool_s)],
      ['Queue', row.queue_s === null ? '' : seconds(row.queue_s)],
      ...detail.extra.map((part) => /** @type {[string, any]} */ ([words(part.name), num(part.value)])),
    ]} /></section>
    <section class="card"><h2>Where</h2><${Pairs} pairs=${[
      ['Task', t(row.task)],
      ['Environment', t(row.environment)],
      ['Split', t(row.split)],
      ['Mode', t(row.mode)],
      ['Source', t(row.source)],
      ['Worker', t(detail.worker)],
      ['Tool server', t(detail.tool_server)],
      ['Sandbox', t(detail.isolation)],
      ['Seed', t(detail.seed)],
      ['Started', date(row.started_at)],
      ...tags.map(([name, value]) => /** @type {[string, any]} */ ([name, html`<a href=${runHref(run, 'episodes', { filter: `tag("${name}")="${value}"` })}>${t(value)}</a>`])),
      ...detail.sampling.map((part) => /** @type {[string, any]} */ ([words(part.name), num(part.value)])),
    ]} /></section>
  </aside>`;
}

/** @param {{detail: Detail}} props */
function Raw({ detail }) {
  const [copied, setCopied] = useState('');
  const text = JSON.stringify(detail, null, 1);
  const copy = () => navigator.clipboard?.writeText(text).then(() => setCopied('Copied'), () => setCopied('The browser does not allow it'));
  return html`<p class="bar"><button onClick=${copy}>Copy</button><span class="dim" role="status">${copied || 'What the API answers; long texts are cut after 20,000 characters.'}</span></p><div class="toml"><pre>${t(text)}</pre></div>`;
}
