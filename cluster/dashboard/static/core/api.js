/** Requests to the API, and a hook that gives a page what it asked for. */

import { useCallback, useEffect, useRef, useState } from './ui.js';
import { href } from './router.js';
import { answerOf, isSnapshot } from './snapshot.js';

const BASE = '/api/v1';
const WAITS = 90;

/** @typedef {import('./types').Problem} Problem */

/** An answer that is an error, with what to do about it. */
export class ApiError extends Error {
  /** @param {Partial<Problem> & {status: number}} problem */
  constructor(problem) {
    super(problem.detail || problem.title || `status ${problem.status}`);
    this.problem = problem;
    this.fix = problem.fix ?? '';
    this.code = problem.code ?? '';
  }
}

/**
 * Fetch, and throw an ApiError for everything that is not an answer.
 * @param {string} path below /api/v1
 * @param {RequestInit} [init]
 */
export async function request(path, init = {}) {
  if (isSnapshot) return fromSnapshot(path);
  let response;
  try {
    response = await fetch(BASE + path, { credentials: 'same-origin', ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    const fix = 'Is `trialrun dashboard` still running? The page asks again when you reload.';
    throw new ApiError({ status: 0, detail: 'The dashboard does not answer.', fix });
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not from this API, such as an answer of a proxy.
  }
  throw new ApiError({ title: response.statusText, ...problem, status: response.status });
}

/** @param {string} path */
async function fromSnapshot(path) {
  const found = await answerOf(path);
  if (found !== null) return new Response(JSON.stringify(found));
  const detail = 'This snapshot does not hold it.';
  const fix = 'A snapshot has the chosen episodes and no server; `trialrun dashboard` over the run directory shows everything.';
  throw new ApiError({ status: 404, detail, fix });
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  for (let waited = 0; ; waited += 1) {
    try {
      const headers = { accept: 'application/json' };
      return await (await request(path, { headers, signal })).json();
    } catch (error) {
      // 503: the index is being made; it is ready in seconds.
      const waiting = error instanceof ApiError && error.problem.status === 503;
      if (!waiting || waited >= WAITS) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal?.throwIfAborted();
    }
  }
}

/**
 * @param {string} path
 * @param {unknown} body
 * @returns {Promise<any>}
 */
export async function post(path, body) {
  const headers = { 'content-type': 'application/json', accept: 'application/json' };
  const response = await request(path, { method: 'POST', headers, body: JSON.stringify(body) });
  return response.json();
}

/**
 * A path of a run's API.
 * @param {string} run
 * @param {string} path
 * @param {Parameters<typeof href>[1]} [query]
 */
export function runApi(run, path, query) {
  return href(`/runs/${encodeURIComponent(run)}${path && `/${path}`}`, query);
}

/** @typedef {{data: any, error: ApiError | Error | null, loading: boolean, reload: () => void}} Asked */

/**
 * Ask for `path` (null: nothing) whenever it changes; the last answer stays while the next is read.
 * @param {string | null} path
 * @returns {Asked}
 */
export function useApi(path) {
  const [state, setState] = useState(
    /** @type {{path: string | null, data: any, error: Error | null}} */ ({
      path: null,
      data: null,
      error: null,
    }),
  );
  const [turn, setTurn] = useState(0);
  const asked = useRef('');
  useEffect(() => {
    if (path === null) return undefined;
    const abort = new AbortController();
    const base = path.split('?')[0];
    if (asked.current !== base) setState({ path: null, data: null, error: null });
    asked.current = base;
    get(path, abort.signal).then(
      (data) => setState({ path, data, error: null }),
      (error) => {
        if (abort.signal.aborted) return;
        setState((old) => ({ path, data: turn ? old.data : null, error }));
      },
    );
    return () => abort.abort();
  }, [path, turn]);
  const reload = useCallback(() => setTurn((now) => now + 1), []);
  return { data: state.data, error: state.error, loading: path !== null && state.path !== path, reload };
}

/**
 * Lines of an NDJSON answer, as they arrive.
 * @param {string} path
 * @param {AbortSignal} signal
 */
export async function* lines(path, signal) {
  const response = await request(path, { signal });
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    const parts = (rest + (value ?? '')).split('\n');
    rest = parts.pop() ?? '';
    for (const part of parts) if (part) yield JSON.parse(part);
    if (done) break;
  }
  if (rest) yield JSON.parse(rest);
}
