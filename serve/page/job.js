// The large picture: a job from the queue to its looping video, with everything that can be done with it.

import { $, announce, drawing, make, showError } from "./page.js";
import * as server from "./server.js";
import { command, python } from "./recipe.js";
import { setCurrent, videoAddress } from "./gallery.js";
import { changedSettings } from "./request.js";
import { ago, count, percent, seconds } from "./words.js";

const FORMATS = { mp4: "MP4", gif: "GIF", webp: "WebP" };
const TITLE = document.title;
const still = matchMedia("(prefers-reduced-motion: reduce)");
let job = null;
let following = null;
let endsAt = null;
let quarter = 0;
let ended = () => {};

export const shownJob = () => job;

/** Shows nothing again. */
export function clearStage() {
  following?.abort();
  job = null;
  setCurrent(null);
  history.replaceState(null, "", location.pathname + location.search);
  document.title = TITLE;
  for (const id of ["preview", "video", "play", "running", "told", "job-error"]) $(id).hidden = true;
  $("video").removeAttribute("src");
  stageText("Your video appears here.");
  $("stage").classList.add("blank");
}

/** Shows a job and follows it to its end; resolves when it has ended or another one is shown. */
export async function showJob(id) {
  following?.abort();
  const own = (following = new AbortController());
  clearPicture();
  job = null;
  quarter = 0;
  endsAt = null;
  setCurrent(id);
  history.replaceState(null, "", `#${id}`);
  try {
    const last = await server.follow(id, own.signal, { onEvent, onJob: draw, onAway: away });
    if (last && !own.signal.aborted) ended(last);
  } catch (error) {
    if (own.signal.aborted) return;
    const watched = job !== null;
    clearStage();
    // An old address may name a video that is gone; one that was on the screen is missed.
    if (watched || error.status !== 404) showError($("form-error"), error);
  }
}

function clearPicture() {
  $("stage").classList.remove("blank");
  stageText("");
  for (const id of ["preview", "video", "play", "told", "job-error"]) $(id).hidden = true;
  $("preview").removeAttribute("src");
  $("video").removeAttribute("src");
}

/** What stands where there is no picture yet. */
function stageText(text) {
  $("stage-text").textContent = text;
  $("stage-empty").hidden = false;
}

function away(error) {
  $("phase").textContent = "Waiting for the server";
  $("left").textContent = "";
  $("steps").textContent = error.message;
  $("progress").removeAttribute("value");
  endsAt = null;
}

function onEvent(name, data) {
  if (name === "queued") draw({ ...job, status: "queued", queue_position: data.position, eta_seconds: data.eta_seconds });
  else if (name === "step") step(data);
  else if (name === "decoding") phase("Making the frames", "", 99);
  else if (name === "started") draw({ ...job, status: "in_progress" });
  else if (name === "cancelling") draw({ ...job, status: "cancelling" });
  else if (data.status) draw(data);
}

function step(data) {
  if (job.status === "cancelling") return;
  job = { ...job, status: "in_progress", progress: Math.floor((100 * data.step) / data.steps) };
  if (data.preview) showPreview(data.preview, data.step / data.steps < 0.3);
  phase("Making the video", `Step ${data.step} of ${data.steps}`, (100 * data.step) / data.steps);
  setEnd(data.eta_seconds);
  const reached = Math.floor((4 * data.step) / data.steps);
  if (reached > quarter && reached < 4) announce(`${25 * reached} percent, ${$("left").textContent}`);
  quarter = Math.max(quarter, reached);
}

function showPreview(source, early) {
  $("preview").src = source;
  $("preview").classList.toggle("early", early);
  $("preview").hidden = false;
  $("stage-empty").hidden = true;
}

function phase(title, detail, progress) {
  if ($("phase").textContent !== title) announce(title);
  $("phase").textContent = title;
  $("steps").textContent = detail;
  if (progress === null) $("progress").removeAttribute("value");
  else $("progress").value = progress;
  $("running").hidden = false;
  document.title = progress ? `${percent(progress / 100)}, ${TITLE}` : TITLE;
}

function setEnd(eta) {
  endsAt = eta == null ? null : Date.now() + 1000 * eta;
  tick();
}

function tick() {
  $("left").textContent = endsAt === null ? "" : `${seconds(Math.max(0, (endsAt - Date.now()) / 1000))} left`;
}

function draw(state) {
  const before = job?.id === state.id ? job.status : null;
  job = state;
  $("cancel").disabled = state.status === "cancelling";
  if (state.status === "queued") {
    stageText("Waiting for its turn.");
    const before = state.queue_position;
    const told = before ? `${count(before, "video waits", "videos wait")} before this one` : "Next in the queue";
    phase(told, "", null);
    setEnd(state.eta_seconds);
  } else if (state.status === "in_progress") {
    if (before !== "in_progress") {
      $("stage-text").textContent = "";
      phase("Making the video", "", state.progress || null);
    }
    else if (state.progress) $("progress").value = state.progress;
    if (state.eta_seconds != null) setEnd(state.eta_seconds);
  } else if (state.status === "cancelling") {
    phase("Stopping", "", null);
    setEnd(null);
  } else if (before !== state.status) {
    finish(state, before);
  }
  facts(state);
}

