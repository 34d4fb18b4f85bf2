// A job as the command and as the Python program that make the same video.

const shellWord = (text) => (/^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
const shellValue = (value) => shellWord(Array.isArray(value) ? value.join(":") : String(value));

function shellOption(name, value) {
  const option = name.replaceAll("_", "-");
  if (typeof value === "boolean") return value ? `--${option}` : `--no-${option}`;
  return `--${option} ${shellValue(value)}`;
}

/** `consisti2v generate ...`; `settings` are those that differ from the defaults, the seed among them. */
export function command(model, prompt, settings) {
  const parts = [
    `consisti2v generate --bundle ${shellWord(model)} --image photo.jpg`,
    `--prompt ${shellValue(prompt)}`,
    ...Object.entries(settings).map(([name, value]) => shellOption(name, value)),
    "--output video.mp4",
  ];
  return parts.join(" \\\n  ");
}

// JSON's texts and numbers are Python's.
const literal = (value) => {
  if (typeof value === "boolean") return value ? "True" : "False";
  return Array.isArray(value) ? `(${value.map(literal).join(", ")})` : JSON.stringify(value);
};

export function python(model, prompt, settings) {
  const options = Object.entries(settings).map(([name, value]) => `        ${name}=${literal(value)},\n`);
  return `from consisti2v_rt import ImageToVideo

with ImageToVideo.from_bundle(${literal(model)}) as animate:
    videos = animate(
        "photo.jpg",
        ${literal(prompt)},
${options.join("")}    )
    videos.save("video.mp4")`;
}
