import { byId, call, describe, element, inOrder, repeat } from "./common.js";

const WORDS = { healthy: "ready", degraded: "works, with problems", unhealthy: "does not work" };

function show(state, text) {
  byId("state").className = `state ${state}`;
  byId("state").textContent = text;
}

function showChannels(meta) {
  byId("channels").replaceChildren(
    ...inOrder(meta.channels).map((channel) => {
      const item = element("li", { textContent: channel.name });
      item.style.borderColor = channel.color;
      if (!channel.enabled) {
        item.className = "off";
        item.title = "not sent at the moment";
      }
      return item;
    }),
  );
}

async function refresh() {
  try {
    const meta = await call("GET", "/audio-meta");
    document.title = byId("name").textContent = meta.server.name;
    byId("format").textContent = `${describe(meta)} · ${meta.listeners} listening`;
    showChannels(meta);
    const health = await call("GET", "/health");
    show(health.status, WORDS[health.status]);
    byId("reasons").replaceChildren(
      ...health.reasons.map((reason) => element("li", { textContent: reason })),
    );
  } catch (error) {
    show("unhealthy", error.message);
  }
}

byId("command").textContent = `m32net listen ${location.origin}`;
byId("ws").textContent = `${location.origin.replace(/^http/, "ws")}/ws`;
repeat(5, refresh);
