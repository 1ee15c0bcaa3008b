"use strict";
// One websocket; one step on its way at a time. What is held is asked for again when the picture has come.

const $ = (id) => document.getElementById(id);
const RESERVED = ["KeyP", "KeyR", "KeyC", "KeyO", "KeyF"];
const SPARE = ["Digit1", "Digit2", "Digit3", "Digit4", "Digit5", "Digit6", "Digit7", "Digit8", "Digit9", "Digit0",
  "KeyQ", "KeyE", "KeyT", "KeyY", "KeyG", "KeyH", "KeyJ", "KeyK", "KeyL", "KeyV", "KeyB", "KeyN", "KeyM"];
const KNOWN = [ // what a name says, and the keys that everybody tries, best first
  [/forward|^up$|accelerate|gas/i, ["ArrowUp", "KeyW"]],
  [/back|^down$|brake|reverse/i, ["ArrowDown", "KeyS"]],
  [/(turn|look|rotate|steer).*left|^left$/i, ["ArrowLeft", "KeyA"]],
  [/(turn|look|rotate|steer).*right|^right$/i, ["ArrowRight", "KeyD"]],
  [/(move|strafe).*left/i, ["KeyA", "KeyQ"]],
  [/(move|strafe).*right/i, ["KeyD", "KeyE"]],
  [/attack|shoot|fire|jump/i, ["Space", "KeyX"]],
  [/use|open|toggle|pickup/i, ["KeyE", "Enter"]],
];
const GLYPHS = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Space: "space", Enter: "↵" };
const MANY = 24; // choices of which each has a button

let hello = null, socket = null, buttons = [], chosen = new Map(), values = [];
let mode = "ready"; // ready: the first key lets time run; running; paused: a press is one step
let waiting = false, tapped = null, lastSent = 0, timer = 0, pressedAt = 0, over = "", busy = false;
let arrivals = [], latencies = [];
const held = []; // indices of buttons, in the order in which they were pressed

