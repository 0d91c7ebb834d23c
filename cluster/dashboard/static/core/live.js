/** What happens in runs while they are looked at: one stream for the tab. */

import { signal, useEffect } from './ui.js';
import { href } from './router.js';
import { isSnapshot } from './snapshot.js';

/** @typedef {{run: string, episodes: number, new_episodes: number, step: number, running: boolean, log_changed: boolean, control_changed: boolean, at: number, fresh: number}} RunEvent */

/** The last event of each run; `fresh` adds up new episodes since the page was opened. */
export const live = signal(/** @type {Record<string, RunEvent>} */ ({}));
export const connected = signal(/** @type {'off' | 'on' | 'lost'} */ ('off'));

/** @type {EventSource | null} */
let source = null;
let watched = '';

/** @param {string[]} runs */
function open(runs) {
  const wanted = runs.join('\n');
  if (isSnapshot || wanted === watched) return;
  watched = wanted;
  source?.close();
  source = null;
  connected.value = 'off';
  if (!runs.length) return;
  source = new EventSource(href('/api/v1/live', { run: runs }));
  source.addEventListener('ready', () => {
    connected.value = 'on';
  });
  source.addEventListener('run', (event) => {
    const found = JSON.parse(event.data);
    const before = live.value[found.run]?.fresh ?? 0;
    const fresh = before + (found.new_episodes || 0);
    live.value = { ...live.value, [found.run]: { ...found, fresh, at: Date.now() } };
  });
  source.onerror = () => {
    connected.value = 'lost';
  };
}

/**
 * Watch these runs while the page is shown.
 * @param {string[]} runs
 */
export function useLive(runs) {
  const key = runs.join('\n');
  useEffect(() => {
    open(key ? key.split('\n').slice(0, 20) : []);
  }, [key]);
  return live.value;
}
