import { setUpNetwork, showNetwork, showPin, showSecurity } from "./admin-network.js";
import { byId, call, describe, element, figure, inOrder, repeat } from "./common.js";

let loggedIn = false;

function notice(text, bad = false) {
  byId("notice").textContent = text;
  byId("notice").className = bad ? "poor" : "good";
}

function show(yes) {
  loggedIn = yes;
  byId("login").hidden = yes;
  byId("desk").hidden = byId("logout").hidden = !yes;
}

// Does something with the server and says how it went; a lost session asks for the password again.
async function attempt(work, done = "") {
  try {
    const answer = await work();
    if (done) notice(done);
    return answer;
  } catch (error) {
    notice(error.message, true);
    if (error.code === "not_logged_in") show(false);
    return null;
  }
}

// -- channels

function strip(channel) {
  const name = element("input", { type: "text", value: channel.name, maxLength: 128 });
  const color = element("input", { type: "color", value: channel.color });
  const enabled = element("input", { type: "checkbox", checked: channel.enabled });
  name.setAttribute("aria-label", `Name of channel ${channel.id}`);
  color.setAttribute("aria-label", `Colour of channel ${channel.id}`);
  enabled.setAttribute("aria-label", `Send channel ${channel.id}`);
  const change = async (fields) => {
    const all = await attempt(
      () => call("PUT", "/api/channels", [{ id: channel.id, ...fields }]),
      `Channel ${channel.id} is kept.`,
    );
    const now = all ? all.find((one) => one.id === channel.id) : channel;
    Object.assign(channel, now);
    name.value = now.name;
    color.value = now.color;
    enabled.checked = now.enabled;
  };
  name.addEventListener("change", () => change({ name: name.value || null }));
  color.addEventListener("change", () => change({ color: color.value }));
  enabled.addEventListener("change", () => change({ enabled: enabled.checked }));
  const id = element("span", { className: "id", textContent: channel.id });
  return element("div", { className: "strip" }, id, enabled, color, name);
}

// -- audio format

function showFormat(format) {
  const fields = byId("format").elements;
  for (const name of ["codec", "sample_rate", "frame_ms", "bitrate"]) {
    const value = String(format[name]);
    if (![...fields[name].options].some((option) => option.value === value)) {
      fields[name].add(element("option", { value, textContent: value }));
    }
    fields[name].value = value;
  }
  byId("in-force").textContent = `Now: ${describe(format)}`;
}

byId("format").addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = event.target.elements;
  const format = await attempt(
    () => call("PUT", "/api/audio-config", {
      codec: fields.codec.value,
      sample_rate: Number(fields.sample_rate.value),
      frame_ms: Number(fields.frame_ms.value),
      bitrate: Number(fields.bitrate.value),
    }),
    "The format is in use.",
  );
  if (format) showFormat(format);
});

// -- listeners

function row(listener) {
  const quality = listener.quality ?? {};
  const loss = quality.loss == null ? null : quality.loss * 100;
  const format = listener.codec ? `${listener.codec} ${listener.sample_rate / 1000} kHz` : "–";
  const cells = [
    listener.name || listener.client_id,
    listener.rating,
    figure(loss, 2, "%"),
    figure(quality.jitter_ms, 1, "ms"),
    figure(quality.latency_ms, 1, "ms"),
    format,
    String(listener.channels.length),
    listener.host,
  ].map((textContent) => element("td", { textContent }));
  cells[1].className = listener.rating;
  return element("tr", {}, ...cells);
}

async function showListeners() {
  if (!loggedIn) return;
  const all = await attempt(() => call("GET", "/api/listeners"));
  if (!all) return;
  const refused = all.refused ? `, ${all.refused} refused because full` : "";
  byId("count").textContent = `${all.count} of ${all.max}${refused}`;
  byId("listeners").replaceChildren(...all.listeners.map(row));
}

byId("message").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const sent = await attempt(() => call("POST", "/api/message", { reason: form.elements.reason.value }));
  if (sent) {
    notice(`Sent to ${sent.listeners}.`);
    form.reset();
  }
});

// -- session

async function open() {
  show(true);
  const [channels, format] = await Promise.all([
    attempt(() => call("GET", "/api/channels")),
    attempt(() => call("GET", "/api/audio-config")),
  ]);
  if (channels) byId("channels").replaceChildren(...inOrder(channels).map(strip));
  if (format) showFormat(format);
  await Promise.all([showPin(), showSecurity(), showNetwork(), showListeners()]);
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const { user, password } = form.elements;
  const session = await attempt(
    () => call("POST", "/api/login", { user: user.value, password: password.value }),
  );
  if (session) {
    form.reset();
    notice("");
    await open();
  }
});

byId("logout").addEventListener("click", async () => {
  await attempt(() => call("POST", "/api/logout"), "Logged out.");
  show(false);
});

setUpNetwork(attempt);
try {
  await call("GET", "/api/session");
  await open();
} catch (error) {
  if (error.code !== "not_logged_in") notice(error.message, true);
  show(false);
}
repeat(2, showListeners);
repeat(5, () => loggedIn && showNetwork());
repeat(60, () => loggedIn && showSecurity());