function finish(state, before) {
  if (document.activeElement === $("cancel")) $("stage").focus({ preventScroll: true });
  $("running").hidden = true;
  document.title = TITLE;
  endsAt = null;
  const watched = before !== null;
  // The last preview stays until the video is there.
  if (state.status !== "completed") $("preview").hidden = true;
  if (state.status === "completed") {
    if ($("preview").hidden) stageText("Loading the video…");
    play(state.id);
    if (watched) announce("The video is ready.");
  } else if (state.status === "failed") {
    stageText("This video failed.");
    showError($("job-error"), state.error?.message ?? "The video failed, and the server gave no reason; see its log.");
  } else {
    showError($("job-error"), null);
    stageText("This video was cancelled.");
    if (watched) announce("Cancelled.");
  }
}

async function play(id) {
  const video = $("video");
  try {
    const address = await videoAddress(id);
    if (job?.id !== id) return;
    video.src = address;
    video.setAttribute("aria-label", job.prompt ? `The video: ${job.prompt}` : "The video");
    video.hidden = false;
    $("preview").hidden = true;
    $("stage-empty").hidden = true;
    $("play").hidden = false;
    if (!still.matches) await video.play();
  } catch (error) {
    if (error instanceof server.ServerError) showError($("job-error"), error);
  }
  playButton();
}

function playButton() {
  const paused = $("video").paused;
  $("play").replaceChildren(drawing(paused ? "play" : "pause"));
  $("play").setAttribute("aria-label", paused ? "Play" : "Pause");
}

function facts(state) {
  $("told").hidden = false;
  $("job-prompt").textContent = state.prompt || "No prompt";
  const made = state.completed_at && state.started_at ? state.completed_at - state.started_at : null;
  const told = [
    state.size.replace("x", "×"),
    `${Number(state.seconds)} s`,
    `seed ${state.seed}`,
    state.model,
    state.status === "completed" && made != null && `made in ${seconds(made)}`,
    ago(state.created_at),
  ];
  $("job-facts").textContent = told.filter(Boolean).join(" · ");
  const over = server.hasEnded(state);
  $("downloads").hidden = state.status !== "completed";
  for (const id of ["again", "reuse", "remove"]) $(id).hidden = !over;
  const loras = state.loras?.map((one) => `LoRA ${one.name} x ${one.strength}`) ?? [];
  // The files of LoRAs are the server's: nobody else could run the command.
  $("recipe").hidden = !over || loras.length > 0;
  showError($("job-notices"), [...(state.notices ?? []), ...loras].join("; "));
  const settings = { seed: state.seed, ...changedSettings(state) };
  $("command").textContent = command(state.model, state.prompt, settings);
  $("python").textContent = python(state.model, state.prompt, settings);
}

async function download(format, button) {
  const { id } = job;
  button.disabled = true;
  try {
    const blob = await server.content(id, { format });
    const address = URL.createObjectURL(blob);
    make("a", { href: address, download: `${id}.${format}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    showError($("job-error"), error);
  }
  button.disabled = false;
}

async function copy(button) {
  const part = $(button.dataset.copy);
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(part.textContent);
    button.textContent = "Copied";
    announce("Copied");
    setTimeout(() => (button.textContent = name), 1500);
  } catch {
    // Without a secure address there is no clipboard: the text is selected, to be copied by hand.
    getSelection().selectAllChildren(part);
    announce("The text is selected: copy it with the keyboard.");
  }
}

/** Wires the stage; `onEnded(job)` hears of the end of the job that is shown. */
export function startStage(onEnded) {
  ended = onEnded;
  setInterval(tick, 1000);
  for (const [format, name] of Object.entries(FORMATS)) {
    const button = make("button", { type: "button", className: "button" }, drawing("down"), name);
    button.setAttribute("aria-label", `Download ${name}`);
    button.addEventListener("click", () => download(format, button));
    $("downloads").append(button);
  }
  $("play").addEventListener("click", () => {
    const video = $("video");
    if (video.paused) video.play();
    else video.pause();
  });
  for (const event of ["play", "pause"]) $("video").addEventListener(event, playButton);
  $("cancel").addEventListener("click", async () => {
    $("cancel").disabled = true;
    const { id } = job;
    try {
      const state = await server.cancel(id);
      if (job?.id === id) draw(state);
    } catch (error) {
      // It may have ended meanwhile; the events tell.
      if (error.status !== 409) showError($("job-error"), error);
      $("cancel").disabled = false;
    }
  });
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
}
