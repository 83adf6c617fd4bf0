// Live rows, the divided picture, and drawing of regions. Without this script pages show the same and forms work.
"use strict";

// Live: the server says that something has changed; the page is fetched again, and only what differs is replaced,
// so that focus, scroll position and what is being typed stay.

const OWN = new Set(["open", "aria-pressed", "style", "hidden"]); // set by the reader, not by the server

function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || (old.id || "") !== (fresh.id || "")) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.matches("[data-draw], [data-compare]")) return; // somebody is at work on it
  for (const { name, value } of [...fresh.attributes])
    if (!OWN.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (!OWN.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  const wanted = new Set([...fresh.children].map((one) => one.id));
  for (const one of [...old.children]) if (one.id && !wanted.has(one.id)) one.remove();
  const known = new Map([...old.children].filter((one) => one.id).map((one) => [one.id, one]));
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const same = next.id && known.get(next.id);
    // What stands before a row goes, rather than that the row moves, since moving would take its focus.
    while (same && at && at !== same && !at.id) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
    if (same && same !== at) old.insertBefore(same, at); // a row has moved
    const target = same || (at && !at.id && !next.id ? at : null);
    if (target) {
      at = target.nextSibling;
      morph(target, next);
    } else old.insertBefore(next, at);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

// What the reader aims at stays where it is: no change while a pointer is down, or was moved a moment ago, over the
// lists; but a page on which somebody keeps moving is not to grow old.

const HOLD_MS = 1000;
const HOLD_MOST_MS = 5000;
let moved = -HOLD_MS;
let down = false;

addEventListener("pointermove", (event) => {
  if (event.target instanceof Element && event.target.closest("main")) moved = performance.now();
});
addEventListener("pointerdown", () => (down = true), true);
for (const end of ["pointerup", "pointercancel", "dragend"]) addEventListener(end, () => (down = false), true);

async function rest() {
  const latest = performance.now() + HOLD_MOST_MS;
  const aims = () => down || performance.now() - moved < HOLD_MS;
  while (aims() && performance.now() < latest) await new Promise((done) => setTimeout(done, 100));
}

// One attempt at a time, and one timer that leads to the next: after a failure later and later.

const AGAIN_MS = 500;
const AGAIN_MOST_MS = 60_000;
const later = (pause) => Math.min(2 * pause || AGAIN_MS, AGAIN_MOST_MS);
let latest = ""; // the version that the server told last
let shown = ""; // the one that was told when the page was last fetched
let fetching = false;
let again = 0;
let pause = 0; // after a failure
let connected = true;

function tell() {
  document.getElementById("lost").hidden = connected && !pause;
}

async function refresh() {
  if (fetching || again || latest === shown || latest === document.body.dataset.version) return;
  fetching = true;
  const told = latest;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    // What a proxy answers, such as that one must log in, is no page of ours.
    if (answer.status >= 500 || !fresh.body.dataset.version) throw new Error(answer.status);
    await rest();
    replace(fresh);
    shown = told;
    pause = 0;
  } catch {
    pause = later(pause);
  } finally {
    fetching = false;
    tell();
  }
  again = setTimeout(retry, pause || AGAIN_MS);
}

function retry() {
  clearTimeout(again);
  again = 0;
  refresh();
}

function replace(fresh) {
  const focused = document.activeElement;
  document.title = fresh.title;
  for (const id of ["stands", "main"]) {
    const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
    if (old && next) morph(old, next);
  }
  const [trouble, told] = [document.querySelector(".trouble"), fresh.querySelector(".trouble")];
  if (trouble && told) morph(trouble, told);
  else if (trouble) trouble.remove();
  else if (told) document.getElementById("main").before(told);
  if (focused !== document.activeElement) {
    const same = focused.isConnected ? focused : focused.id && document.getElementById(focused.id);
    if (same) same.focus({ preventScroll: true });
  }
  document.body.dataset.version = fresh.body.dataset.version;
  equip();
}

let source = null;
let away = 0; // the pause before the next attempt to listen

function listen() {
  // What answers a form, such as a refusal, has an address at which nothing is to be read.
  if (source || document.hidden || "still" in document.body.dataset) return;
  source = new EventSource("/live");
  source.onopen = () => {
    connected = true;
    away = pause = 0;
    retry();
    tell();
    document.body.dataset.live = "yes";
  };
  source.onmessage = (event) => {
    latest = event.data;
    refresh();
  };
  source.onerror = () => {
    connected = false;
    tell();
    delete document.body.dataset.live;
    // A proxy that answers with an error page ends the source for good.
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(listen, (away = later(away)));
    }
  };
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && source) {
    source.close();
    source = null;
  }
  listen();
});
listen();

// Pictures as large as the window allows, but small ones no more than three times as large as they are

function fit(box, picture) {
  const set = () => {
    const { naturalWidth: wide, naturalHeight: high } = picture;
    if (wide) box.style.setProperty("--fit", `${Math.round(Math.min((0.8 * innerHeight * wide) / high, 3 * wide))}px`);
  };
  picture.addEventListener("load", set);
  addEventListener("resize", set);
  set();
}

// The divided picture

