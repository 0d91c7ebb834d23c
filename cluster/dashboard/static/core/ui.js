/** The vendored libraries, behind one module. */

import { h } from '../vendor/preact.js';
import htm from '../vendor/htm.js';

export { Fragment, h, render } from '../vendor/preact.js';
export {
  useCallback,
  useEffect,
  useErrorBoundary,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from '../vendor/preact-hooks.js';
export { batch, computed, effect, signal, useComputed, useSignal } from '../vendor/signals.js';

export const html = htm.bind(h);
