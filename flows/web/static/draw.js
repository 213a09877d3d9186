// Draws on the paper of the page /DATASET/try, and puts the server's answer in place without loading the page again.
"use strict";
(() => {
  const form = document.getElementById("try");
  if (!form) return;
  const paper = document.getElementById("paper");
  const picture = document.getElementById("picture");
  const status = document.getElementById("status");
  const pen = paper.getContext("2d");
  const PAUSE = 350; // Milliseconds after a stroke, before the drawing is sent: another stroke may follow.
  let waiting = 0;
  let asked = 0;
  let drawn = false;

  document.getElementById("drawing").hidden = false;

  function clear() {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, paper.width, paper.height);
    drawn = false;
    clearTimeout(waiting);
  }

  function place(event) {
    const box = paper.getBoundingClientRect();
    return [
      ((event.clientX - box.left - paper.clientLeft) * paper.width) / paper.clientWidth,
      ((event.clientY - box.top - paper.clientTop) * paper.height) / paper.clientHeight,
    ];
  }

  function send(blob) {
    const body = new FormData(form);
    body.set("picture", blob, "picture");
    ask(body);
  }

  // The newest question counts: an older answer that comes later is dropped.
  async function ask(body) {
    const number = ++asked;
    status.textContent = "Asking …";
    try {
      const answer = await fetch(form.action, { method: "POST", body });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.getElementById("answer");
      if (number !== asked) return;
      const said = page.querySelector(found ? "#answer h2" : "main .lead");
      status.textContent = said ? said.textContent : "There was no answer; try again.";
      if (found) document.getElementById("answer").replaceChildren(...found.childNodes);
    } catch {
      if (number === asked) status.textContent = "The server cannot be reached.";
    }
  }

  paper.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    paper.setPointerCapture(event.pointerId);
    clearTimeout(waiting);
    pen.strokeStyle = "#000";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = Math.max(paper.width, paper.height) / 13;
    pen.beginPath();
    const [x, y] = place(event);
    pen.moveTo(x, y);
    pen.lineTo(x, y);
    pen.stroke();
    drawn = true;
  });

  paper.addEventListener("pointermove", (event) => {
    if (!paper.hasPointerCapture(event.pointerId)) return;
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const each of passed.length ? passed : [event]) pen.lineTo(...place(each));
    pen.stroke();
  });

  function lifted(event) {
    if (!drawn || !event.isPrimary) return;
    picture.value = "";
    waiting = setTimeout(() => paper.toBlob(send, "image/png"), PAUSE);
  }
  paper.addEventListener("pointerup", lifted);
  paper.addEventListener("pointercancel", lifted);

  document.getElementById("clear").addEventListener("click", () => {
    clear();
    asked += 1;
    status.textContent = "";
    document.getElementById("answer").replaceChildren();
  });

  picture.addEventListener("change", () => {
    if (!picture.files.length) return;
    clear();
    ask(new FormData(form));
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (picture.files.length || !drawn) ask(new FormData(form));
    else paper.toBlob(send, "image/png");
  });

  document.getElementById("fit").addEventListener("change", () => {
    if (picture.files.length || drawn) form.requestSubmit();
  });

  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) form.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    picture.files = event.dataTransfer.files;
    clear();
    ask(new FormData(form));
  });

  clear();
})();