function compare(box) {
  const pair = box.querySelector(".pair");
  const range = box.querySelector("input[type=range]");
  const set = (share) => {
    range.value = share;
    pair.style.setProperty("--x", `${range.value}%`);
  };
  const follow = (event) => {
    const { left, width } = pair.getBoundingClientRect();
    set((100 * (event.clientX - left)) / width);
  };
  // At its actual size a finger moves the picture, and the slider below divides it.
  const divides = ({ isPrimary, pointerType }) => isPrimary && !(pointerType === "touch" && box.classList.contains("full"));
  range.addEventListener("input", () => set(range.value));
  pair.addEventListener("pointerdown", (event) => {
    if (!divides(event) || event.button) return;
    pair.setPointerCapture(event.pointerId);
    follow(event);
  });
  pair.addEventListener("pointermove", (event) => pair.hasPointerCapture(event.pointerId) && divides(event) && follow(event));
  const toggle = (name, kind, when) =>
    box.querySelector(`[data-${name}]`)?.addEventListener("click", (event) => {
      const pressed = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", pressed);
      box.classList.toggle(kind, pressed === when);
    });
  fit(pair, pair.querySelector(".after"));
  toggle("full", "full", true);
  toggle("regions", "bare", false);
}

// Drawing a region: shapes in pixels of the picture, sent as JSON, and kept until they were saved

const drawing = `drawing ${location.pathname}`;

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(drawing)) || [];
  } catch {
    return [];
  }
}

function keep(shapes) {
  try {
    sessionStorage.setItem(drawing, JSON.stringify(shapes));
  } catch {
    // It is full or forbidden: then a drawing that is refused is lost.
  }
}

if (document.querySelector("[data-done=region_saved]")) keep([]);

function draw(form) {
  const picture = form.querySelector("img");
  const canvas = form.querySelector("canvas");
  const field = form.elements.shapes;
  fit(form.querySelector(".easel"), picture);
  const shapes = kept();
  let current = null; // the shape that is being drawn, and the pointer that draws it
  let hand = null;

  const place = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const clamp = (share, most) => Math.round(Math.min(Math.max(share, 0), 1) * most);
    return [
      clamp((event.clientX - left) / width, picture.naturalWidth),
      clamp((event.clientY - top) / height, picture.naturalHeight),
    ];
  };
  const show = () => {
    if (!picture.naturalWidth) return;
    form.elements.drawn_on.value = `${picture.naturalWidth}x${picture.naturalHeight}`;
    const { width, height } = canvas.getBoundingClientRect();
    [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
    const pen = canvas.getContext("2d");
    pen.scale(canvas.width / picture.naturalWidth, canvas.height / picture.naturalHeight);
    pen.fillStyle = pen.strokeStyle = "rgb(220 38 38 / 55%)";
    pen.lineCap = pen.lineJoin = "round";
    for (const shape of current ? [...shapes, current] : shapes) {
      if (shape.rectangle) {
        const [left, top, right, bottom] = shape.rectangle;
        pen.fillRect(left, top, right - left, bottom - top);
      } else {
        pen.lineWidth = shape.width;
        pen.beginPath();
        pen.moveTo(...shape.stroke[0]);
        for (const point of [shape.stroke[0], ...shape.stroke]) pen.lineTo(...point);
        pen.stroke();
      }
    }
  };
  const changed = () => {
    field.value = JSON.stringify(shapes);
    keep(shapes);
    show();
  };
  // One pointer draws at a time: the first finger, the tip of a pen, the main button of a mouse.
  canvas.addEventListener("pointerdown", (event) => {
    if (!picture.naturalWidth || current || !event.isPrimary || event.button) return;
    canvas.setPointerCapture((hand = event.pointerId));
    const at = place(event);
    const size = (form.querySelector("[data-size]").value / 100) * Math.max(picture.naturalWidth, picture.naturalHeight);
    current =
      form.elements.tool.value === "brush"
        ? { stroke: [at], width: Math.max(Math.round(size), 1) }
        : { start: at, rectangle: [...at, ...at] };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current || event.pointerId !== hand) return;
    const [x, y] = place(event);
    if (current.stroke) current.stroke.push([x, y]);
    else {
      const [a, b] = current.start;
      current.rectangle = [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)];
    }
    show();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!current || event.pointerId !== hand) return;
    const { stroke, rectangle } = current;
    if (stroke) shapes.push(current);
    else if (rectangle[2] > rectangle[0] && rectangle[3] > rectangle[1]) shapes.push({ rectangle });
    current = null;
    changed();
  });
  // The system took the pointer away, as for a palm on the screen: what it drew was not meant.
  canvas.addEventListener("pointercancel", (event) => {
    if (event.pointerId !== hand) return;
    current = null;
    show();
  });
  form.querySelector("[data-undo]").addEventListener("click", () => {
    shapes.pop();
    changed();
  });
  picture.addEventListener("load", show);
  changed();
}

// Both get their handlers once: at the beginning, or when a refresh has brought them

const equipped = new WeakSet();

function equip() {
  for (const [kind, handle] of [["[data-compare]", compare], ["[data-draw]", draw]])
    for (const one of document.querySelectorAll(kind))
      if (!equipped.has(one)) {
        equipped.add(one);
        handle(one);
      }
}

equip();

// The token in the address that the command prints: behind the #, so that no server and no log gets it

function unlock() {
  const form = document.querySelector("[data-unlock]");
  if (!form || location.hash.length < 2) return;
  if (document.getElementById(location.hash.slice(1))) return; // a place on the page, such as that of "skip"
  form.elements.token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  form.submit();
}

addEventListener("hashchange", unlock); // it was opened in a tab that shows the form already
unlock();
