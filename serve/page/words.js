// Durations, sizes, dates and counts as people read them.

export function seconds(value) {
  if (value < 1) return "under a second";
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const percent = (share) => `${Math.round(share * 100)}\u00a0%`;

export const bytes = (number) => (number < 1e6 ? `${Math.ceil(number / 1000)} kB` : `${(number / 1e6).toFixed(1)} MB`);

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** `time` in seconds since 1970. */
export function ago(time) {
  const past = Date.now() / 1000 - time;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(time * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}
