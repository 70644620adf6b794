// What both pages use: fetching JSON with readable errors, and small helpers for the document.

export class RequestError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let last = Promise.resolve();

// One request after the other: a browser opens a connection for each that is under way, and the
// server admits only so many of one address in a minute.
export function call(method, path, body) {
  const answer = last.then(() => request(method, path, body));
  last = answer.catch(() => {});
  return answer;
}

async function request(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      redirect: "manual",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new RequestError(0, "offline", "the server does not answer");
  }
  if (response.type === "opaqueredirect") {
    // The listeners move to another server (CON-51): a page may not fetch there, but go there.
    location.reload();
    throw new RequestError(307, "moved", "this goes on at another server");
  }
  const answer = await response.json();
  if (answer.error) throw new RequestError(response.status, answer.error.code, answer.error.message);
  return answer;
}

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const figure = (value, digits, unit) =>
  value == null ? "–" : `${value.toFixed(digits)} ${unit}`;

export const inOrder = (channels) =>
  [...channels].sort((a, b) => a.order - b.order || a.id - b.id);

export function describe(format) {
  const codec = format.codec === "opus" ? "Opus" : format.codec;
  const rate = (format.bitrate_in_force ?? format.bitrate) / 1000;
  return `${codec}, ${format.sample_rate / 1000} kHz, ${format.frame_ms} ms, ${rate} kbit/s a channel`;
}

// Calls `work` now and every `seconds`, but only while the page is seen.
export function repeat(seconds, work) {
  const run = () => { if (!document.hidden) work(); };
  document.addEventListener("visibilitychange", run);
  setInterval(run, seconds * 1000);
  work();
}
