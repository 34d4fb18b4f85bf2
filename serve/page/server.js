// The server's API: JSON calls, the upload with its progress, files, and the events of a job.

const KEY = "consisti2v-api-key";
const ENDED = new Set(["completed", "failed", "cancelled"]);
// The server sends a comment while nothing happens; a stream that is silent for longer is broken.
const SILENCE_MS = 40_000;
const POLL_MS = 2000;

/** A refusal of the server, in its own sentence; `status` is 0 where the server could not be reached. */
export class ServerError extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export const hasEnded = (job) => ENDED.has(job.status);

let wantKey = async () => null;
let asking = null;

/** `ask(refused)` resolves to a key, or to null where the user gives none; it is called once for all waiting calls. */
export function onKeyWanted(ask) {
  wantKey = ask;
}

async function newKey(usedKey) {
  const stored = sessionStorage.getItem(KEY);
  if (stored !== usedKey) return stored; // another call has asked meanwhile
  asking ??= wantKey(usedKey !== null).finally(() => (asking = null));
  const key = await asking;
  if (key) sessionStorage.setItem(KEY, key);
  return key;
}

function authorised(key, headers) {
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

function sentenceOf(text, status) {
  try {
    const answer = JSON.parse(text);
    const told = answer.error?.message ?? answer.detail ?? answer.message;
    if (typeof told === "string") return told;
  } catch {
    // Not JSON: a proxy answered.
  }
  return `The server answered with status ${status} and no reason; see its log.`;
}

const UNREACHABLE = "The server cannot be reached. The page tries again by itself; check that 'consisti2v serve' runs.";

/** A fetch with the key, which is asked for where the server wants one. */
async function request(path, { headers = {}, ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: authorised(key, headers) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(UNREACHABLE, 0);
    }
    if (answer.ok) return answer;
    if (answer.status !== 401 || !(await newKey(key))) {
      throw new ServerError(sentenceOf(await answer.text(), answer.status), answer.status);
    }
  }
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

export const capabilities = () => getJson("v1/capabilities");
export const video = (id) => getJson(`v1/videos/${encodeURIComponent(id)}`);
export const videos = (query) => getJson(`v1/videos?${new URLSearchParams(query)}`);
export const cancel = (id) => getJson(`v1/videos/${encodeURIComponent(id)}/cancel`, { method: "POST" });
export const remove = (id) => getJson(`v1/videos/${encodeURIComponent(id)}`, { method: "DELETE" });

/** The bytes of a video in `format`; or of its picture (variant "thumbnail"), or of the photo it was made of ("photo"). */
export async function content(id, { format = "mp4", variant = "video" }) {
  const query = new URLSearchParams({ format, variant });
  return (await request(`v1/videos/${encodeURIComponent(id)}/content?${query}`)).blob();
}

/** Send a form and give the new job; `onProgress(share)` follows the upload, which fetch cannot. */
export async function create(form, onProgress) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const { status, text } = await upload("v1/videos", form, key, onProgress);
    if (status >= 200 && status < 300) return JSON.parse(text);
    if (status === 0) throw new ServerError("The photo could not be sent: the connection was lost. Try again.", 0);
    if (status !== 401 || !(await newKey(key))) throw new ServerError(sentenceOf(text, status), status);
  }
}

function upload(path, form, key, onProgress) {
  return new Promise((resolve) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(authorised(key, {}))) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onloadend = () => resolve({ status: sending.status, text: sending.responseText });
    sending.send(form);
  });
}

/** Server-sent events of one connection: {id, event, data}. EventSource cannot send a key, so this reads the stream. */
async function* stream(id, lastId, signal) {
  const silence = new AbortController();
  const both = AbortSignal.any([signal, silence.signal]);
  let alarm = setTimeout(() => silence.abort(), SILENCE_MS);
  const headers = { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
  try {
    const answer = await request(`v1/videos/${encodeURIComponent(id)}/events`, { headers, signal: both });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(alarm);
      alarm = setTimeout(() => silence.abort(), SILENCE_MS);
      const blocks = (text + value).replace(/\r\n?/g, "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    clearTimeout(alarm);
  }
}

function parsed(block) {
  const fields = { id: null, event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    if (colon > 0 && name in fields) {
      const value = line.slice(colon + 1).replace(/^ /, "");
      fields[name] = name === "data" && fields.data ? `${fields.data}\n${value}` : value;
    }
  }
  return fields.data ? { ...fields, data: JSON.parse(fields.data) } : null;
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/**
 * Follow a job to its end and give its last state.
 *
 * Events where the connection carries them, and polling between two connections and where it does not; a server that
 * is away is waited for. `onEvent(name, data)` gets each event, `onJob(job)` each state that was polled, and
 * `onAway(error)` each failed attempt.
 */
export async function follow(id, signal, { onEvent, onJob, onAway }) {
  let lastId = null;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const job = await video(id);
      if (signal.aborted) return null;
      onJob(job);
      if (hasEnded(job)) return job;
      const before = lastId;
      try {
        for await (const event of stream(id, lastId, signal)) {
          if (signal.aborted) return null;
          lastId = event.id ?? lastId;
          onEvent(event.event, event.data);
        }
      } catch (error) {
        if (signal.aborted) return null;
        // The next poll tells whether the server is away or only the stream is broken.
      }
      failures = lastId === before ? failures + 1 : 0;
      if (failures) await pause(POLL_MS, signal);
    } catch (error) {
      if (signal.aborted) return null;
      if (error.status === 404 || error.status === 401) throw error;
      onAway(error);
      failures += 1;
      await pause(Math.min(500 * 2 ** failures, 3000), signal);
    }
  }
  return null;
}
