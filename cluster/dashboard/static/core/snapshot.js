/**
 * A static snapshot: the page holds the answers itself, compressed, and asks no server.
 * `trialrun dashboard bundle` writes it; the same pages then work from a file, offline.
 */

/**
 * What a snapshot holds: answers by path and the parameters that matter, and the chosen episodes.
 * @typedef {{answers: Record<string, any>, rows: any[], run: string, made: string, of: number}} Kept
 */

const element = document.getElementById('snapshot');

export const isSnapshot = element !== null;

/** Parameters that choose between answers; all others only say how much of one is wanted. */
const CHOOSING = ['attempt', 'by', 'event', 'field', 'id', 'part', 'phase', 'reason', 'status', 'tool', 'zero_variance'];

/** @type {Promise<Kept> | null} */
let unpacked = null;

/** @returns {Promise<Kept>} */
export function kept() {
  unpacked ??= unpack(element?.textContent?.trim() ?? '');
  return unpacked;
}

/** @param {string} text base64 of compressed JSON */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

/** @param {string} path @returns {[string, URLSearchParams]} */
function parted(path) {
  const at = path.indexOf('?');
  return at < 0 ? [path, new URLSearchParams()] : [path.slice(0, at), new URLSearchParams(path.slice(at))];
}

/** @param {string} base @param {URLSearchParams} query */
function keyOf(base, query) {
  const given = CHOOSING.flatMap((name) => query.getAll(name).map((value) => [name, value]));
  return given.length ? `${base}?${given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&')}` : base;
}

/**
 * Return the answer to a request, or null where the snapshot has none.
 * @param {string} path below /api/v1
 * @returns {Promise<any>}
 */
export async function answerOf(path) {
  const all = await kept();
  const [base, query] = parted(path);
  const filter = query.get('filter') ?? '';
  if (base === `/runs/${all.run}/episodes`) return page(all, filter, query.get('sort') ?? '-uid');
  if (filter) return null;
  return all.answers[keyOf(base, query)] ?? null;
}

/** @param {Kept} all @param {string} filter @param {string} sort */
function page(all, filter, sort) {
  const test = testOf(filter);
  if (!test) return null;
  const name = sort.replace(/^-/, '');
  const sign = sort.startsWith('-') ? -1 : 1;
  const rows = all.rows.filter(test).sort((a, b) => {
    const [left, right] = [a[name], b[name]];
    if (left === right) return sign * (a.uid - b.uid);
    if (left === null || left === undefined) return 1;
    if (right === null || right === undefined) return -1;
    return left < right ? -sign : sign;
  });
  const coverage = { episodes: rows.length, details: rows.length, complete: true };
  return { rows, next: null, total: rows.length, snapshot: 0, newer: 0, coverage };
}

const CONDITION = /^(\w+)\s*(=|!=|<=|>=|<|>)\s*("(?:[^"\\]|\\.)*"|[\w.+-]+)$/;

/**
 * The part of the filter language that needs no server: fields of a row joined by `and`.
 * @param {string} filter
 * @returns {((row: any) => boolean) | null}
 */
function testOf(filter) {
  const tests = filter.trim() ? filter.split(/\s+and\s+/).map(oneTest) : [];
  return tests.every((test) => test !== null) ? (row) => tests.every((test) => test?.(row)) : null;
}

/** @param {string} text @returns {((row: any) => boolean) | null} */
function oneTest(text) {
  if (/^\w+$/.test(text.trim())) return (row) => (row.flags ?? []).includes(text.trim());
  const found = CONDITION.exec(text.trim());
  if (!found) return null;
  const [, name, operator, written] = found;
  const value = written.startsWith('"') ? written.slice(1, -1).replace(/\\(.)/g, '$1') : written;
  return (row) => {
    const own = row[name];
    if (own === null || own === undefined) return operator === '!=';
    const order = typeof own === 'number' ? own - Number(value) : String(own) === value ? 0 : String(own) < value ? -1 : 1;
    if (operator === '=') return order === 0;
    if (operator === '!=') return order !== 0;
    return operator.startsWith('<') ? order < 0 || (operator === '<=' && order === 0) : order > 0 || (operator === '>=' && order === 0);
  };
}
