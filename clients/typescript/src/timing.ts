// Time as the client measures it: one clock for what has elapsed, one place where a timer is set.

/**
 * The longest delay that a timer takes (2³¹ − 1 ms, 24.8 days); a longer one would fire at once.
 */
const LONGEST_MS = 2 ** 31 - 1;

export type Timer = ReturnType<typeof setTimeout>;

/**
 * Milliseconds since an arbitrary start. Changing the computer's clock does not change it, as it
 * changes `Date.now()`.
 */
export const now = (): number => performance.now();

/**
 * Calls `what` after `ms` milliseconds. `Infinity`, and what is no number, sets no timer; a longer
 * delay than a timer takes is shortened to that.
 */
export function after(ms: number, what: () => void): Timer | undefined {
  return ms < Infinity ? setTimeout(what, Math.min(ms, LONGEST_MS)) : undefined;
}