function connect() {
  socket = new WebSocket(`ws${location.protocol === "https:" ? "s" : ""}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = (event) => {
    say(`${event.reason || "the server is gone"}: reload the page to play on`, "lost");
    waiting = true;
    setMode("paused");
  };
}

function send(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function say(text, state) {
  $("status").textContent = text;
  $("status").className = state || "";
}

function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const bytes = new Uint8Array(data, 4 + length);
  ({ hello: onHello, frame: onFrame, branches: onBranches, clip: onClip, notice: onNotice })[header.kind](header, bytes);
}

// ---------------------------------------------------------------------------------------------------------- pictures

function paint(canvas, bytes, offset) { // returns where the next picture begins
  const [height, width] = hello.frame, count = height * width;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0, j = offset; i < count; i++, j += 3) {
    image.data[4 * i] = bytes[j];
    image.data[4 * i + 1] = bytes[j + 1];
    image.data[4 * i + 2] = bytes[j + 2];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return offset + 3 * count;
}

function paintEntropy(bytes, offset) {
  const canvas = $("entropy"), [height, width] = hello.grid, most = Math.log(hello.codes);
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset);
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const share = Math.min(1, view.getFloat32(4 * i, true) / most);
    image.data.set([255, 120 * (1 - share), 40, 230 * share], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// ------------------------------------------------------------------------------------------------------------- hello

function onHello(header, bytes) {
  hello = header;
  $("title").textContent = hello.title;
  document.title = `worldvq · ${hello.title}`;
  for (const part of document.querySelectorAll(".of-dream")) part.hidden = !hello.dream;
  for (const part of document.querySelectorAll(".of-record")) part.hidden = !hello.record;
  $("dream-view").hidden = !hello.dream;
  $("real-view").hidden = !hello.real;
  $("views").style.setProperty("--aspect", hello.frame[1] / hello.frame[0]);
  if (hello.dream) {
    $("temperature").value = hello.temperature;
    $("temperature-value").textContent = Number(hello.temperature).toFixed(2);
  } else $("restart").textContent = "Next episode";
  makeActions();
  makePlans();
  let offset = 0;
  for (let i = 0; i < hello.starts; i++) {
    const button = element("button", $("starts")), canvas = element("canvas", button);
    button.setAttribute("aria-label", `start ${i + 1}`);
    button.setAttribute("aria-pressed", String(i === 0));
    offset = paint(canvas, bytes, offset);
    button.onclick = () => {
      for (const other of $("starts").children) other.setAttribute("aria-pressed", String(other === button));
      ask({ kind: "begin", start: i });
    };
  }
  say("connected", "live");
}

function element(name, parent, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function glyph(code) {
  return GLYPHS[code] || code.replace(/^(Key|Digit)/, "");
}

// ----------------------------------------------------------------------------------------------------------- actions

function makeActions() {
  const space = hello.space, box = $("actions");
  if (space.kind === "box") {
    values = space.idle.slice();
    space.sliders.forEach(([low, high], axis) => slider(box, nameOf(axis, `axis ${axis + 1}`), low, high, (high - low) / 200, axis));
    return;
  }
  if (space.kind === "discrete") {
    if (space.nvec[0] > MANY) choice(box, space.nvec[0]);
    else for (let index = 0; index < space.nvec[0]; index++) addButton(nameOf(index, `action ${index}`), 0, index);
  } else {
    values = space.idle.slice();
    space.nvec.forEach((count, factor) => {
      const name = nameOf(factor, `factor ${factor + 1}`);
      if (count > 6) return slider(box, name, 0, count - 1, 1, factor);
      if (count > 2) element("p", box, name).className = "factor";
      for (let value = 1; value < count; value++) addButton(count > 2 ? `${name} ${value}` : name, factor, value);
    });
  }
  assignKeys();
}

function nameOf(index, otherwise) {
  return hello.space.names.length ? hello.space.names[index].toLowerCase().replaceAll("_", " ") : otherwise;
}

function slider(box, name, low, high, step, axis) {
  const label = element("label", box, `${name} `), shown = element("output", label), input = element("input", label);
  label.className = "wide";
  Object.assign(input, { type: "range", min: low, max: high, step, value: values[axis] });
  const show = () => (shown.textContent = step === 1 ? values[axis] : Number(values[axis]).toFixed(2));
  input.oninput = () => { values[axis] = Number(input.value); show(); press(); };
  show();
}

function choice(box, count) { // too many for buttons
  const select = element("select", box), button = element("button", box, "act");
  select.className = "wide";
  for (let index = 0; index < count; index++) element("option", select, nameOf(index, `action ${index}`)).value = index;
  const entry = { factor: 0, value: 0, element: button, keys: [] };
  select.onchange = () => (entry.value = Number(select.value));
  buttons.push(entry);
  byPointer(button, 0);
}

function addButton(name, factor, value) {
  const made = element("button", $("actions")), index = buttons.length;
  element("span", made, name);
  made.title = name;
  buttons.push({ factor, value, element: made, keys: [], name });
  byPointer(made, index);
}

function byPointer(made, index) {
  made.onpointerdown = (event) => { event.preventDefault(); made.setPointerCapture(event.pointerId); hold(index); };
  made.onpointerup = made.onpointercancel = () => release(index);
  made.oncontextmenu = (event) => event.preventDefault();
}

function assignKeys() {
  const taken = new Set(RESERVED);
  const give = (button, codes, most) => {
    for (const code of codes) {
      if (button.keys.length < most && !taken.has(code)) { taken.add(code); button.keys.push(code); }
    }
  };
  const named = buttons.filter((button) => button.name);
  const wishes = named.map((button) => (KNOWN.find(([pattern]) => pattern.test(button.name)) || [null, []])[1]);
  named.forEach((button, i) => give(button, wishes[i].slice(0, 1), 1));
  named.forEach((button, i) => give(button, wishes[i].slice(1), 2));
  named.forEach((button) => { if (!button.keys.length) give(button, SPARE, 1); });
  for (const button of buttons) {
    if (button.keys.length) element("kbd", button.element, glyph(button.keys[0])); // the second is for who tries it
  }
}

function hold(index) {
  if (held.includes(index)) return;
  held.push(index);
  buttons[index].element.classList.add("lit");
  press();
}

function release(index) {
  const at = held.indexOf(index);
  if (at >= 0) held.splice(at, 1);
  buttons[index].element.classList.remove("lit");
}

function heldAction() { // null: nothing is held
  const { kind, idle } = hello.space;
  if (kind === "box") return values.slice();
  if (!held.length) return values.length && values.some((value, i) => value !== idle[i]) ? values.slice() : null;
  if (kind === "discrete") return buttons[held[held.length - 1]].value; // of several, the last one pressed
  const action = values.slice();
  for (const index of held) action[buttons[index].factor] = buttons[index].value;
  return action;
}

function press() { // something new is held
  pressedAt = performance.now();
  tapped = heldAction();
  if (mode === "ready") setMode("running");
  tick(true);
}

// -------------------------------------------------------------------------------------------------------------- time

function setMode(next) {
  mode = next;
  $("pause").textContent = mode === "running" ? "Pause" : "Run";
}

function tick(fresh) {
  clearTimeout(timer);
  if (waiting || busy || !hello) return;
  if (over && !hello.dream) { // the real episode is over: the next key begins another
    if (fresh) {
      ask({ kind: "restart" });
      setMode("running");
    }
    return;
  }
  let action = tapped;
  if (action === null && mode === "running") action = heldAction() ?? hello.space.idle;
  if (action === null) return;
  const rest = lastSent + 1000 / Number($("speed").value) - performance.now();
  if (tapped === null && rest > 1) { timer = setTimeout(tick, rest); return; }
  step(action);
}

function step(action) {
  tapped = null;
  waiting = true;
  lastSent = performance.now();
  send({ kind: "act", action });
}

function ask(message) { // anything but a step
  if (busy) return;
  tapped = null;
  busy = true;
  setMode(message.kind === "record" ? mode : "ready");
  send(message);
}

function onFrame(header, bytes) {
  let offset = 0;
  if (hello.dream) offset = paint($("dream"), bytes, offset);
  if (header.real) offset = paint($("real"), bytes, offset);
  const unsure = header.entropy !== undefined && $("overlay").getAttribute("aria-pressed") === "true";
  $("entropy").hidden = !unsure;
  if (unsure) paintEntropy(bytes, offset);
  const now = performance.now();
  if (header.cause === "act") {
    waiting = false;
    arrivals.push(now);
    if (pressedAt) { latencies.push(now - pressedAt); pressedAt = 0; }
  } else {
    busy = waiting = false;
    arrivals = [];
    $("branches").replaceChildren();
  }
  numbers(header, now);
  $("notice").hidden = true;
  tick();
}

function numbers(header, now) {
  $("step").textContent = header.step;
  $("undo").disabled = !header.undo;
  if (hello.dream) {
    $("reward").textContent = short(header.reward);
    $("total").textContent = `Σ ${short(header.total)}`;
    $("end").textContent = `${Math.round(100 * header.end)} %`;
    $("end-meter").value = header.end;
    $("unsure").textContent = header.entropy === undefined ? "–" : `${header.entropy.toFixed(2)} nats`;
    curtain("dream-curtain", header.end > 0.5 ? "the dream thinks that it is over" : "");
  }
  over = header.real ? header.real.over : "";
  if (header.real) {
    $("real-total").textContent = `· reward ${short(header.real.reward)}, Σ ${short(header.real.total)}`;
    const next = hello.dream ? "" : ": press any action for the next episode";
    curtain("real-curtain", over ? `${over}${next}` : "");
    if (over && !hello.dream) setMode("ready");
  }
  if (header.kept !== undefined) say(`connected · ${header.kept} episode${header.kept === 1 ? "" : "s"} kept`, "live");
  arrivals = arrivals.filter((time) => time > now - 1500).slice(-60);
  const span = arrivals.length > 1 ? arrivals[arrivals.length - 1] - arrivals[0] : 0;
  $("rate").textContent = span ? ((1000 * (arrivals.length - 1)) / span).toFixed(1) : "–";
  latencies = latencies.slice(-9);
  if (latencies.length) {
    const sorted = latencies.slice().sort((a, b) => a - b);
    $("latency").textContent = `${Math.round(sorted[sorted.length >> 1])} ms`;
  }
}

function short(number) {
  const digits = Math.abs(number) < 1 ? 2 : Math.abs(number) < 100 ? 1 : 0;
  return String(Number(number.toFixed(digits)) || 0).replace("-", "−");
}

function curtain(id, text) {
  $(id).hidden = !text;
  $(id).textContent = text;
}

function onNotice(header) {
  busy = waiting = false;
  setMode("paused");
  $("notice").textContent = header.text;
  $("notice").hidden = false;
}

// ------------------------------------------------------------------------------------------------------ forks, clips

function makePlans() {
  hello.plans.forEach((plan, i) => {
    const button = element("button", $("plans"), plan.label.toLowerCase().replaceAll("_", " "));
    button.onclick = () => {
      if (chosen.has(i)) chosen.delete(i);
      else if (chosen.size < hello.branches) chosen.set(i, plan);
      button.setAttribute("aria-pressed", String(chosen.has(i)));
    };
    if (i < 4) chosen.set(i, plan);
    button.setAttribute("aria-pressed", String(chosen.has(i)));
  });
}

function forkHere() {
  const plans = [...chosen].sort((a, b) => a[0] - b[0]).map(([, plan]) => plan);
  if (busy || waiting || !plans.length) return;
  ask({ kind: "what_if", actions: plans.map((plan) => plan.action), steps: Number($("fork-steps").value) });
  $("branches").replaceChildren();
  plans.forEach((plan, branch) => {
    const button = element("button", $("branches"));
    element("canvas", button);
    element("span", button, plan.label.toLowerCase().replaceAll("_", " "));
    element("small", button, "…\n ");
    button.disabled = true;
    button.title = "Go on in this branch";
    button.onclick = () => ask({ kind: "take", branch });
  });
}

function onBranches(header, bytes) {
  let offset = 0;
  [...$("branches").children].forEach((button, branch) => {
    offset = paint(button.querySelector("canvas"), bytes, offset);
    button.querySelector("small").textContent =
      `Σ ${short(header.totals[branch])}\nend ${Math.round(100 * header.ends[branch])} %`;
    if (header.step === header.of) button.disabled = false;
  });
  if (header.step === header.of) busy = false;
}

function onClip(header, bytes) {
  busy = false;
  const old = $("video").src, url = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  if (old) URL.revokeObjectURL(old);
  $("video").src = $("download").href = url;
  $("download").download = "worldvq.mp4";
  $("saved").hidden = false;
  $("download").click();
}

// ---------------------------------------------------------------------------------------------------------- controls

function toggle(button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  return on;
}

function pause() {
  setMode(mode === "running" ? "paused" : "running");
  tick();
}

function one() {
  if (waiting || busy || !hello) return;
  setMode("paused");
  const action = heldAction() ?? hello.space.idle;
  if (action !== null) step(action);
  else { $("notice").textContent = "every action here does something: press one"; $("notice").hidden = false; }
}

function undo() {
  if (waiting) setTimeout(undo, 20); // the step that is on its way is undone too
  else if (!$("undo").disabled && !$("undo").hidden) ask({ kind: "undo", steps: 1 });
}

function restart() { if (!waiting) ask({ kind: "restart" }); else setTimeout(restart, 20); }

function clip() {
  if (busy) return;
  if (waiting) { setMode("paused"); setTimeout(clip, 20); return; }
  ask({ kind: "clip", fps: Number($("speed").value) });
}

function overlay() {
  if (!hello.dream) return;
  const on = toggle($("overlay"));
  send({ kind: "overlay", on });
  if (!on) $("entropy").hidden = true;
}

const SHORTCUTS = { KeyP: pause, Period: one, Backspace: undo, KeyR: restart, KeyC: clip, KeyO: overlay, KeyF: forkHere };

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !hello) return;
  const index = buttons.findIndex((button) => button.keys.includes(event.code));
  const inControl = ["INPUT", "SELECT", "VIDEO"].includes(event.target.tagName);
  if (index >= 0 && !inControl) {
    event.preventDefault();
    if (!event.repeat) hold(index);
  } else if (SHORTCUTS[event.code] && !inControl && (!event.repeat || event.code === "Backspace")) {
    event.preventDefault();
    SHORTCUTS[event.code]();
  }
});
addEventListener("keyup", (event) => {
  const index = buttons.findIndex((button) => button.keys.includes(event.code));
  if (index >= 0) { event.preventDefault(); release(index); }
});
addEventListener("pointerup", (event) => { // who moves a slider with a mouse has not given up the arrow keys
  if (event.target.type === "range") event.target.blur();
});
addEventListener("blur", () => { for (const index of held.slice()) release(index); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden && mode === "running") setMode("paused");
});

$("pause").onclick = pause;
$("one").onclick = one;
$("undo").onclick = undo;
$("restart").onclick = restart;
$("clip").onclick = clip;
$("overlay").onclick = overlay;
$("fork-go").onclick = forkHere;
$("record").onclick = () => { if (!busy) ask({ kind: "record", on: toggle($("record")) }); };
$("temperature").oninput = () => ($("temperature-value").textContent = Number($("temperature").value).toFixed(2));
$("temperature").onchange = () => send({ kind: "temperature", value: Number($("temperature").value) });
$("speed").oninput = () => ($("speed-value").textContent = $("speed").value);
$("fork-steps").oninput = () => ($("fork-value").textContent = $("fork-steps").value);
$("speed-value").textContent = $("speed").value;
connect();
