"use strict";
// The page is right without this script. With it, the page fetches itself again and takes over what changed: one
// renderer, one truth. Scroll, focus, selection and opened details stay as they are.
(() => {
  const EVERY = 2000, PATIENCE = 8000;
  const root = document.documentElement;
  let tag = root.dataset.tag, skew = Date.parse(root.dataset.at) - Date.now(), good = Date.now(), busy = false;

  const duration = (s) => s < 60 ? `${s} s` : s < 7200 ? `${Math.floor(s / 60)} min` :
    s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;

  const tick = () => {
    const now = Date.now() + skew;
    for (const one of document.querySelectorAll("time[data-ago]")) {
      const s = Math.floor(Math.max(0, now - Date.parse(one.dateTime)) / 1000);
      const text = one.dataset.ago === "for" ? duration(s) : s < 1 ? "just now" : `${duration(s)} ago`;
      if (one.textContent !== text) one.textContent = text;
    }
  };

  const sync = (old, fresh) => {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old === document.activeElement && old.matches("input, select")) return;
    if (old.isEqualNode(fresh)) return;
    for (const { name } of [...old.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    // In order, and by what each is: a note that comes or goes moves its neighbours and does not replace them.
    const before = [...old.childNodes];
    let at = 0;
    for (const node of fresh.childNodes) {
      const found = before.findIndex((one, place) => place >= at && one.nodeName === node.nodeName);
      if (found < 0) {
        old.insertBefore(document.importNode(node, true), before[at] ?? null);
        continue;
      }
      while (at < found) before[at++].remove();
      sync(before[at++], node);
    }
    while (at < before.length) before[at++].remove();
  };

  const take = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const id of ["top", "main"]) {
      const found = fresh.getElementById(id);
      if (found) sync(document.getElementById(id), found);
    }
    document.title = fresh.title;
    const icon = fresh.querySelector("link[rel=icon]");
    if (icon) document.querySelector("link[rel=icon]").href = icon.href;
    tag = fresh.documentElement.dataset.tag;
    skew = Date.parse(fresh.documentElement.dataset.at) - Date.now();
  };

  const show = (lost) => {
    root.classList.toggle("lost", lost);
    const banner = document.getElementById("lost");
    banner.hidden = !lost;
    if (lost) {
      const s = Math.floor((Date.now() - good) / 1000);
      banner.textContent = `The sidecar has not answered for ${duration(s)}. What is shown is as old as that.`;
    }
    document.getElementById("live").textContent = lost ? "not live" : "live";
  };

  const look = async () => {
    if (busy || document.hidden) return;
    busy = true;
    try {
      const answer = await fetch(location.href, {
        headers: { "If-None-Match": tag }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
      });
      if (answer.status === 200) take(await answer.text());
      else if (answer.status !== 304) throw new Error(answer.status);
      good = Date.now();
      show(false);
    } catch {
      show(true);
    } finally {
      busy = false;
      tick();
    }
  };

  document.addEventListener("change", (event) => {
    if (event.target.matches("select")) event.target.form.requestSubmit();
  });
  document.addEventListener("visibilitychange", look);
  root.classList.add("scripted");
  show(false);
  tick();
  setInterval(tick, 1000);
  setInterval(look, EVERY);
})();
