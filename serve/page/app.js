// Starts the page: what the server can do, the form, the job that runs, and the gallery.

import { deleteVideo, refresh, startGallery } from "./gallery.js";
import { clearStage, showJob, shownJob, startStage } from "./job.js";
import { $, announce, ask, showError } from "./page.js";
import { photo, startPhoto, takePhoto } from "./photo.js";
import { changedSettings, readRequest, startRequest, writeRequest } from "./request.js";
import * as server from "./server.js";
import { bytes, count, percent } from "./words.js";

const BUSY_MS = 4000;
const IDLE_MS = 10_000;
const photos = new Map(); // job id -> the photo as this tab sent it
let able = null;
let timer = null;

server.onKeyWanted((refused) =>
  ask({
    title: "This server wants a key",
    text: refused
      ? "The server does not know that key. Type the key that it was started with."
      : "Type the key that the server was started with. It is kept until you close this tab.",
    yes: "Continue",
    key: true,
  }),
);

function status(state, text) {
  $("server").className = `server ${state}`;
  if ($("server-text").textContent !== text) $("server-text").textContent = text;
}

function away(error) {
  const text = error.status === 0 ? "No connection to the server" : error.message;
  if ($("server-text").textContent !== text) announce(text);
  status("down", text);
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Reads what the server can do, once it has loaded its models; tries again until it answers. */
async function connect() {
  for (let wait = 500; ; wait = Math.min(1.5 * wait, 8000)) {
    try {
      able = await server.capabilities();
      if (able.ready) break;
      status("", "The server loads its models…");
    } catch (error) {
      away(error);
    }
    await pause(wait);
  }
  startRequest(able);
  $("start").disabled = false;
}

/** Reads the list now and again: what other tabs and clients do shows here too. */
async function watchList() {
  clearTimeout(timer);
  let wait = IDLE_MS;
  let jobs = [];
  try {
    jobs = await refresh();
    const open = jobs.filter((job) => !server.hasEnded(job));
    if (open.length) wait = BUSY_MS;
    const waiting = open.filter((job) => job.status === "queued").length;
    const work = open.length ? (waiting ? `${count(waiting, "video")} waiting` : "busy") : "ready";
    status("up", `${[...new Set(able.workers.flatMap((worker) => Object.values(worker.models)))].join(", ")} · ${work}`);
  } catch (error) {
    away(error);
  }
  timer = setTimeout(watchList, document.hidden ? 5 * wait : wait);
  return jobs;
}

async function send(picture, { model, prompt, seed, settings }) {
  const most = able.limits.upload_bytes;
  // Told before a slow network has sent it.
  const large = `The photo has ${bytes(picture.size)}: this server takes at most ${bytes(most)}; choose a smaller one.`;
  showError($("form-error"), picture.size > most ? large : null);
  if (picture.size > most) return;
  const button = $("start");
  const form = new FormData();
  form.append("input_reference", picture, picture.name ?? "photo");
  form.append("model", model);
  form.append("prompt", prompt);
  if (seed !== "") form.append("seed", seed);
  form.append("extra_body", JSON.stringify(settings));
  button.disabled = true;
  try {
    const job = await server.create(form, (share) => {
      button.textContent = share < 1 ? `Sending the photo, ${percent(share)}` : "Sending the photo";
    });
    photos.set(job.id, picture);
    goTo(job.id);
    announce("The video is in the queue.");
    watchList();
  } catch (error) {
    showError($("form-error"), error);
    $("form-error").scrollIntoView({ block: "nearest" });
  } finally {
    button.disabled = false;
    button.textContent = "Animate";
  }
}

function submit(event) {
  event.preventDefault();
  if ($("start").disabled) return; // by the keyboard, while another photo is sent
  const picture = photo();
  if (!picture) {
    showError($("form-error"), "Choose a photo first: any JPEG, PNG or WebP file.");
    $("file").focus();
    return;
  }
  const wrong = $("compose").querySelector(":invalid:not(fieldset)");
  if (wrong) {
    if ($("settings").contains(wrong)) $("advanced").open = true;
    wrong.reportValidity();
    return;
  }
  send(picture, readRequest());
}

async function photoOf(job) {
  // Of no type: the browser finds out what it is, as the server does.
  return photos.get(job.id) ?? new File([await server.content(job.id, { variant: "photo" })], "photo", { type: "" });
}

async function again() {
  const job = shownJob();
  try {
    const { model, prompt } = job;
    await send(await photoOf(job), { model, prompt, seed: "", settings: changedSettings(job) });
  } catch (error) {
    showError($("job-error"), error);
  }
}

async function reuse() {
  const job = shownJob();
  writeRequest(job);
  $("prompt").focus();
  try {
    takePhoto(await photoOf(job));
  } catch (error) {
    showError($("form-error"), error);
  }
}

async function example() {
  try {
    const answer = await fetch("example.jpg");
    takePhoto(new File([await answer.blob()], "example.jpg", { type: "image/jpeg" }));
    $("file").focus();
  } catch {
    showError($("form-error"), "The example photo could not be read: the server is away.");
  }
}

/** Shows a job and moves there, as its button is in another part of the page. */
function goTo(id) {
  showJob(id);
  $("stage").focus({ preventScroll: true });
  const { top } = $("stage").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 4) $("stage").scrollIntoView({ block: "start", behavior: "instant" });
}

async function start() {
  startPhoto();
  startStage(() => watchList());
  startGallery(
    goTo,
    (id, error) => {
      if (error) showError($("job-error"), error);
      else if (shownJob()?.id === id) clearStage();
    },
  );
  $("compose").addEventListener("submit", submit);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("compose").requestSubmit();
  });
  $("example").addEventListener("click", example);
  $("again").addEventListener("click", again);
  $("reuse").addEventListener("click", reuse);
  $("remove").addEventListener("click", () => deleteVideo(shownJob().id));
  document.addEventListener("visibilitychange", () => document.hidden || (able && watchList()));
  await connect();
  const jobs = await watchList();
  // The address names the job that the page showed before a reload; else the page goes on with one that runs.
  const asked = location.hash.slice(1) || jobs.find((job) => !server.hasEnded(job))?.id;
  if (asked) showJob(asked);
}

start();
