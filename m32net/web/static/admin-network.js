// The engineer's sections about the network: certificates, connections, the PIN, moving away.
// What this server does not have (a route answers 404) is not shown.

import { byId, call, element, figure } from "./common.js";

let attempt;

async function perhaps(path) {
  return attempt(async () => {
    try {
      return await call("GET", path);
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  });
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function octets(count) {
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

// -- certificates

export async function showSecurity() {
  const trust = await perhaps("/api/trust");
  const certificate = trust && trust.certificate;
  byId("secure").hidden = !certificate;
  if (!certificate) return;
  const url = certificate.secure_url;
  const until = new Date(certificate.expires * 1000).toLocaleDateString();
  const link = url ? [element("a", { href: url, textContent: url }), ", "] : [];
  byId("secure-state").replaceChildren(...link, `certificate good until ${until}`);
  byId("secure-problem").hidden = !certificate.problem;
  byId("secure-problem").textContent = certificate.problem;
  byId("secure-install").hidden = !trust.ca_url;
  if (!trust.ca_url) return;
  byId("ca-link").textContent = trust.ca_url;
  byId("ca-fingerprint").textContent = certificate.fingerprint;
  if (!byId("ca-qr").src) byId("ca-qr").src = "/ca-qr.svg";
}

// -- connections and who is shut out

function connectionRow(one) {
  const resent = one.retransmitted == null ? null : one.retransmitted * 100;
  const cells = [
    `${one.host}:${one.port}`,
    one.secure ? "yes" : "no",
    figure(one.rtt_ms, 1, "ms"),
    figure(resent, 2, "%"),
    octets(one.bytes_received),
    octets(one.bytes_sent),
    duration(one.age_s),
    duration(one.idle_s),
  ].map((textContent) => element("td", { textContent }));
  return element("tr", {}, ...cells);
}

function blockedItem(one) {
  const lift = element("button", { type: "button", textContent: "Let in again" });
  lift.setAttribute("aria-label", `Let ${one.address} in again`);
  lift.addEventListener("click", async () => {
    // A slash, as in 2001:db8::/64, is part of the route.
    const path = one.address.split("/").map(encodeURIComponent).join("/");
    await attempt(() => call("DELETE", `/api/blocked/${path}`), `${one.address} may connect again.`);
    await showNetwork();
  });
  const text = `${one.address}, for ${duration(one.remaining_s)}: ${one.reason}`;
  return element("li", {}, element("span", { textContent: text }), lift);
}

async function showConnections() {
  const all = await perhaps("/api/connections");
  byId("net").hidden = !all;
  if (!all) return;
  byId("net-count").textContent = String(all.count);
  byId("connections").replaceChildren(...all.connections.map(connectionRow));
}

async function showBlocked() {
  const answer = await perhaps("/api/blocked");
  const blocked = answer ? answer.blocked : [];
  byId("shut-out").hidden = blocked.length === 0;
  const focused = document.activeElement?.getAttribute("aria-label");
  byId("blocked").replaceChildren(...blocked.map(blockedItem));
  const again = [...byId("blocked").querySelectorAll("button")];
  again.find((button) => button.getAttribute("aria-label") === focused)?.focus();
}

export const showNetwork = () => Promise.all([showConnections(), showBlocked(), showMigration()]);

// -- moving to another server

const STATES = {
  checking: "Looking at the other server",
  moving: "The listeners are moving",
  done: "All listeners have moved",
  incomplete: "Some listeners have stayed",
  failed: "Nobody was moved",
  cancelled: "Called off",
};

async function showMigration() {
  const migration = await perhaps("/api/migration");
  const known = migration && migration.state !== "idle";
  byId("moving").hidden = !known;
  if (!known) return;
  const { host, port, reason, state, moves } = migration;
  const where = host ? ` (${host}:${port})` : "";
  byId("moving-state").textContent = `${STATES[state] ?? state}${where}${reason ? `: ${reason}` : ""}`;
  byId("moves").replaceChildren(
    ...moves.map((move) => element("li", { textContent: `${move.name || move.client_id}: ${move.state}` })),
  );
  byId("moving-cancel").hidden = !["checking", "moving", "incomplete"].includes(state);
}

// -- the listeners' PIN

function pinShown(settings) {
  const pin = settings ? settings.listener_pin : undefined;
  byId("pin").hidden = pin === undefined;
  if (pin === undefined) return;
  byId("pin").elements.pin.value = pin;
  byId("pin-state").textContent = pin
    ? "Listeners must know it."
    : "Everybody on this network may listen.";
}

export const showPin = async () => pinShown(await perhaps("/api/settings"));

export function setUpNetwork(attemptGiven) {
  attempt = attemptGiven;
  byId("pin").addEventListener("submit", async (event) => {
    event.preventDefault();
    const listener_pin = event.target.elements.pin.value;
    const settings = await attempt(
      () => call("PUT", "/api/settings", { listener_pin }),
      listener_pin ? "The PIN is in use." : "No PIN is needed any more.",
    );
    if (settings) pinShown(settings);
  });
  byId("moving-cancel").addEventListener("click", async () => {
    await attempt(() => call("DELETE", "/api/migration"), "Called off; who has not moved stays.");
    await showNetwork();
  });
}
