/** Numbers, durations and times as the pages write them. */

const DASH = '–';

/**
 * A number in few digits; a dash where there is none.
 * @param {number | null | undefined} value
 * @param {number} [digits] significant digits
 */
export function num(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  // Minus zero is no other number to a reader.
  if (value === 0) return '0';
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString('en');
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim((value / 1e6).toPrecision(digits))}M`;
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  if (size < 1e-4) return value.toExponential(1);
  return trim(value.toPrecision(digits));
}

/** @param {string} text */
function trim(text) {
  return text.includes('.') && !text.includes('e') ? text.replace(/\.?0+$/, '') : text;
}

/**
 * @param {number | null | undefined} value
 * @param {number} [digits] after the point
 */
export function fixed(value, digits = 2) {
  return value === null || value === undefined || !Number.isFinite(value)
    ? DASH
    : value.toFixed(digits).replace(/^-(0\.?0*)$/, '$1');
}

/** @param {number | null | undefined} value @param {number} [digits] */
export function percent(value, digits = 1) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  return `${trim((value * 100).toFixed(digits))}%`;
}

/** @param {number | null | undefined} value */
export function count(value) {
  return value === null || value === undefined ? DASH : Math.round(value).toLocaleString('en');
}

/** @param {number} value @param {string} one @param {string} [many] */
export function of(value, one, many) {
  return `${count(value)} ${value === 1 ? one : (many ?? `${one}s`)}`;
}

/** @param {number | null | undefined} seconds */
export function seconds(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return DASH;
  if (seconds === 0) return '0 s';
  if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${trim((seconds * 1e3).toPrecision(3))} ms`;
  if (seconds < 120) return `${trim(seconds.toPrecision(3))} s`;
  if (seconds < 7200) return `${trim((seconds / 60).toPrecision(3))} min`;
  return `${trim((seconds / 3600).toPrecision(3))} h`;
}

/** @param {number | null | undefined} bytes */
export function bytes(bytes) {
  if (bytes === null || bytes === undefined) return DASH;
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1024 ** 2) return `${num(bytes / 1024)} KiB`;
  return bytes < 1024 ** 3 ? `${num(bytes / 1024 ** 2)} MiB` : `${num(bytes / 1024 ** 3)} GiB`;
}

/** @param {number | null | undefined} at Unix seconds */
export function clock(at) {
  return at ? new Date(at * 1000).toLocaleTimeString('en-GB') : DASH;
}

/** @param {number | null | undefined} at Unix seconds */
export function date(at) {
  if (!at) return DASH;
  const day = new Date(at * 1000);
  const pad = (/** @type {number} */ value) => String(value).padStart(2, '0');
  return (
    `${day.getFullYear()}-${pad(day.getMonth() + 1)}-${pad(day.getDate())} ` +
    `${pad(day.getHours())}:${pad(day.getMinutes())}`
  );
}

/** @param {number | null | undefined} at Unix seconds */
export function ago(at) {
  if (!at) return DASH;
  const passed = Date.now() / 1000 - at;
  if (passed < 5) return 'now';
  if (passed < 90) return `${Math.round(passed)} s ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} min ago`;
  return passed < 129600 ? `${Math.round(passed / 3600)} h ago` : date(at);
}

/** Outcomes and reasons in words: `policy_error` is shown as `policy error`. @param {string} name */
export function words(name) {
  return name.replaceAll('_', ' ');
}
